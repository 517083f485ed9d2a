"""What processes that are just being started say on stderr, kept back until it is known whether they start."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker


class Held:
    """Text on its way from processes to stderr.

    Args:
        read: descriptor that their stderr can be read from; closed at its end.
        own: descriptor of the real one; likewise.
    """

    def __init__(self, read: int, own: int) -> None:
        self._read, self._own = read, own
        self._lock, self._held, self._pass_on = threading.Lock(), bytearray(), False
        self._thread = threading.Thread(target=self._relay, daemon=True, name="stderr of workers")
        self._thread.start()

    def _relay(self) -> None:
        while data := os.read(self._read, 1 << 16):
            with self._lock:
                self._held += data
                if self._pass_on:
                    self._write()
        os.close(self._read)
        os.close(self._own)

    def _write(self) -> None:
        with suppress(OSError):  # nobody reads it any more
            os.write(self._own, self._held)
        self._held.clear()

    def pass_on(self) -> None:
        """Lets what was said, and from now on what is, out."""
        with self._lock:
            self._pass_on = True
            self._write()

    def text(self) -> str:
        """Returns what was said and is kept back, all of it if the processes have ended."""
        self._thread.join(1)  # until the last of them has closed it
        with self._lock:
            return self._held.decode(errors="replace")


@contextmanager
def held() -> Iterator[Held | None]:
    """Keeps back what processes started inside write to stderr; once the work inside has succeeded, it is passed on.

    If it failed, it never is: it is the tracebacks of processes that died with it, and in what is yielded. None is
    yielded where this process has no stderr.
    """
    try:
        own = os.dup(2)
    except OSError:
        yield None
        return
    try:
        resource_tracker.ensure_running()  # it outlives the work inside, and is to have the real one
        read, write = os.pipe()
    except OSError:
        os.close(own)
        raise
    os.dup2(write, 2)
    os.close(write)
    kept = Held(read, own)
    try:
        yield kept
    finally:
        os.dup2(own, 2)
    kept.pass_on()

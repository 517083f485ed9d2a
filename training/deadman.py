"""Ends the launcher of a host that is cut off from the disk that all share, where it waits for the kernel, for ever."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from training.hosts import Hosts

STALLED = 30.0  # seconds without a turn of the launcher; a disk may be away for longer while the network is there
_EVERY, _TRY = 5.0, 3.0  # seconds between two looks, and for a try to reach a host


class Deadman:
    """Says whether a launcher has not come round for long, and no other host can be reached.

    Args:
        hosts: of the job.
        reach: whether a host answers.
        clock: seconds that only grow.
    """

    def __init__(
        self, hosts: Hosts, reach: Callable[[str, int], bool] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._others = [name for place, name in enumerate(hosts.names) if place != hosts.rank]
        self._port, self._reach, self._clock = hosts.port, reach or answers, clock
        self._turned = clock()

    def turn(self) -> None:
        """Notes that the launcher has come round."""
        self._turned = self._clock()

    def cut_off(self) -> bool:
        """Returns whether this host is cut off."""
        stalled = self._clock() - self._turned > STALLED
        return stalled and bool(self._others) and not any(self._reach(name, self._port) for name in self._others)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Ends this process, and with it the ranks, if it is cut off while it is inside."""
        left = threading.Event()

        def look() -> None:
            while not left.wait(_EVERY):
                if self.cut_off():
                    away = self._clock() - self._turned
                    print(
                        f"Error: this host is cut off: the disk of --out has not answered for {away:.0f} s, and no "
                        "other host of the job does; --resume goes on",
                        file=sys.stderr,
                        flush=True,
                    )
                    os._exit(1)

        thread = threading.Thread(target=look, name="deadman", daemon=True)
        if self._others:
            thread.start()
        try:
            yield
        finally:
            left.set()


def answers(host: str, port: int) -> bool:
    """Returns whether a host can be reached; that it refuses a connection is an answer."""
    try:
        with socket.create_connection((host, port), _TRY):
            return True
    except ConnectionRefusedError:
        return True
    except OSError:
        return False

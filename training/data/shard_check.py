"""Compares a rank's shards with their checksums, while others work on."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from faceshards.files import difference

_NICE = 10  # a tenth of a core where training wants them all (Linux weighs 110 to 1024), and a whole one where it waits


class Written(NamedTuple):
    """What the manifest says of a file."""

    path: Path
    size: int  # bytes
    sha256: str  # hex


class ShardCheck:
    """A thread of low priority that hashes files, one after the other, until one differs or all are the same.

    hashlib and reads leave Python's lock to others; nothing here is drawn at random, and nothing that a batch is made
    of is touched. What goes wrong in the thread is a problem too: it cannot pass for files that are the same.

    Args:
        files: to be compared.

    Attributes:
        problem: one line on the first file that differs; None while there is none.
    """

    def __init__(self, files: Sequence[Written]) -> None:
        self.problem: str | None = None
        self._files = files
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="check-shards", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with suppress(OSError):  # a kernel that gives threads no priority of their own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        try:
            for file in self._files:
                self.problem = difference(*file, "the manifest", self._go_on)
                if self.problem:
                    return
        except _Closed:
            pass
        except Exception as error:
            self.problem = f"{file.path}: cannot be compared with its checksum: {error!r}"

    def _go_on(self) -> None:
        if self._closed.is_set():
            raise _Closed

    @property
    def busy(self) -> bool:
        """Whether there are files left to compare."""
        return self._thread.is_alive()

    def wait(self) -> None:
        """Returns after all files were compared."""
        self._thread.join()

    def close(self) -> None:
        """Gives up what is left to compare."""
        self._closed.set()
        self._thread.join()


class _Closed(Exception):  # noqa: N818 - no error
    """Nobody wants to know any more."""

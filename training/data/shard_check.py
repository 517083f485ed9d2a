"""Compares a rank's shards with their checksums, while others work on."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from faceshards.checksums import difference
from faceshards.storage.location import Location

# Of a core, while nobody waits: 150 MB/s where a processor has instructions for SHA-256. A low priority of the thread
# would not do: on a full machine it would be interrupted while it has Python's lock, and all others would wait for it.
_SHARE = 0.1


class Written(NamedTuple):
    """What the manifest says of a file."""

    path: Location
    size: int  # bytes
    sha256: str  # hex


class ShardCheck:
    """A thread that hashes files, one after the other, until one differs or all are the same.

    It takes a small share of a core until somebody waits for it. hashlib and reads leave Python's lock to others;
    nothing here is drawn at random, and nothing that a batch is made of is touched. What goes wrong in the thread is a
    problem too: it cannot pass for files that are the same.

    Args:
        files: to be compared.

    Attributes:
        problem: one line on the first file that differs; None while there is none.
    """

    def __init__(self, files: Sequence[Written]) -> None:
        self.problem: str | None = None
        self._files = files
        self._hurry, self._closed = threading.Event(), threading.Event()
        self._used = 0.0  # CPU seconds of the thread, when the last block began
        self._thread = threading.Thread(target=self._run, name="check-shards", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for file in self._files:
                self.problem = difference(*file, "the manifest", self._pace)
                if self.problem:
                    return
        except _Closed:
            pass
        except Exception as error:
            self.problem = f"{file.path}: cannot be compared with its checksum: {error!r}"

    def _pace(self) -> None:
        """Returns when the next block is due; raises _Closed if nobody wants to know any more."""
        before, self._used = self._used, time.thread_time()
        self._hurry.wait((self._used - before) * (1 / _SHARE - 1))
        if self._closed.is_set():
            raise _Closed

    @property
    def busy(self) -> bool:
        """Whether there are files left to compare."""
        return self._thread.is_alive()

    def wait(self) -> None:
        """Returns after all files were compared, now as fast as it goes."""
        self._hurry.set()
        self._thread.join()

    def close(self) -> None:
        """Gives up what is left to compare."""
        self._closed.set()
        self.wait()


class _Closed(Exception):  # noqa: N818 - no error
    """Nobody wants to know any more."""

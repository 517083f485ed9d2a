"""Objects read by ranges: large reads in pieces at once, small ones from windows that grow as long as they follow.

Every range is asked of the object as it was when it was opened (If-Match): one that is replaced meanwhile is noticed.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

from faceshards.storage import requests
from faceshards.storage.faults import StorageError
from faceshards.storage.location import Status, StoredPath, Version, status, version

PIECE = 8 << 20
"""Bytes of a range, about, of what is read whole."""

_MOST = PIECE * 3 // 2  # bytes of the largest range, unless one image is larger
_AT_ONCE = 4  # ranges in flight, of all objects of a process
_FIRST, _LARGEST = 256 << 10, PIECE  # bytes of a window: the first, and what it grows to
_WINDOWS = 4  # held of an object
_GAP = 64 << 10  # bytes between two images that are read along rather than asked for apart
_WIDE_GAP = 4 << 20  # the same, of images that are read in order


def read_range(path: StoredPath, start: int, stop: int) -> bytes:
    """Returns bytes of an object that nobody replaces, by one request; from its end on if `start` is below 0."""
    return requests.some(path, start, stop)[0]


def read_object(path: StoredPath, most: int = 16 << 20) -> tuple[bytes, Version]:
    """Returns the content of a small object, and its version; StorageError if it has more than `most` bytes."""
    data, about = requests.whole(path, most)
    return data, version(about)


def read_once(path: StoredPath, most: int) -> bytes:
    """Returns the content of a small object that nothing is known of yet, and that is not read a second time.

    Over http bytes may come changed. Then the MD5 that most stores give as ETag is another, and it is read again: of an
    ETag that is none (encrypted objects, those of several parts) two answers that are alike tell.

    Raises:
        StorageError: it has more than `most` bytes, cannot be read, or is another one each time.
    """
    data, about = read_object(path, most)
    if requests.is_protected(path) or _is_md5(about, data):
        return data
    again, about = read_object(path, most)
    if again != data and not _is_md5(about, again):
        raise StorageError(errno.EIO, "comes with other bytes each time", str(path))
    return again


def _is_md5(about: Version, data: bytes) -> bool:
    return about.get("e_tag", "").strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest()


@cache
def _threads(process: int) -> ThreadPoolExecutor:
    """Returns the threads of a process that wait for ranges; another process has its own."""
    return ThreadPoolExecutor(_AT_ONCE, "faceshards-ranges")


class StoredFile(io.RawIOBase):
    """An object, open for reading; several threads may read at known places.

    Args:
        path: of the object.
        first: bytes from its start on that are read first; below 0: so many of its last ones. The request that opens it
            fetches them along.
        known: the object that it has to be, and is taken to be: then nothing is asked to open it.
        begins: what is known of its content, from its start on.

    Attributes:
        status: of the object, when it was opened.
        size: in bytes.

    Raises:
        StorageError: it cannot be read, here or later.
    """

    def __init__(self, path: StoredPath, first: int = 0, known: Status | None = None, begins: bytes = b"") -> None:
        super().__init__()
        self.path, self._at = path, 0
        self._windows = OrderedDict({0: begins} if begins else {})  # by where they begin
        self._ahead: tuple[list[int], list[bytes]] = ([], [])  # where each begins, ascending
        self._lock = threading.Lock()
        self.status = known or (self._opened(first) if first else path.stat())
        self.size = self.status.st_size

    def _opened(self, first: int) -> Status:
        """Returns what is known of the object, after its first or last bytes became a window."""
        try:
            data, about = requests.some(self.path, min(first, 0), first)
        except StorageError as error:
            if error.errno not in (errno.ENOENT, errno.ERANGE):
                raise
            return self.path.stat()  # tells a missing object from a missing bucket; or there is no byte in it
        self._windows[0 if first > 0 else about["size"] - len(data)] = data
        return status(about)

    def read_at(self, offset: int, count: int) -> bytes:
        """Returns `count` bytes from a place on; fewer only at the end of the object."""
        count = min(count, self.size - offset)
        if count <= 0:
            return b""
        starts, pieces = self._ahead
        if (at := bisect_right(starts, offset) - 1) >= 0 and offset + count <= starts[at] + len(pieces[at]):
            return pieces[at][offset - starts[at] : offset - starts[at] + count]
        if (data := self._in_window(offset, count)) is not None:
            return data
        if count >= _LARGEST:
            number = round(count / PIECE)  # of like size: what is little more than one piece is not two
            edges = [offset + count * i // number for i in range(number + 1)]
            return b"".join(self._ranges(list(pairwise(edges))))
        return self._windowed(offset, count)

    def blocks(self, size: int) -> Iterator[bytes]:
        """Yields the content, so many bytes at a time; what was fetched with the request that opened it comes first."""
        first = min(size, len(self._windows.get(0, b"")))
        if first:
            yield self.read_at(0, first)
        for start in range(first, self.size, size):
            yield self.read_at(start, size)

    def _in_window(self, offset: int, count: int) -> bytes | None:
        """Returns bytes that are in a window; None if they are in none."""
        with self._lock:
            for start, data in self._windows.items():
                if start <= offset and offset + count <= start + len(data):
                    self._windows.move_to_end(start)
                    return data[offset - start : offset - start + count]
        return None

    def _windowed(self, offset: int, count: int) -> bytes:
        """Returns bytes from a new window, which is larger than the one that it follows."""
        with self._lock:
            size = _FIRST
            for start, data in self._windows.items():
                if start <= offset <= start + len(data):
                    size = min(4 * max(len(data), _FIRST), _LARGEST)
            data = self._range(offset, min(self.size, offset + max(size, count)))
            self._windows[offset] = data
            self._windows.move_to_end(offset)
            while len(self._windows) > _WINDOWS:
                self._windows.popitem(last=False)
            return data[:count]

    def read_ahead(self, places: Sequence[tuple[int, int]], in_order: bool = False) -> None:
        """Fetches what will be read next, in few ranges; what was fetched before is forgotten.

        Args:
            places: offset and bytes of each, ascending.
            in_order: they follow each other, and what lies between them may be read, too: then no two ranges that
                follow each other begin less than 4 MiB apart.
        """
        gap, most = (_WIDE_GAP, _MOST) if in_order else (_GAP, PIECE)
        spans: list[tuple[int, int]] = []
        for offset, count in places:
            stop = min(offset + count, self.size)
            if spans and offset - spans[-1][1] <= gap and stop - spans[-1][0] <= most:
                spans[-1] = (spans[-1][0], max(stop, spans[-1][1]))
            elif offset < stop:
                spans.append((offset, stop))
        self._ahead = ([], [])
        self._ahead = ([start for start, _ in spans], self._ranges(spans))

    def _ranges(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        if len(spans) == 1:
            return [self._range(*spans[0])]
        return list(_threads(os.getpid()).map(lambda span: self._range(*span), spans))

    def _range(self, start: int, stop: int) -> bytes:
        """Returns the bytes of one request."""
        return requests.part(self.path, start, stop, self.status.st_ino)

    # What Arrow, SQLite's copy and the like ask of a file of Python's.

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def tell(self) -> int:
        """Returns the place that is read next."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Returns the place that is read next, after it was moved."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        return self._at

    def readinto(self, into: Any) -> int:
        """Returns how many bytes were read."""
        data = self.read_at(self._at, len(into))
        into[: len(data)] = data
        self._at += len(data)
        return len(data)

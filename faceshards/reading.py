"""Files of this machine and objects in buckets, opened for reading in one way."""

from __future__ import annotations

import errno
import io
import itertools
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.fs as fs

from faceshards.storage.arrow import ObjectsForArrow
from faceshards.storage.faults import StorageError
from faceshards.storage.location import Location, StoredPath, as_location
from faceshards.storage.ranges import StoredFile, read_object, read_range

BLOCK = 32 << 20
"""Bytes of an object that are read at a time where it is read whole: some ranges at once."""

NOT_REGULAR = "no regular file"

_WAITING = 8  # requests of a kind in flight, of a process
_LOOKED_INTO = 64  # folders, for a hint
_HEAD = 128  # bytes of the header of an .npy of one dimension

Item = TypeVar("Item")
Found = TypeVar("Found")


def open_regular(path: Path | str) -> int:
    """Returns the descriptor of a file, open for reading; what is no regular file is not waited for.

    Raises:
        OSError: it cannot be opened; or it is a pipe, a socket, a device or a folder, as strerror says.
    """
    if stat.S_ISREG(os.stat(path).st_mode):  # opening a device may already do something
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if stat.S_ISREG(os.fstat(handle).st_mode):
            return handle
        os.close(handle)
    raise OSError(errno.EINVAL, NOT_REGULAR, str(path))


class RegularFile:
    """A file of this machine, open for reading at known places; see open_regular().

    Args:
        path: of the file.

    Attributes:
        status: of the file, when it was opened.
        size: in bytes.
    """

    def __init__(self, path: Path | str) -> None:
        self._handle = open_regular(path)
        self.status = os.fstat(self._handle)
        self.size = self.status.st_size
        self._ahead = (0, b"")  # where it begins, and what was read there

    def read_at(self, offset: int, count: int) -> bytes:
        """Returns `count` bytes from a place on, fewer only at the end of the file or beyond 2 GiB."""
        start, data = self._ahead
        if start <= offset and offset + count <= start + len(data):
            return data[offset - start : offset - start + count]
        return self._read(offset, count)

    def read_ahead(self, places: Sequence[tuple[int, int]], in_order: bool = False) -> None:
        """Reads at once what will be read by and by, if it is in order; what was read before is forgotten.

        Args:
            places: offset and bytes of each, ascending.
            in_order: they follow each other; without it nothing is gained on a disk, and nothing is read.
        """
        self._ahead = (0, b"")
        if in_order and places:
            start, end = places[0][0], sum(places[-1])
            self._ahead = (start, self._read(start, end - start))

    def _read(self, offset: int, count: int) -> bytes:
        return os.pread(self._handle, count, offset)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._handle)

    def __enter__(self) -> RegularFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_file(path: Location | str) -> OpenFile:
    """Returns a file or an object, open for reading at known places; OSError if it cannot be."""
    path = as_location(path)
    return StoredFile(path) if isinstance(path, StoredPath) else RegularFile(path)


OpenFile: TypeAlias = RegularFile | StoredFile
"""A file or an object, open for reading at known places."""


def files_in(folder: Location, wanted: Callable[[str], bool]) -> list[Location]:
    """Returns the files, or objects, right in a folder whose names are wanted, by name."""
    if isinstance(folder, StoredPath):
        return [*sorted(entry for entry, is_prefix in folder.entries() if not is_prefix and wanted(entry.name))]
    return [*sorted(entry for entry in folder.iterdir() if wanted(entry.name) and entry.is_file())]


def fetch(path: Location, to: Path) -> None:
    """Copies a file or an object into a file."""
    if not isinstance(path, StoredPath):
        shutil.copyfile(path, to)
        return
    with StoredFile(path) as stored, open(to, "wb") as file:
        for start in range(0, stored.size, BLOCK):
            file.write(stored.read_at(start, BLOCK))


def content(path: Location) -> bytes:
    """Returns what is in a small file or object."""
    return read_object(path)[0] if isinstance(path, StoredPath) else path.read_bytes()


def names_in(folder: Location) -> set[str]:
    """Returns the names of the files, or objects, right in a folder; none if there is no such folder."""
    if isinstance(folder, StoredPath):
        return {entry.name for entry, is_prefix in folder.entries() if not is_prefix}
    return {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()


def folders_with(name: str, place: Location) -> list[Location]:
    """Returns the folders, or prefixes, right in a place that hold a file of a name; of many folders few are looked at,
    and of one that is closed to us nothing is said."""
    try:
        if isinstance(place, StoredPath):
            inner: Iterator[Location] = (entry for entry, is_prefix in place.entries() if is_prefix)
        else:
            inner = (entry for entry in place.iterdir() if entry.is_dir())
        found = [*itertools.islice(inner, _LOOKED_INTO)]
        return sorted(itertools.compress(found, each(lambda folder: (folder / name).is_file(), found)))
    except (OSError, StorageError):
        return []


def each(function: Callable[[Item], Found], items: Iterable[Item]) -> list[Found]:
    """Returns what a function says of each item; it waits for a store most of the time, so some run at once."""
    with ThreadPoolExecutor(_WAITING) as pool:
        return list(pool.map(function, items))


def load_array(path: Location, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Returns entries of an .npy of one dimension, in memory; only they are read.

    Args:
        path: of the .npy.
        start: the first.
        stop: the end; None: all to the last.
    """
    if not isinstance(path, StoredPath):
        return np.array(np.load(path, mmap_mode="r")[start:stop])
    head = io.BytesIO(read_range(path, 0, _HEAD))
    np.lib.format.read_magic(head)
    (count,), _, dtype = np.lib.format.read_array_header_1_0(head)
    low, high, _ = slice(start, stop).indices(count)
    if high <= low:
        return np.empty(0, dtype)
    first, size = head.tell(), dtype.itemsize
    return np.frombuffer(read_range(path, first + low * size, first + high * size), dtype)


def for_arrow(path: Location) -> str | pa.NativeFile:
    """Returns what Arrow's readers take for a file or an object."""
    return pa.PythonFile(StoredFile(path), "r") if isinstance(path, StoredPath) else str(path)


def arrow_files(path: Location) -> fs.FileSystem:
    """Returns the file system of Arrow's in which a path lies."""
    return fs.PyFileSystem(ObjectsForArrow()) if isinstance(path, StoredPath) else fs.LocalFileSystem()

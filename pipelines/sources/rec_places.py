"""Where the records of a .rec lie, by the keys that manifests name them by."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from faceshards.errors import SourceError
from faceshards.formats import idx, recordio_scan
from faceshards.storage.location import StoredPath, as_location
from pipelines.sources.base import OpenFiles, SourceFile

_STEP = 64 << 20  # bytes scanned at a time, to count records


def fetch_ahead(file: SourceFile, keys: Sequence[str], opened: OpenFiles) -> None:
    """Fetches of an object what place() and read() will look at, if there is an .idx; several at once."""
    if file.index and isinstance(as_location(file.path), StoredPath):
        index = _index(file, opened)
        wanted = np.isin(index.keys, [int(key) for key in keys if key.isdecimal()])
        offsets = np.sort(index.offsets[wanted]).tolist()
        handle, beside = opened.file(file), recordio_scan.AHEAD
        spans = ((max(0, offset - beside), offset + 4 + beside) for offset in offsets)
        handle.read_ahead([(start, stop - start) for start, stop in spans])


def offset_of(file: SourceFile, key: str, opened: OpenFiles) -> int:
    """Returns the byte at which a record begins, by its key; without an .idx, records are counted from the first.

    Raises:
        SourceError: there is no such record.
    """
    if key.startswith("@"):
        return int(key[1:])
    return _indexed(file, key, opened) if file.index else _counted(file, int(key))


def _indexed(file: SourceFile, key: str, opened: OpenFiles) -> int:
    """Returns the byte at which the .idx has a key."""
    index = _index(file, opened)
    found = index.offsets[index.keys == int(key)]
    if len(found) != 1:
        raise SourceError(f"{file.index}: has the key {key} {len(found)} times")
    return int(found[0])


def _index(file: SourceFile, opened: OpenFiles) -> idx.Index:
    state = opened.state(file.index)  # says it in fewer words than the reader if it is gone
    return _read_index(file.index, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=1)  # whoever wants one record mostly wants more
def _read_index(path: str, size: int, mtime_ns: int) -> idx.Index:
    """Returns an .idx as it is in this state."""
    return idx.read_index(as_location(path))


def _counted(file: SourceFile, ordinal: int) -> int:
    """Returns the byte at which a record begins, by its place in the file."""
    before = 0
    for start in range(0, file.bytes, _STEP):
        stop = min(start + _STEP, file.bytes)
        count = _count(file.path, start, stop, file.mtime_ns)
        if ordinal < before + count:
            return int(recordio_scan.scan(as_location(file.path), start, stop).offset[ordinal - before])
        before += count
    raise SourceError(f"{file.path}: has {before} records, none of the place {ordinal}")


@functools.lru_cache(maxsize=1 << 16)  # 4 TiB of records: counted once, however many are looked for
def _count(path: str, start: int, stop: int, mtime_ns: int) -> int:
    """Returns how many records begin in a piece of a file as it is in this state."""
    return len(recordio_scan.scan(as_location(path), start, stop).offset)

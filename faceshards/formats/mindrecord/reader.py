"""Reads and checks MindRecord shards without MindSpore; faceshards.formats.mindrecord.layout describes their bytes."""

from __future__ import annotations

import sqlite3
import tempfile
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np

from faceshards.errors import ShardError
from faceshards.formats.mindrecord.layout import (
    HEADER_SIZES,
    PAGE_SIZES,
    TABLES,
    WITHOUT_ROWID,
    RowGroup,
    frames,
    read_header,
    read_raw_rows,
    row_groups,
)
from faceshards.reading import fetch, open_file
from faceshards.storage.location import Location, StoredPath, as_location


class Picked(NamedTuple):
    """Rows of one row group.

    Attributes:
        rows: (n,) int64, their numbers.
        numbers: labels and sids, (n,) int64 each; None if the group's cannot be read.
        images: n encoded images; None for one that does not have the length it should have.
        problem: what could not be read; None if nothing.
    """

    rows: np.ndarray
    numbers: tuple[np.ndarray, np.ndarray] | None
    images: list[memoryview | None]
    problem: str | None


class Shard:
    """A shard's data file, open for reading; a context manager. Nothing in the file is trusted.

    Args:
        path: data file. Its index is not read; `verify_index` compares the two.

    Raises:
        ShardError: not a shard of ours, cut, or its header contradicts itself. Reading rows raises it likewise.
    """

    def __init__(self, path: Location | str) -> None:
        self.path = as_location(path)
        try:
            self._file = open_file(path)
        except (OSError, ValueError) as error:
            raise ShardError(path, f"cannot be opened: {getattr(error, 'strerror', error)}") from None
        try:
            self._groups = self._open()
        except (OSError, ValueError) as error:
            self.close()
            raise ShardError(path, f"not a whole shard: {error}") from None
        self._starts = [group.start for group in self._groups]
        self._cached: tuple[RowGroup, bytes, list[int]] | None = None

    def _open(self) -> list[RowGroup]:
        """Returns the row groups, all of them inside the file."""
        size = self._file.size
        length = int.from_bytes(self._read(0, 8), "little")
        # A page's entry takes up to 300 bytes, so a header longer than this has more pages than the file can hold.
        if length > min(size - 8, 4096 + 300 * (size // PAGE_SIZES[0] + 2)):
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        self._header_size, self._page_size, pages = read_header(self.path.name, self._read(8, length))
        if not HEADER_SIZES[0] <= self._header_size <= HEADER_SIZES[-1] or length + 8 > self._header_size:
            raise ValueError(f"a header of {length} bytes in {self._header_size}")
        if self._page_size not in PAGE_SIZES:
            raise ValueError(f"pages of {self._page_size} bytes")
        groups = row_groups(pages)
        said = self._header_size + (len(pages) - 1) * self._page_size + pages[-1].used
        if size != said:
            raise ValueError(f"{size} bytes long, its header says {said}")
        return groups

    def _read(self, offset: int, count: int) -> bytes:
        """Returns exactly `count` bytes from `offset` on."""
        data = self._file.read_at(offset, count)
        if len(data) != count:
            raise ValueError(f"ends within {count} bytes at {offset}")
        return data

    def _blobs(self, group: RowGroup) -> tuple[bytes, list[int]]:
        """Returns a group's blob page and where its (n,) framed images start, and the end."""
        try:
            data = self._read(self._header_size + group.blob * self._page_size, group.blob_used)
            return data, frames(data, group.end - group.start)
        except (OSError, ValueError) as error:
            raise ShardError(self.path, f"blob page {group.blob}: {error}") from None

    def _fields(self, group: RowGroup) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns labels, sids, framed lengths of a group's raw rows, (n,) int64 each."""
        try:
            offset = self._header_size + group.raw * self._page_size + group.raw_start
            return read_raw_rows(self._read(offset, group.raw_end - group.raw_start), group.end - group.start)
        except (OSError, ValueError) as error:
            raise ShardError(self.path, f"raw page {group.raw}, byte {group.raw_start}: {error}") from None

    def __len__(self) -> int:
        return self._groups[-1].end

    @property
    def starts(self) -> list[int]:
        """The rows at which row groups begin, ascending."""
        return [*self._starts]

    def numbers(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns labels and sids of all rows, (N,) int64 each; no image is read."""
        labels, sids = zip(*(self._fields(group)[:2] for group in self._groups), strict=True)
        return np.concatenate(labels), np.concatenate(sids)

    def rows(self) -> Iterator[tuple[int, int, memoryview]]:
        """Yields label, sid and image of every row in order; at any time one page is in memory."""
        for group in self._groups:
            labels, sids, _ = self._fields(group)
            data, places = self._blobs(group)
            view = memoryview(data)
            images = [view[low + 8 : high] for low, high in pairwise(places)]
            yield from zip(labels.tolist(), sids.tolist(), images, strict=True)

    def image(self, row: int) -> bytes:
        """Returns the encoded image of a row in 0..len - 1; keeps its page for a neighbour that may follow."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        group = self._groups[bisect_right(self._starts, row) - 1]
        if self._cached is None or self._cached[0] is not group:
            self._cached = (group, *self._blobs(group))
        _, data, places = self._cached
        return data[places[row - group.start] + 8 : places[row - group.start + 1]]

    def frame_offsets(self, lengths: np.ndarray) -> np.ndarray:
        """Returns where the frame of every row begins in the file, (N,) int64; no page is read.

        Args:
            lengths: (N,) int, bytes of every image, from the manifest; a frame is u64 LE length and the image.

        Raises:
            ShardError: such images do not fill the pages as the header says.
        """
        offsets = np.empty(len(self), np.int64)
        for group in self._groups:
            ends = np.cumsum(lengths[group.start : group.end].astype(np.int64) + 8)
            if ends[-1] != group.blob_used:
                raise ShardError(
                    self.path, f"blob page {group.blob}: {group.blob_used} bytes, by the lengths {ends[-1]}"
                )
            offsets[group.start] = self._header_size + group.blob * self._page_size
            offsets[group.start + 1 : group.end] = offsets[group.start] + ends[:-1]
        return offsets

    def picked(self, rows: np.ndarray, lengths: np.ndarray) -> Iterator[Picked]:
        """Yields some rows, those of each row group together; damage of some keeps no other from being read.

        Args:
            rows: (n,) int64, which ones, ascending.
            lengths: (N,) int, bytes of every image, from the manifest.

        Raises:
            ShardError: such images do not fill the pages as the header says.
        """
        offsets = self.frame_offsets(lengths)
        bounds = np.searchsorted(rows, [*self._starts, len(self)])  # (groups + 1,)
        for group, low, high in zip(self._groups, bounds[:-1], bounds[1:], strict=True):
            if low < high:
                yield self._picked(group, rows[low:high], offsets, lengths)

    def _picked(self, group: RowGroup, rows: np.ndarray, offsets: np.ndarray, lengths: np.ndarray) -> Picked:
        """Returns rows of a group as far as they can be read; a page is read whole if many of them are in it."""
        try:
            labels, sids, _ = self._fields(group)
            numbers = labels[rows - group.start], sids[rows - group.start]
            problem = None
        except ShardError as error:
            numbers, problem = None, error.cause
        base, page = int(offsets[group.start]), None
        try:
            if 4 * len(rows) > group.end - group.start:
                page = memoryview(self._file.read_at(base, group.blob_used))
            images = []
            for at, length in zip(offsets[rows].tolist(), lengths[rows].tolist(), strict=True):
                frame = self._file.read_at(at, length + 8) if page is None else page[at - base : at - base + length + 8]
                whole = len(frame) == length + 8 and int.from_bytes(frame[:8], "little") == length
                images.append(memoryview(frame)[8:] if whole else None)
        except OSError as error:
            images = [None] * len(rows)
            problem = f"blob page {group.blob}: {error.strerror}"
        return Picked(rows, numbers, images, problem)

    def index_rows(self) -> Iterator[list[tuple[int, ...]]]:
        """Yields for each row group the rows that table INDEXES must have."""
        for group in self._groups:
            labels, _, raw_lengths = self._fields(group)
            yield list(group.index_rows(np.diff(self._blobs(group)[1]), raw_lengths, labels))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def verify_index(path: Location) -> None:
    """Checks that `path`.db says of every row what the data file says; of a partial one MindSpore dies by SIGSEGV.

    Raises:
        ShardError: the index is missing, damaged, incomplete or differs, or the data file is no shard.
    """
    index = path.with_name(f"{path.name}.db")
    if not index.is_file() or index.with_name(f"{index.name}-journal").exists():
        raise ShardError(index, "is missing, or its journal says that writing it was interrupted")
    try:
        if not isinstance(index, StoredPath):
            return _verify_index(path, index, index)
        with tempfile.NamedTemporaryFile(prefix="faceshards-index-") as copy:
            fetch(index, Path(copy.name))
            _verify_index(path, index, Path(copy.name))
    except (OSError, sqlite3.Error, UnicodeDecodeError) as error:  # the last one for SQLite's messages of damaged names
        raise ShardError(index, f"cannot be read: {error!r}") from None


def _verify_index(path: Location, index: Location, copy: Path) -> None:
    """Compares an index, that lies where SQLite can read it, with the data file."""
    names = ("table", "SHARD_NAME", "SHARD_NAME", TABLES[1])
    ours = [("table", "INDEXES", "INDEXES", TABLES[0] + WITHOUT_ROWID), names]
    theirs = [  # FileWriter's, and our own once
        ("index", "sqlite_autoindex_INDEXES_1", "INDEXES", None),
        ("table", "INDEXES", "INDEXES", TABLES[0]),
        names,
    ]
    source = f"file:{quote(str(copy.absolute()))}?mode=ro&immutable=1"  # immutable: takes no lock, leaves no files
    with Shard(path) as shard, closing(sqlite3.connect(source, uri=True)) as link:
        tables = link.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY 1, 2").fetchall()
        if tables not in (ours, theirs):
            raise ShardError(index, "does not have MindRecord's tables")
        if link.execute("PRAGMA integrity_check(1)").fetchall() != [("ok",)]:
            raise ShardError(index, "is damaged: SQLite's integrity_check fails")
        if link.execute("SELECT NAME FROM SHARD_NAME").fetchmany(2) != [(path.name,)]:
            raise ShardError(index, f"is not the index of {path.name}")
        order = "ROW_ID" if tables == ours else "rowid"
        found = link.execute(f"SELECT * FROM INDEXES NOT INDEXED ORDER BY {order}")
        for rows in shard.index_rows():
            if found.fetchmany(len(rows)) != rows:
                raise ShardError(index, f"differs from the data file in rows {rows[0][0]}..{rows[-1][0]}")
        if found.fetchone() is not None:
            raise ShardError(index, f"has more rows than the data file's {len(shard)}")

"""Writes, reads and checks MindRecord shards without MindSpore; pipelines.mindrecord_layout describes their bytes."""

from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
import stat
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from pipelines.errors import ShardError
from pipelines.mindrecord_layout import (
    HEADER_SIZES,
    PAGE_SIZES,
    RAW_FIXED,
    TABLES,
    Group,
    checked_columns,
    frames,
    header,
    int_widths,
    lay_out,
    raw_rows,
    read_header,
    read_raw_rows,
    row_groups,
)

DEFAULT_PAGE = 4 << 20  # bytes; half of one is the usual waste, at the end of the last blob page
FORBIDDEN = set("\\/:*?\"<>|`&';")  # in file names, by MindSpore


@dataclass(frozen=True)
class ShardInfo:
    """What the manifest says about a written shard: rows, and size in bytes and SHA-256 (hex) of both files."""

    rows: int
    bytes: int
    sha256: str
    db_bytes: int
    db_sha256: str


def write_shard(
    path: Path,
    images: Iterable[bytes | bytearray | memoryview | np.ndarray],
    sizes: np.ndarray,
    labels: np.ndarray,
    sids: np.ndarray,
    *,
    page_size: int = 0,
    header_size: int = 0,
) -> ShardInfo:
    """Returns the facts of the shard written at `path` and `path`.db, both fsynced; the data file in one pass.

    Args:
        path: data file; its name goes into the file, so the shard can change folders but not names.
        images: N encoded images, one contiguous buffer each, taken a page at a time.
        sizes: (N,) int, bytes of each image, at least 1.
        labels: (N,) int, 0..2**31-1.
        sids: (N,) int, 0..2**63-1.
        page_size: bytes, one of PAGE_SIZES; 0 takes the least that holds the largest image and either all or 4 MiB.
        header_size: bytes, one of HEADER_SIZES; 0 takes the least that holds the header.

    Raises:
        ShardError: the rows break a limit (then nothing is written), the images do not have the sizes promised, or the
            disk refuses. What was written by then is left to the caller, who owns the folder.
    """
    if not path.name.isprintable() or FORBIDDEN & set(path.name) or path.name != path.name.strip(" "):
        raise ShardError(path, f"a MindRecord name has none of {' '.join(sorted(FORBIDDEN))}, nor a space at an end")
    try:
        sizes, labels, sids = checked_columns(sizes, labels, sids)
    except ValueError as error:
        raise ShardError(path, str(error)) from None
    raw_sizes = RAW_FIXED + int_widths(labels) + int_widths(sids)  # (N,)
    largest = int(sizes.max()) + 8
    if not page_size:
        wanted = max(largest, min(DEFAULT_PAGE, int(sizes.sum()) + 8 * len(sizes)))
        page_size = next((size for size in PAGE_SIZES if size >= wanted), PAGE_SIZES[-1])
    if page_size not in PAGE_SIZES or largest > page_size:
        raise ShardError(path, f"no MindRecord page of {page_size} bytes for an image of {largest - 8} bytes")
    pages, groups = lay_out(sizes, raw_sizes, page_size)
    for choice in (header_size,) if header_size else HEADER_SIZES:
        head = header(path.name, choice, page_size, pages)
        if choice in HEADER_SIZES and len(head) <= choice:
            break
    else:
        raise ShardError(path, f"no MindRecord header of {choice} bytes for {len(head)} bytes about {len(pages)} pages")
    digest, size = hashlib.sha256(), 0
    try:
        with open(path, "wb", buffering=0) as file:
            for block in chain(
                (head, bytes(choice - len(head))),
                _blob_blocks(path, groups, page_size, iter(images), sizes),
                _raw_blocks(groups, page_size, labels, sids),
            ):
                digest.update(block)
                size += len(block)
                while block:  # a write may take less than all, above all on a disk that is filling up
                    block = block[file.write(block) :]
            os.fsync(file.fileno())
        columns = np.stack([sizes + 8, raw_sizes, labels])  # (3, N)
        db = _write_index(path, (group.index_rows(*columns[:, group.start : group.end]) for group in groups))
    except (OSError, sqlite3.Error) as error:
        full = isinstance(error, sqlite3.Error) and "disk is full" in str(error)  # its code is new in Python 3.11
        number = errno.ENOSPC if full else getattr(error, "errno", 0) or 0
        raise ShardError(path, f"cannot be written: {error}", number) from None
    return ShardInfo(len(sizes), size, digest.hexdigest(), len(db), hashlib.sha256(db).hexdigest())


def _blob_blocks(
    path: Path, groups: list[Group], page_size: int, images: Iterator[Any], sizes: np.ndarray
) -> Iterator[bytes]:
    """Yields the blob pages, each followed by its padding."""
    for group in groups:
        wanted = sizes[group.start : group.end]  # (n,)
        parts: list[Any] = [b""] * (2 * len(wanted))
        parts[::2] = wanted.astype("<u8").view("V8").tolist()  # n times 8 bytes
        taken = list(islice(images, len(wanted)))
        if [memoryview(image).nbytes for image in taken] != wanted.tolist():
            raise ShardError(path, f"images {group.start}..{group.end} do not have the sizes promised, or are missing")
        parts[1::2] = taken
        del taken
        block = b"".join(parts)
        del parts  # else two pages of images wait while this one is written
        yield block
        del block
        yield bytes(page_size - group.blob_used)
    if next(images, None) is not None:
        raise ShardError(path, f"there are more images than {groups[-1].end} sizes")


def _raw_blocks(groups: list[Group], page_size: int, labels: np.ndarray, sids: np.ndarray) -> Iterator[bytes]:
    """Yields the raw pages a row group at a time, with padding between pages but not after the last."""
    for group, following in zip(groups, [*groups[1:], None], strict=True):
        yield raw_rows(labels[group.start : group.end], sids[group.start : group.end])
        if following and following.raw != group.raw:
            yield bytes(page_size - group.raw_end)


def _write_index(path: Path, rows: Iterable[Iterator[tuple[int, ...]]]) -> bytes:
    """Returns the bytes of `path`.db, written and fsynced: same rows and SQLite version, same bytes."""
    index = Path(f"{path}.db")
    for leftover in (index, Path(f"{index}-journal")):
        leftover.unlink(missing_ok=True)
    with closing(sqlite3.connect(index, isolation_level=None)) as link:
        for setting in ("page_size=4096", "journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE"):
            link.execute(f"PRAGMA {setting}")
        for statement in ("BEGIN", *TABLES):
            link.execute(statement)
        link.execute("INSERT INTO SHARD_NAME VALUES(?)", (path.name,))
        link.executemany("INSERT INTO INDEXES VALUES(?,?,?,?,?,?,?,?,?,?)", chain.from_iterable(rows))
        link.execute("COMMIT")
    with open(index, "rb") as file:
        os.fsync(file.fileno())
        return file.read()


class Shard:
    """A shard's data file, open for reading; a context manager. Nothing in the file is trusted.

    Args:
        path: data file. Its index is not read; `verify_index` compares the two.

    Raises:
        ShardError: not a shard of ours, cut, or its header contradicts itself. Reading rows raises it likewise.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait for a writer
        except (OSError, ValueError) as error:
            raise ShardError(path, f"cannot be opened: {error}") from None
        try:
            self._groups = self._open()
        except (OSError, ValueError) as error:
            self.close()
            raise ShardError(path, f"not a whole shard: {error}") from None
        self._starts = [group.start for group in self._groups]
        self._cached: tuple[Group, bytes, list[int]] | None = None

    def _open(self) -> list[Group]:
        """Returns the row groups, all of them inside the file."""
        status = os.fstat(self._file)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("no regular file")
        length = int.from_bytes(self._read(0, 8), "little")
        # A page's entry takes up to 300 bytes, so a header longer than this has more pages than the file can hold.
        if length > min(status.st_size - 8, 4096 + 300 * (status.st_size // PAGE_SIZES[0] + 2)):
            raise ValueError(f"a header of {length} bytes in a file of {status.st_size}")
        self._header_size, self._page_size, pages = read_header(self.path.name, self._read(8, length))
        if not HEADER_SIZES[0] <= self._header_size <= HEADER_SIZES[-1] or length + 8 > self._header_size:
            raise ValueError(f"a header of {length} bytes in {self._header_size}")
        if not PAGE_SIZES[0] <= self._page_size <= PAGE_SIZES[-1]:
            raise ValueError(f"pages of {self._page_size} bytes")
        groups = row_groups(pages)
        size = self._header_size + (len(pages) - 1) * self._page_size + pages[-1].used
        if size != status.st_size:
            raise ValueError(f"{status.st_size} bytes long, its header says {size}")
        return groups

    def _read(self, offset: int, count: int) -> bytes:
        """Returns exactly `count` bytes from `offset` on."""
        data = os.pread(self._file, count, offset)
        if len(data) != count:
            raise ValueError(f"ends within {count} bytes at {offset}")
        return data

    def _blobs(self, group: Group) -> tuple[bytes, list[int]]:
        """Returns a group's blob page and where its (n,) framed images start, and the end."""
        try:
            data = self._read(self._header_size + group.blob * self._page_size, group.blob_used)
            return data, frames(data, group.end - group.start)
        except (OSError, ValueError) as error:
            raise ShardError(self.path, f"blob page {group.blob}: {error}") from None

    def _fields(self, group: Group) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns labels, sids, framed lengths of a group's raw rows, (n,) int64 each."""
        try:
            offset = self._header_size + group.raw * self._page_size + group.raw_start
            return read_raw_rows(self._read(offset, group.raw_end - group.raw_start), group.end - group.start)
        except (OSError, ValueError) as error:
            raise ShardError(self.path, f"raw page {group.raw}, byte {group.raw_start}: {error}") from None

    def __len__(self) -> int:
        return self._groups[-1].end

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

    def index_rows(self) -> Iterator[list[tuple[int, ...]]]:
        """Yields for each row group the rows that table INDEXES must have."""
        for group in self._groups:
            labels, _, raw_lengths = self._fields(group)
            yield list(group.index_rows(np.diff(self._blobs(group)[1]), raw_lengths, labels))

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def verify_index(path: Path) -> None:
    """Checks that `path`.db says of every row what the data file says; of a partial one MindSpore dies by SIGSEGV.

    Raises:
        ShardError: the index is missing, damaged, incomplete or differs, or the data file is no shard.
    """
    index = Path(f"{path}.db")
    if not index.is_file() or Path(f"{index}-journal").exists():
        raise ShardError(index, "is missing, or its journal says that writing it was interrupted")
    named = [("INDEXES", "INDEXES", TABLES[0]), ("SHARD_NAME", "SHARD_NAME", TABLES[1])]
    expected = [("index", "sqlite_autoindex_INDEXES_1", "INDEXES", None), *(("table", *table) for table in named)]
    source = f"file:{quote(str(index.absolute()))}?mode=ro&immutable=1"  # immutable: takes no lock, leaves no files
    try:
        with Shard(path) as shard, closing(sqlite3.connect(source, uri=True)) as link:
            if link.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY 1, 2").fetchall() != expected:
                raise ShardError(index, "does not have MindRecord's tables")
            if link.execute("PRAGMA integrity_check(1)").fetchall() != [("ok",)]:
                raise ShardError(index, "is damaged: SQLite's integrity_check fails")
            if link.execute("SELECT NAME FROM SHARD_NAME").fetchmany(2) != [(path.name,)]:
                raise ShardError(index, f"is not the index of {path.name}")
            found = link.execute("SELECT * FROM INDEXES NOT INDEXED ORDER BY rowid")
            for rows in shard.index_rows():
                if found.fetchmany(len(rows)) != rows:
                    raise ShardError(index, f"differs from the data file in rows {rows[0][0]}..{rows[-1][0]}")
            if found.fetchone() is not None:
                raise ShardError(index, f"has more rows than the data file's {len(shard)}")
    except (OSError, sqlite3.Error, UnicodeDecodeError) as error:  # the last one for SQLite's messages of damaged names
        raise ShardError(index, f"cannot be read: {error!r}") from None

"""Writes MindRecord shards without MindSpore; faceshards.formats.mindrecord.layout describes their bytes."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from faceshards.errors import ShardError
from faceshards.formats.mindrecord.geometry import geometry
from faceshards.formats.mindrecord.layout import (
    HEADER_SIZES,
    PAGE_SIZES,
    RAW_FIXED,
    TABLES,
    WITHOUT_ROWID,
    RowGroup,
    checked_columns,
    header,
    int_widths,
    lay_out,
    raw_rows,
)

_PROBE = 1 << 17  # bytes; more than SQLite writes at a time
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
        page_size: bytes, one of PAGE_SIZES; 0 takes what suits this shard alone (geometry.py). Shards that MindSpore is
            to read together need the same, and the same header_size.
        header_size: bytes; the least of HEADER_SIZES from this one on that holds the header.

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
    raw_sizes = _raw_sizes(labels, sids)
    page_size, choice, head, groups = _fit(path, sizes, raw_sizes, page_size, header_size)
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
        number = _refusal(path) if isinstance(error, sqlite3.Error) else error.errno or 0
        raise ShardError(path, f"cannot be written: {error}", number) from None
    return ShardInfo(len(sizes), size, digest.hexdigest(), len(db), hashlib.sha256(db).hexdigest())


def _refusal(path: Path) -> int:
    """Returns the errno with which the disk refuses a few pages at a path now, 0 if it takes them.

    SQLite says "database or disk is full" of one kind of full disk, "disk I/O error" of others (a quota), "unable to
    open database file" of one without inodes, and an errno of none.
    """
    try:
        with open(f"{path}.db", "ab") as file:  # behind what is there: to cut it off would make room
            file.write(bytes(_PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno or 0
    return 0


def shard_bytes(
    sizes: np.ndarray, labels: np.ndarray, sids: np.ndarray, *, page_size: int = 0, header_size: int = 0
) -> int:
    """Returns the bytes of both files of the shard that `write_shard` would make: of the first exactly, of the index
    (34 bytes a row in pages of 4 KiB, as layout.py has it measured) to a page or two.

    Args:
        sizes, labels, sids, page_size, header_size: as `write_shard` takes them.

    Raises:
        ShardError: the rows break a limit.
    """
    path = Path("shard-00000.mindrecord")
    raw_sizes = _raw_sizes(labels, sids)
    page_size, header_size, _, groups = _fit(path, sizes, raw_sizes, page_size, header_size)
    leaves = -(-34 * len(sizes) // 4096)
    index = (2 + leaves + (leaves > 1)) * 4096
    # Every page takes page_size, but the last one only its rows.
    return header_size + (groups[-1].raw * page_size) + groups[-1].raw_end + index


def _raw_sizes(labels: np.ndarray, sids: np.ndarray) -> np.ndarray:
    """Returns the bytes of each row besides its image, (N,)."""
    return RAW_FIXED + int_widths(labels) + int_widths(sids)


def _fit(
    path: Path, sizes: np.ndarray, raw_sizes: np.ndarray, page_size: int, header_size: int
) -> tuple[int, int, bytes, list[RowGroup]]:
    """Returns page size, header size, header and row groups of a shard; see `write_shard`."""
    largest = int(sizes.max()) + 8
    page_size = page_size or geometry([sizes]).page_size
    if page_size not in PAGE_SIZES or largest > page_size:
        raise ShardError(path, f"no MindRecord page of {page_size} bytes for an image of {largest - 8} bytes")
    pages, groups = lay_out(sizes, raw_sizes, page_size)
    for choice in (size for size in HEADER_SIZES if size >= header_size):
        head = header(path.name, choice, page_size, pages)
        if len(head) <= choice:
            return page_size, choice, head, groups
    raise ShardError(path, f"no MindRecord header for {len(pages)} pages")


def _blob_blocks(
    path: Path, groups: list[RowGroup], page_size: int, images: Iterator[Any], sizes: np.ndarray
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


def _raw_blocks(groups: list[RowGroup], page_size: int, labels: np.ndarray, sids: np.ndarray) -> Iterator[bytes]:
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
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as link:
        for statement in ("PRAGMA page_size=4096", "BEGIN", TABLES[0] + WITHOUT_ROWID, TABLES[1]):
            link.execute(statement)
        link.execute("INSERT INTO SHARD_NAME VALUES(?)", (path.name,))
        link.executemany("INSERT INTO INDEXES VALUES(?,?,?,?,?,?,?,?,?,?)", chain.from_iterable(rows))
        link.execute("COMMIT")
        link.execute("VACUUM INTO ?", (str(index),))  # fills its pages, of which inserting leaves a tenth empty
    with open(index, "rb") as file:
        os.fsync(file.fileno())
        return file.read()

"""What a source is to a build: files, partitions of them, the rows that a partition holds, and what a kind can do."""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from faceshards.dataset.schema import CODE
from faceshards.errors import SourceError
from faceshards.hashing import splitmix64
from faceshards.reading import OpenFile, each, open_file
from faceshards.storage.location import Status, StoredPath, as_location
from faceshards.storage.ranges import read_object

MAX_ENCODED = 64 << 20
"""Bytes of one encoded image; a record beyond it is no aligned face, and reading it would burst a worker."""

IMAGES_AT_ONCE = 32
"""Requests in flight, of a process, where each image is an object of its own."""


@dataclass(frozen=True)
class SourceFile:
    """One .rec or one image folder, with what tells that it has not changed since.

    Args:
        path: absolute, or an address in a bucket.
        name: short name, for the manifest.
        kind: of SOURCES.
        index: absolute path of the .idx, "" without.
        bytes: size of the .rec; of all images for a folder.
        mtime_ns: modification time in ns, of the .rec; of the newest image for a folder.
    """

    path: str
    name: str
    kind: str
    index: str
    bytes: int
    mtime_ns: int

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder, or a prefix in a bucket."""
        return self.kind == "folder" or os.path.isdir(self.path)


@dataclass(frozen=True)
class Partition:
    """A piece of one source file that is scanned and signed by itself; picklable.

    Args:
        number: place in the build's order, from 0.
        source: place of the file in the build's list.
        kind: of SOURCES.
        path: the .rec, or the root of an image folder.
        start: first byte of the .rec (multiple of 4), or first row of the listing.
        stop: end of it.
        table: path of what the kind wrote to cut the file, None if nothing.
        last: whether the file ends here.
        share: of the identities that are looked at (`in_sample`); 1 for all.
    """

    number: int
    source: int
    kind: str
    path: str
    start: int
    stop: int
    table: str | None
    last: bool
    share: float = 1.0


def in_sample(names: Iterable[str], share: float) -> np.ndarray:
    """Returns which identities are in a sample, (n,) bool: the same ones in every file and partition.

    Args:
        names: of n identities, as the source says them.
        share: of all identities, 0 to 1.
    """
    digests = np.array([zlib.crc32(name.encode()) for name in names], np.uint32)
    chosen = splitmix64(0, 3, digests) < np.uint64(min(int(share * 2**64), 2**64 - 1))
    return chosen if share < 1 else np.ones(len(digests), bool)


class Cut(NamedTuple):
    """How one file is cut into partitions."""

    bounds: list[int]  # where each partition starts, and the end of the last
    table: str | None  # path of what the partitions need besides the file, None if nothing
    warnings: list[str]


class Place(NamedTuple):
    """Where one image lies in its source: columns of the record table."""

    key: str
    offset: int
    header: int
    size: int
    parts: int


class Claims(NamedTuple):
    """What a file says of itself, to be compared with what is found; None where it says nothing."""

    images: range | None  # numbers that it may mean: float32 rounds them
    identities: int | None


@dataclass
class Scanned:
    """The rows of a partition, in order of offset; lists have one entry per row.

    Args:
        offset, header, size: int64 bytes; where the record begins, what precedes the image in it, the image.
        parts: int32.
        ordinal: int32, place among the partition's records, header and identity records included; -1 if none.
        key: .idx key, "@offset" if the .idx lacks the record, path in a folder, None without an .idx.
        label: int32, -1 if unusable.
        label_original: as the source says it, None if there was none to read.
        reason: uint8, records.CODE.
        detail: cause in words, None for a sound row.
        images: encoded image, (bytes,) uint8, None for rows that have none.
        records: all records of the partition, header and identity records included.
        structural: header and identity records among them.
        unindexed: sound rows that the .idx does not name; 0 without an .idx.
    """

    offset: np.ndarray
    header: np.ndarray
    size: np.ndarray
    parts: np.ndarray
    ordinal: np.ndarray
    key: list[str | None]
    label: np.ndarray
    label_original: list[str | None]
    reason: np.ndarray
    detail: list[str | None]
    images: list[np.ndarray | None]
    records: int
    structural: int
    unindexed: int = 0

    @classmethod
    def of_images(cls, images: list[np.ndarray | None]) -> Scanned:
        """Returns the rows of images that lie in no source."""
        n = len(images)
        zeros, none = np.zeros(n, np.int64), [None] * n
        counts = zeros.astype(np.int32)
        reason = np.zeros(n, np.uint8)
        return cls(
            zeros, zeros, zeros, counts, counts, [*none], counts, [*none], reason, [*none], images, n, structural=0
        )

    def take(self, rows: np.ndarray) -> Scanned:
        """Returns these rows, (N,) bool, among as many records."""
        columns: dict[str, Any] = {}
        for name, column in vars(self).items():
            if isinstance(column, np.ndarray):
                columns[name] = column[rows]
            elif isinstance(column, list):
                columns[name] = [column[i] for i in np.flatnonzero(rows).tolist()]
        return dataclasses.replace(self, **columns)

    def drop(self, row: int, reason: str, detail: str) -> None:
        """Marks a row as dropped; the first reason stands."""
        if self.reason[row] == 0:
            self.reason[row] = CODE[reason]
            self.detail[row] = detail


class OpenFiles:
    """Source files, each opened when it is first read and kept open; a context manager."""

    def __init__(self) -> None:
        self._open: dict[str, OpenFile] = {}
        self.images: dict[StoredPath, bytes] = {}  # read ahead, each an object of its own
        self._states: dict[str, os.stat_result | Status] = {}
        self.looked_up: dict[tuple[str, str], Any] = {}  # by a file's path and a key, what its kind makes of it

    def state(self, path: str) -> os.stat_result | Status:
        """Returns what is known of a file beside a source since it was first asked for; OSError if it is gone."""
        if path not in self._states:
            self._states[path] = as_location(path).stat()
        return self._states[path]

    def file(self, file: SourceFile) -> OpenFile:
        """Returns the open file.

        Raises:
            SourceError: it is not the file that was scanned.
            OSError: it cannot be opened.
        """
        if file.path not in self._open:
            found = open_file(file.path)
            if (found.status.st_size, found.status.st_mtime_ns) != (file.bytes, file.mtime_ns):
                found.close()
                raise SourceError(f"{file.path}: changed since it was scanned")
            self._open[file.path] = found
        return self._open[file.path]

    def read_ahead(self, file: SourceFile, places: Sequence[Place], in_order: bool = False) -> None:
        """Fetches what will be read of an object, in few requests; of a file of this machine only if it is in order.

        Args:
            file: the source.
            places: in it, in order of their offsets.
            in_order: they follow each other, and what lies between them may be read, too.

        Raises:
            SourceError: it changed, or went away, since it was scanned.
        """
        root = as_location(file.path)
        if isinstance(root, StoredPath) and file.is_folder:
            paths = [root / place.key for place in places]
            self.images = dict(zip(paths, each(image_of, paths, IMAGES_AT_ONCE), strict=True))
            return
        if not isinstance(root, StoredPath) and not (in_order and os.path.isfile(file.path)):
            return  # it may be a folder
        # A part of a record adds 8 bytes of header and at most 3 of padding.
        spans = [(p.offset, p.header + p.size + 11 * max(1, p.parts)) for p in places]
        try:
            self.file(file).read_ahead(spans, in_order)
        except OSError as error:  # who writes meanwhile would take it for one of its own disk
            raise SourceError(f"{file.path}: {error.strerror or error}") from None

    def __enter__(self) -> OpenFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.close()


def image_of(path: StoredPath) -> bytes:
    """Returns an image that is an object of its own; StorageError if it is too large, or cannot be read."""
    return read_object(path, MAX_ENCODED)[0]

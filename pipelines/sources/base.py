"""What a source is to a build: files, partitions of them, and the rows that a partition holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from faceshards.dataset.schema import CODE

MAX_ENCODED = 64 << 20
"""Bytes of one encoded image; a record beyond it is no aligned face, and reading it would burst a worker."""


@dataclass(frozen=True)
class SourceFile:
    """One .rec or one image folder, with what tells that it has not changed since.

    Args:
        path: absolute.
        name: short name, for the manifest.
        kind: "recordio" or "folder".
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


@dataclass(frozen=True)
class Partition:
    """A piece of one source file that is scanned and signed by itself; picklable.

    Args:
        number: place in the build's order, from 0.
        source: place of the file in the build's list.
        path: the .rec, or the root of an image folder.
        start: first byte of the .rec (multiple of 4), or first row of the listing.
        stop: end of it.
        index: .npy (2, N) int64 of offsets, ascending, and keys of the .idx; or of the folder's listing; None without.
        last: whether the file ends here.
    """

    number: int
    source: int
    path: str
    start: int
    stop: int
    index: str | None
    last: bool


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

    def drop(self, row: int, reason: str, detail: str) -> None:
        """Marks a row as dropped; the first reason stands."""
        if self.reason[row] == 0:
            self.reason[row] = CODE[reason]
            self.detail[row] = detail

"""Reads and checks MindRecord shards without MindSpore; faceshards.formats.mindrecord.layout describes their bytes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np

from faceshards.errors import ShardError
from faceshards.formats.mindrecord.layout import (
    HEADER_SIZES,
    PAGE_SIZES,
    RowGroup,
    frames,
    read_header,
    read_raw_rows,
    row_groups,
)
from faceshards.reading import open_file
from faceshards.storage.location import Location, as_location

_FIRST = 64 << 10  # bytes of an object that are read at once: most headers, 200 bytes a page
_BLOCK = 32 << 20  # bytes of an object that are fetched before they are looked at


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
        path: data file. Its index is not read; formats/mindrecord/index.py compares the two.

    Raises:
        ShardError: not a shard of ours, cut, or its header contradicts itself. Reading rows raises it likewise.
    """

    def __init__(self, path: Location | str) -> None:
        self.path = as_location(path)
        try:
            self._file = open_file(path, first=_FIRST)
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
            return read_raw_rows(self._read(*self._raw_place(group)), group.end - group.start)
        except (OSError, ValueError) as error:
            raise ShardError(self.path, f"raw page {group.raw}, byte {group.raw_start}: {error}") from None

    def _raw_place(self, group: RowGroup) -> tuple[int, int]:
        """Returns where a group's raw rows begin in the file, and their bytes."""
        offset = self._header_size + group.raw * self._page_size + group.raw_start
        return offset, group.raw_end - group.raw_start

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
        chosen = [
            (group, rows[low:high])
            for group, low, high in zip(self._groups, bounds[:-1], bounds[1:], strict=True)
            if low < high
        ]
        places = [self._places(group, some, offsets, lengths) for group, some in chosen]
        block = np.cumsum([sum(size for _, size in own) for own in places]) // _BLOCK
        for first, stop in pairwise([0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), len(chosen)]):
            self._file.read_ahead(sorted(chain.from_iterable(places[first:stop])))
            for group, some in chosen[first:stop]:
                yield self._picked(group, some, offsets, lengths)

    def images(self, rows: np.ndarray, lengths: np.ndarray) -> list[bytes]:
        """Returns the encoded images of some rows; only they are read, of an object several at once.

        Args:
            rows: (n,) int64, which ones, ascending.
            lengths: (N,) int, bytes of every image, from the manifest.

        Raises:
            ShardError: such images do not fill the pages as the header says, or a row has an image of another length.
        """
        offsets = self.frame_offsets(lengths)
        places = self._frames(rows, offsets, lengths)
        try:
            self._file.read_ahead(places)
            read = [self._file.read_at(*place) for place in places]
        except OSError as error:
            raise ShardError(self.path, f"cannot be read: {error.strerror}") from None
        for row, length, frame in zip(rows.tolist(), lengths[rows].tolist(), read, strict=True):
            if not _is_frame(frame, length):
                raise ShardError(self.path, f"row {row}: no image of {length} bytes, which the manifest says")
        return [frame[8:] for frame in read]

    def _places(
        self, group: RowGroup, rows: np.ndarray, offsets: np.ndarray, lengths: np.ndarray
    ) -> list[tuple[int, int]]:
        """Returns what is read of a group for some of its rows, offset and bytes of each."""
        if _is_most(rows, group):
            return [(int(offsets[group.start]), group.blob_used), self._raw_place(group)]
        return [*self._frames(rows, offsets, lengths), self._raw_place(group)]

    def _frames(self, rows: np.ndarray, offsets: np.ndarray, lengths: np.ndarray) -> list[tuple[int, int]]:
        """Returns offset and bytes of the frames of rows."""
        return list(zip(offsets[rows].tolist(), (lengths[rows].astype(np.int64) + 8).tolist(), strict=True))

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
            if _is_most(rows, group):
                page = memoryview(self._file.read_at(base, group.blob_used))
            images = []
            for at, length in zip(offsets[rows].tolist(), lengths[rows].tolist(), strict=True):
                frame = self._file.read_at(at, length + 8) if page is None else page[at - base : at - base + length + 8]
                images.append(memoryview(frame)[8:] if _is_frame(frame, length) else None)
        except OSError as error:
            images = [None] * len(rows)
            problem = f"blob page {group.blob}: {error.strerror}"
        return Picked(rows, numbers, images, problem)

    def index_rows(self, lengths: np.ndarray | None = None) -> Iterator[list[tuple[int, ...]]]:
        """Yields for each row group the rows that table INDEXES must have.

        Args:
            lengths: (N,) int, bytes of every image, where frames were compared with them; without it pages are read.
        """
        for group in self._groups:
            labels, _, raw_lengths = self._fields(group)
            sizes = np.diff(self._blobs(group)[1]) if lengths is None else lengths[group.start : group.end] + 8
            yield list(group.index_rows(sizes, raw_lengths, labels))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_most(rows: np.ndarray, group: RowGroup) -> bool:
    """Returns whether rows are so many of their group that its page is read whole for them."""
    return 4 * len(rows) > group.end - group.start


def _is_frame(frame: bytes | memoryview, length: int) -> bool:
    """Returns whether a frame holds an image of so many bytes."""
    return len(frame) == length + 8 and int.from_bytes(frame[:8], "little") == length

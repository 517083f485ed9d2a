"""Where the images of shards come from: the sources, at random places, or what `route` carried along (a spill).

Both forms give the same bytes. A spill is, for each partition, one file beside its routed table that holds the encoded
images of its rows one behind the other, in the order of the rows, which is by shard and row. So the source is read from
front to back, and a shard reads one stretch of each spill.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from faceshards.errors import BuildError, SourceError
from faceshards.files import replacing
from faceshards.reading import open_file
from faceshards.storage.location import Location, StoredPath
from pipelines.sources.base import OpenFiles, Place, SourceFile
from pipelines.sources.registry import read_images

_BLOCK = 512  # images read at once, in order of their place in the source
_STRETCH = 24 << 20  # bytes of a source, about, that are read at once from front to back
_HELD = 64 << 20  # bytes that a shard holds of all spills together, and the least that it reads of one
_LEAST = 64 << 10
SPILL = ".images"
"""Ending of the file that has the images of a partition, beside what `route` wrote of its rows."""

_PLACE = ("key", "offset", "header", "bytes", "parts")


class Origin(Protocol):
    """Where the images of shards come from; picklable."""

    names: list[str]
    """Of the sources, by their place in the build's list."""

    def images(self, table: pa.Table) -> Iterator[bytes]:
        """Yields the images of a shard's rows in order, each compared with its sha256.

        Raises:
            FaceshardsError: one is not what was signed; names file and record.
        """


class Sources:
    """The files of a build, as where its images come from.

    Args:
        files: the build's files.
    """

    def __init__(self, files: list[SourceFile]) -> None:
        self.files, self.names = files, [file.name for file in files]

    def images(self, table: pa.Table) -> Iterator[bytes]:
        """Yields the images of a table's rows in order, ROUTED_SCHEMA; each block of them is read in order of place.

        Raises:
            SourceError: an image is not what was signed.
        """
        with OpenFiles() as opened:
            for start in range(0, len(table), _BLOCK):
                yield from self._block(table.slice(start, _BLOCK).combine_chunks(), opened)

    def in_order(self, table: pa.Table) -> Iterator[bytes]:
        """Yields the images of rows of one file that are in its order, ROUTED_SCHEMA; it is read in large stretches.

        Raises:
            SourceError: an image is not what was signed.
        """
        offset, size = (table[name].to_numpy() for name in ("offset", "bytes"))
        # In a folder every image is at byte 0 of its own file.
        reached = np.maximum(offset - offset[:1], np.cumsum(size) - size) // _STRETCH
        edges = [0, *(np.flatnonzero(np.diff(reached)) + 1).tolist(), len(table)]
        with OpenFiles() as opened:
            for low, high in pairwise(edges):
                if low < high:
                    yield from self._block(table.slice(low, high - low).combine_chunks(), opened, in_order=True)

    def _block(self, rows: pa.Table, opened: OpenFiles, in_order: bool = False, again: bool = True) -> list[bytes]:
        """Returns the images of some rows, each compared with the sha256 that was signed.

        Args:
            rows: of ROUTED_SCHEMA.
            opened: keeps files open.
            in_order: they are in the order of their places.
            again: what is wrong is read once more; from a store bytes may come changed.
        """
        places = list(map(Place._make, zip(*(rows[name].to_pylist() for name in _PLACE), strict=True)))
        sources, images = rows["source"].to_numpy(), [b""] * len(rows)
        order = np.lexsort((rows["offset"].to_numpy(), sources))
        for group in np.split(order, np.flatnonzero(np.diff(sources[order])) + 1):
            file, at = self.files[sources[group[0]]], group.tolist()
            wanted = [places[i] for i in at]
            for i, image in zip(at, read_images(file, wanted, opened, in_order), strict=True):
                images[i] = image
        if (wrong := _changed(images, rows)) is not None:
            if again:
                with OpenFiles() as anew:
                    return self._block(rows, anew, in_order, again=False)
            path, key = self.files[sources[wrong]].path, places[wrong].key
            raise SourceError(
                f"{path}: record {key} changed since it was scanned: its sha256 is another; --restart scans it anew"
            )
        return images


def _changed(images: Iterable[bytes], rows: pa.Table) -> int | None:
    """Returns the first of some rows whose image is not the one that was signed; None if all are."""
    signed = rows["sha256"].to_numpy(zero_copy_only=False)
    found = (hashlib.sha256(image).digest() != digest for image, digest in zip(images, signed, strict=True))
    return next((row for row, wrong in enumerate(found) if wrong), None)


class Kept:
    """What was kept of the images of a partition when it was scanned, as where they come from.

    Args:
        path: what keep() wrote.
        records: the partition's record table.
        sid: of its first row.
    """

    def __init__(self, path: Location, records: pa.Table, sid: int) -> None:
        sizes = records["bytes"].to_numpy() * (records["reason"].to_numpy() == 0)
        self._path, self._starts, self._sid = path, np.cumsum(sizes) - sizes, sid

    def in_order(self, table: pa.Table) -> Iterator[bytes]:
        """Yields the images of rows that are in the order of their sids, ROUTED_SCHEMA.

        Raises:
            BuildError: an image is not what was signed.
        """
        starts = self._starts[table["sid"].to_numpy() - self._sid]
        with open_file(self._path) as file:
            for low in range(0, len(table), _BLOCK):
                rows = table.slice(low, _BLOCK)
                places = zip(starts[low : low + _BLOCK].tolist(), rows["bytes"].to_pylist(), strict=True)
                images = [file.read_at(start, size) for start, size in places]
                if (wrong := _changed(images, rows)) is not None:
                    raise _damaged(self._path, rows["key"][wrong].as_py())
                yield from images


def keep(images: Sequence[np.ndarray], path: Location) -> None:
    """Writes the sound images of a partition one behind the other, whole or not at all: for Kept.

    Args:
        images: (bytes,) uint8 each, in the order of the rows.
        path: file or object to write.
    """
    pieces = [image.data for image in images]
    if isinstance(path, StoredPath):
        path.write_bytes(b"".join(pieces))
        return
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.writelines(pieces)


def _damaged(path: Location, key: str) -> BuildError:
    return BuildError(
        f"{path}: damaged: the image of record {key} is not the one that was read from the source; remove "
        "this file and run the same command to go on"
    )


def spill(rows: pa.Table, origin: Sources | Kept, path: Location) -> None:
    """Writes the images of a partition's rows one behind the other, whole or not at all.

    Args:
        rows: of one file, in the order in which they are to lie; ROUTED_SCHEMA.
        origin: where they come from; it is read from front to back.
        path: file or object to write.

    Raises:
        SourceError: an image is not what was signed.
    """
    order = np.argsort(rows["sid"].to_numpy(), kind="stable")
    ends = np.cumsum(rows["bytes"].to_numpy())
    # As much as the partition's bytes, which signing held, too; so it is written in one piece.
    images = memoryview(bytearray(int(ends[-1]) if len(ends) else 0))
    for end, image in zip(ends[order].tolist(), origin.in_order(rows.take(pa.array(order))), strict=True):
        images[end - len(image) : end] = image
    if isinstance(path, StoredPath):
        path.write_bytes(images)
        return
    with replacing(path) as temporary:
        temporary.write_bytes(images)


class Stretch(NamedTuple):
    """The rows of a shard in what `route` wrote of a partition."""

    routed: Path
    table: pa.Table  # of the whole partition; a view of the file, which is mapped as long as it is used
    low: int
    high: int


def stretches(shard: int, routed: Iterable[Path]) -> Iterator[Stretch]:
    """Yields where the rows of a shard are, for every partition that has some.

    Args:
        shard: its number.
        routed: what `route` wrote, for every partition.
    """
    for path in routed:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
            if not len(table):
                continue
            low, high = np.searchsorted(table["shard"].chunk(0).to_numpy(), (shard, shard + 1)).tolist()
            if low < high:
                yield Stretch(path, table, low, high)


class Spilled:
    """What `route` carried along, as where a build's images come from.

    Args:
        names: of the sources.
        routed: what `route` wrote, for every partition, or copies of a shard's stretches; the images are beside it.
    """

    def __init__(self, names: list[str], routed: Sequence[Path]) -> None:
        self.names, self.routed = names, routed

    def images(self, table: pa.Table) -> Iterator[bytes]:
        """Yields the images of a shard's rows in order, ROUTED_SCHEMA; each spill is read from its first on.

        Raises:
            BuildError: an image is not what was signed.
        """
        found = list(stretches(table["shard"][0].as_py(), self.routed))
        block = max(_LEAST, _HELD // len(found))
        owner, readers = np.zeros(len(table), np.int32), []
        for number, (path, rows, low, high) in enumerate(found):
            owner[rows["row"].to_numpy()[low:high]] = number
            sizes = rows["bytes"].to_numpy()
            start = int(sizes[:low].sum())
            readers.append(_Spill(path.with_suffix(SPILL), start, start + int(sizes[low:high].sum()), block))
        sizes = table["bytes"].to_numpy()
        for start in range(0, len(table), _BLOCK):
            at = slice(start, start + _BLOCK)
            images = [readers[i].take(size) for i, size in zip(owner[at].tolist(), sizes[at].tolist(), strict=True)]
            rows = table.slice(start, _BLOCK)
            if (wrong := _changed(images, rows)) is not None:
                raise _damaged(readers[owner[start + wrong]].path, rows["key"][wrong].as_py())
            yield from images


class _Spill:
    """A stretch of a spill, read from front to back in blocks; open only meanwhile, since there are many.

    Args:
        path: of the spill.
        start, stop: first byte of the stretch and its end.
        block: bytes that are read at once.
    """

    def __init__(self, path: Path, start: int, stop: int, block: int) -> None:
        self.path, self._at, self._stop, self._block = path, start, stop, block
        self._data, self._from = b"", start

    def take(self, size: int) -> bytes:
        """Returns the next bytes; fewer if the file is too short."""
        begin = self._at - self._from
        if begin + size > len(self._data):
            with open_file(self.path) as file:
                self._data = file.read_at(self._at, min(max(self._block, size), self._stop - self._at))
            self._from, begin = self._at, 0
        self._at += size
        return self._data[begin : begin + size]

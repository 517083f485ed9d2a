"""Images of a dataset by their rows, read in order of their places and compared with the manifest."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from faceshards.dataset.manifest import Manifest
from faceshards.errors import ShardError
from faceshards.formats.mindrecord.reader import Shard
from faceshards.reading import each, open_file
from faceshards.storage.location import Location

BLOCK = 32 << 20
"""Bytes of images held at a time."""


def check_image(path: Location, row: int, image: bytes | memoryview, sha256: bytes) -> None:
    """Compares an image read from a shard with its checksum in `images`.

    Raises:
        ShardError: it is another's; names file and row.
    """
    if hashlib.sha256(image).digest() != sha256:
        raise ShardError(path, f"row {row}: the image's sha256 is not the manifest's")


def frame_offsets(manifest: Manifest, number: int, sizes: np.ndarray) -> np.ndarray:
    """Returns where the frame of each row of a shard begins in its file, (n,) int64.

    Args:
        manifest: the dataset.
        number: of the shard.
        sizes: (n,) bytes of its images, in order of the rows.

    Raises:
        ShardError: the shard is not as the manifest says.
    """
    with _shard(_paths(manifest)[number], sizes) as shard:
        return shard.frame_offsets(sizes)


def images_of(manifest: Manifest, rows: Sequence[Mapping[str, Any]]) -> list[bytes]:
    """Returns the images of a few rows, in their order, each compared with its sha256; no others are read.

    Args:
        manifest: the dataset.
        rows: of `images`: at least shard, row, sha256.

    Raises:
        ShardError: a shard cannot be read or is not as the manifest says, or an image is not the manifest's.
    """
    paths, images = _paths(manifest), [b""] * len(rows)
    of: dict[int, list[int]] = defaultdict(list)  # by shards, places in `rows` in order of those in the shard
    for i in sorted(range(len(rows)), key=lambda i: rows[i]["row"]):
        of[rows[i]["shard"]].append(i)

    def read(number: int) -> None:
        sizes = manifest.table("images", ["row", "bytes"], shard=number).sort_by("row")["bytes"].to_numpy()
        with _shard(paths[number], sizes) as shard:
            found = shard.images(np.array([rows[i]["row"] for i in of[number]]), sizes)
        for i, image in zip(of[number], found, strict=True):
            check_image(paths[number], rows[i]["row"], image, rows[i]["sha256"])
            images[i] = image

    each(read, of)
    return images


def _shard(path: Location, sizes: np.ndarray) -> Shard:
    """Returns a shard, open; ShardError if it has not as many rows as the manifest has sizes."""
    shard = Shard(path)
    if len(shard) != len(sizes):
        shard.close()
        raise ShardError(path, f"{len(shard)} rows, the manifest has {len(sizes)}")
    return shard


def _paths(manifest: Manifest) -> dict[int, Location]:
    """Returns where each shard lies, by its number."""
    shards = manifest.table("shards", ["shard", "file"])
    files = zip(shards["shard"].to_pylist(), shards["file"].to_pylist(), strict=True)
    return {number: manifest.shard_path(file) for number, file in files}


def blocks(manifest: Manifest, rows: pa.Table) -> Iterator[tuple[pa.Table, list[bytes]]]:
    """Yields rows, some at a time, with their images in the same order, each compared with its sha256.

    Args:
        manifest: the dataset.
        rows: of `images`: at least shard, row, bytes, sha256; and `offset`, what `frame_offsets` says of each.

    Raises:
        ShardError: a shard cannot be read, or an image is not the manifest's.
    """
    paths = _paths(manifest)
    block = (np.cumsum(rows["bytes"].to_numpy()) // BLOCK).tolist() if len(rows) else []
    edges = [0, *(i for i in range(1, len(block)) if block[i] != block[i - 1]), len(block)]
    for first, stop in pairwise(edges):
        some = rows.slice(first, stop - first)
        yield some, _read(paths, some)


def _read(paths: dict[int, Location], rows: pa.Table) -> list[bytes]:
    """Returns the images of rows, read in order of their places on disk."""
    shards, offsets = rows["shard"].to_numpy(), rows["offset"].to_numpy()
    at, sizes, hashes = rows["row"].to_pylist(), rows["bytes"].to_pylist(), rows["sha256"].to_pylist()
    images = [b""] * len(rows)
    order = np.lexsort((offsets, shards))
    for group in np.split(order, np.flatnonzero(np.diff(shards[order])) + 1):
        path = paths[int(shards[group[0]])]
        with closing(_File(path)) as file:
            file.ahead([(int(offsets[i]), sizes[i]) for i in group.tolist()])
            for i in group.tolist():
                images[i] = file.frame(int(offsets[i]), sizes[i])
                check_image(path, at[i], images[i], hashes[i])
    return images


class _File:
    """A shard's file, open for reading at known places."""

    def __init__(self, path: Location) -> None:
        try:
            self._file = open_file(path)
        except OSError as error:
            raise ShardError(path, f"cannot be opened: {error.strerror}") from None

    def ahead(self, frames: Sequence[tuple[int, int]]) -> None:
        """Has frames of an object fetched in few requests, offset and bytes of their images each, ascending."""
        self._file.read_ahead([(offset, size + 8) for offset, size in frames])

    def frame(self, offset: int, size: int) -> bytes:
        """Returns the image of a frame: u64 LE length, then as many bytes."""
        return self._file.read_at(offset, size + 8)[8:]

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

"""Images to embed: of a published dataset, a verification set, a .rec, a folder or files, a block at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds

from evaluation.image_files import LISTS, find_image_files
from faceshards.checksums import file_digest
from faceshards.dataset.manifest import Manifest
from faceshards.dataset.shard_images import check_image
from faceshards.errors import SourceError
from faceshards.formats.mindrecord.reader import Shard
from faceshards.formats.verification_bin import printable, read_bin
from faceshards.reading import brought
from faceshards.storage.location import Location, StoredPath
from pipelines.sources.base import Partition
from pipelines.sources.find import cut, find_files
from pipelines.sources.leftovers import is_image
from pipelines.sources.registry import doubt_of, scan

log = logging.getLogger(__name__)

ROWS = 8192  # images of a block of a dataset or set
BYTES = 64 << 20  # of a block of a .rec or a folder: about as many faces


@dataclass(frozen=True)
class Images:
    """A block of images; the lists have an entry per image.

    Args:
        sids: (n,) int64; in a dataset its sample ids, elsewhere an image's place in the order of the source.
        keys: what the source calls it: the key in the .idx, the path below the folder, the place in the set.
        labels: identity as the source says it; None in a verification set, or where it could not be read.
        images: encoded; empty where there is none.
        causes: why there is none; "" for the others.
    """

    sids: np.ndarray
    keys: Sequence[str | None]
    labels: Sequence[str | None]
    images: Sequence[bytes | memoryview | np.ndarray]
    causes: Sequence[str]


@dataclass(frozen=True)
class ImageSource:
    """Where images come from.

    Args:
        identity: plain JSON values that change whenever the images do.
        blocks: one function per block, which reads it; it takes the sid of the block's first image, which only
            sources without sids of their own need.
        total: images, 0 if that is not known before they are read.
    """

    identity: dict[str, Any]
    blocks: Sequence[Callable[[int], Images]]
    total: int


def open_source(paths: Sequence[Location], work: Path) -> ImageSource:
    """Returns the images at a path, or in files.

    Args:
        paths: a published dataset, a .bin, a .rec or .tar, a folder with such files or a folder an identity; or,
            without identities, what find_image_files() takes. The former, a folder an identity apart, may be addresses.
        work: a folder for tables that the blocks need.

    Raises:
        FaceshardsError: nothing there, or nothing that can be read.
    """
    path = paths[0]
    if len(paths) == 1 and ((path / "dataset.json").is_file() or path.name == "dataset.json"):
        return _dataset(Manifest(path))
    if len(paths) == 1 and path.suffix == ".bin":
        return _set(path, work)
    here = [path for path in paths if isinstance(path, Path)]
    if here == [*paths] and (files := find_image_files(here)):
        parts, identity = files.cut(work, BYTES)
        return ImageSource(identity, [_block(part, "") for part in parts], len(files.names))
    if stored := [path for path in paths if isinstance(path, StoredPath)]:
        name = stored[0].name
        if len(paths) > 1 or is_image(name) or name.lower().endswith(LISTS):
            raise SourceError(f"{stored[0]}: in a bucket; pictures, and lists of them, are read from a disk only")
    return _found(path, work)


def _found(path: Location, work: Path) -> ImageSource:
    """Returns the images that a build would find at a path."""
    try:
        files, warnings = find_files(path)
    except SourceError as error:
        if path.is_file() and path.suffix != ".rec":
            raise SourceError(
                f"{error}; nor is it a .bin, a picture (.jpg, .jpeg, .png) or a list (.txt, .lst)"
            ) from None
        raise
    parts, more = cut(files, work, BYTES)
    for warning in (*warnings, *more):
        log.warning("%s", warning)
    if any(doubt_of(part) for part in parts if part.start == 0):
        log.warning("%s: its folders may be no people; the column label has their names all the same", path)
    if len(files) > 1:
        log.warning("%s: %d files: an identity is a label and the file that its key begins with", path, len(files))
    # A listing is in the digest by its names and their order; an .idx by its keys.
    tables = sorted({part.table for part in parts if part.table})
    digests = [file_digest(Path(table))[1] for table in tables]
    identity = {"files": [[printable(file.name), file.bytes, file.mtime_ns] for file in files], "tables": digests}
    # Every .rec has a record 1: of several, the file's name is part of the key.
    names = [f"{printable(file.name)}/" if len(files) > 1 else "" for file in files]
    return ImageSource(identity, [_block(part, names[part.source]) for part in parts], 0)


def _dataset(data: Manifest) -> ImageSource:
    """Returns the images of a published dataset, in the order of its shards."""
    shards = data.table("shards", ["shard", "file", "rows"]).sort_by("shard").to_pylist()

    def read(shard: dict[str, Any], start: int) -> Images:
        where = (ds.field("row") >= start) & (ds.field("row") < start + ROWS)
        columns = ["row", "sid", "key", "label_original", "sha256"]
        rows = data.table("images", columns, where, shard["shard"]).sort_by("row")
        with Shard(data.shard_path(shard["file"])) as file:
            images = [file.image(row) for row in rows["row"].to_pylist()]
        for row, image, sha256 in zip(rows["row"].to_pylist(), images, rows["sha256"].to_pylist(), strict=True):
            check_image(file.path, row, image, sha256)
        keys, labels = (rows[name].to_pylist() for name in ("key", "label_original"))
        return Images(rows["sid"].to_numpy(), keys, labels, images, [""] * len(images))

    starts = [(shard, start) for shard in shards for start in range(0, shard["rows"], ROWS)]
    blocks = [lambda _, shard=shard, start=start: read(shard, start) for shard, start in starts]
    return ImageSource({"dataset": data.fingerprint}, blocks, data.totals["kept"])  # type: ignore[arg-type]


def _set(path: Location, work: Path) -> ImageSource:
    """Returns the images of a verification set: 2k and 2k + 1 are pair k."""
    path = brought(path, work)
    images = read_bin(path).images

    def read(start: int) -> Images:
        part = images[start : start + ROWS]
        places = np.arange(start, start + len(part))
        return Images(places, [str(place) for place in places], [None] * len(part), part, [""] * len(part))

    blocks = [lambda _, start=start: read(start) for start in range(0, len(images), ROWS)]
    return ImageSource({"set": file_digest(path)[1]}, blocks, len(images))  # type: ignore[arg-type]


def _block(part: Partition, prefix: str) -> Callable[[int], Images]:
    """Returns what reads a piece of a .rec or folder: its image records, broken ones with their reason.

    Args:
        part: the piece.
        prefix: of the keys.
    """

    def read(first: int) -> Images:
        found = scan(part)
        causes = [f"{detail}" if detail else "" for detail in found.detail]
        # A label that names no identity does not matter here: the image has an embedding all the same.
        causes = ["" if image is not None else cause for image, cause in zip(found.images, causes, strict=True)]
        keys = [prefix + (str(first + i) if key is None else key) for i, key in enumerate(found.key)]
        images = [b"" if image is None else image for image in found.images]
        sids = np.arange(first, first + len(images))
        return Images(sids, keys, found.label_original, images, causes)

    return read

"""Images to embed: of a published dataset, a verification set, a .rec or an image folder, a block at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds

from faceshards.dataset.manifest import Manifest, check_image
from faceshards.files import file_digest
from faceshards.formats.mindrecord.reader import Shard
from faceshards.formats.verification_bin import printable, read_bin
from pipelines.sources.base import Partition
from pipelines.sources.find import cut, find_files
from pipelines.sources.registry import scan

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


def open_source(path: Path, work: Path) -> ImageSource:
    """Returns the images at a path.

    Args:
        path: a published dataset, a .bin, a .rec, or a folder with a .rec or images.
        work: a folder for tables that the blocks need.

    Raises:
        FaceshardsError: nothing there, or nothing that can be read.
    """
    if (path / "dataset.json").is_file() or path.name == "dataset.json":
        return _dataset(Manifest(path))
    if path.suffix == ".bin":
        return _set(path)
    files, warnings = find_files(path)
    parts, more = cut(files, work, BYTES)
    for warning in (*warnings, *more):
        log.warning("%s", warning)
    # A listing is in the digest by its names and their order; an .idx by its keys.
    tables = sorted({part.table for part in parts if part.table})
    digests = [file_digest(Path(table))[1] for table in tables]
    identity = {"files": [[printable(file.name), file.bytes, file.mtime_ns] for file in files], "tables": digests}
    return ImageSource(identity, [lambda first, part=part: _partition(part, first) for part in parts], 0)  # type: ignore[misc]


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


def _set(path: Path) -> ImageSource:
    """Returns the images of a verification set: 2k and 2k + 1 are pair k."""
    images = read_bin(path).images

    def read(start: int) -> Images:
        part = images[start : start + ROWS]
        places = np.arange(start, start + len(part))
        return Images(places, [str(place) for place in places], [None] * len(part), part, [""] * len(part))

    blocks = [lambda _, start=start: read(start) for start in range(0, len(images), ROWS)]
    return ImageSource({"set": file_digest(path)[1]}, blocks, len(images))  # type: ignore[arg-type]


def _partition(part: Partition, first: int) -> Images:
    """Returns the image records of a piece of a .rec or folder; broken ones with their reason."""
    found = scan(part)
    causes = [f"{detail}" if detail else "" for detail in found.detail]
    # A label that names no identity does not matter here: the image has an embedding all the same.
    causes = ["" if image is not None else cause for image, cause in zip(found.images, causes, strict=True)]
    keys: Iterator[str] = (str(first + i) if key is None else key for i, key in enumerate(found.key))
    images = [b"" if image is None else image for image in found.images]
    sids = np.arange(first, first + len(images))
    return Images(sids, list(keys), found.label_original, images, causes)

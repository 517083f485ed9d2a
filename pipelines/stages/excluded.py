"""The pictures that a set may not have: verification sets (.bin), read and signed like the records of a source, and
looked for in a published dataset by the hashes that its manifest keeps."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from faceshards.dataset.manifest import Manifest
from faceshards.files import file_digest
from faceshards.formats.verification_bin import SetError, read_bin, set_names
from faceshards.progress import Progress
from pipelines.config import BuildConfig
from pipelines.dedupe.overlap import Finder, Pictures, find_overlaps
from pipelines.records import words_of
from pipelines.sources.base import Scanned
from pipelines.stages.signatures import sign

log = logging.getLogger(__name__)

_CHUNK = 1 << 18  # rows of a dataset looked up at a time
_NAMES = ("sid", "label_original", "label")


def sign_sets(paths: Sequence[Path]) -> tuple[Pictures, list[dict[str, Any]]]:
    """Returns the pictures of verification sets, and what tells each set from another: name, pictures, sha256.

    One set is held at a time. Pictures that cannot be decoded are found by their bytes only, with a warning.

    Args:
        paths: .bin files.

    Raises:
        SetError: one is no verification set, is named twice, or has no picture that can be decoded.
    """
    parts, about = [], []
    names = set_names(paths)
    for place, (path, name) in enumerate(zip(paths, names, strict=True)):
        images = read_bin(path).images
        rows = Scanned.of_images([np.frombuffer(image, np.uint8) for image in images])
        column = sign(rows, BuildConfig(image_size=(0, 0)))
        lacking = len(images) - int(column["hashed"].sum())
        if lacking == len(images):
            raise SetError(f"{path}: none of its {lacking} pictures can be decoded: {rows.detail[0]}")
        if lacking:
            log.warning("%s: %d of %d pictures cannot be decoded, only their bytes are", path, lacking, len(images))
        parts.append(
            (
                np.full(len(images), place, np.int32),
                np.arange(len(images), dtype=np.int32),
                column["sha256"].view(np.uint64)[:, :2],
                column["phash"].view(np.uint64),
                column["hashed"],
            )
        )
        about.append({"name": name, "pictures": len(images), "sha256": _digest(path)})
    return Pictures(names, *(np.concatenate(columns) for columns in zip(*parts, strict=True))), about


def _digest(path: Path) -> str:
    """Returns the SHA-256 (hex) of a file."""
    try:
        return file_digest(path)[1]
    except OSError as error:
        raise SetError(f"{path}: {error.strerror}") from None


def published_overlaps(found: Manifest, pictures: Pictures, limit: int, threads: int, progress: Progress) -> pa.Table:
    """Returns the images of a dataset that are one of the pictures: sid, label_original, label, set, picture (its
    number), distance, mirrored, exact; ascending by sid.

    Args:
        found: the dataset; its images are not read, only their hashes.
        pictures: the pictures.
        limit: Hamming bits; below 0 only the same bytes count.
        threads: worker threads.
        progress: advanced by the images looked up.
    """
    finder = Finder(pictures, limit)
    names = np.array(pictures.sets, object)
    parts = []
    for rows in _chunks(found.batches("images", [*_NAMES, "sha256", "phash"])):
        sha, phash = words_of(rows["sha256"])[:, :2], words_of(rows["phash"])
        overlaps = find_overlaps(finder, sha, phash, np.arange(len(rows)), threads)
        columns = {
            "set": pa.array(names[pictures.of_set[overlaps.picture]], pa.string()),
            "picture": pa.array(pictures.number[overlaps.picture]),
            "distance": pa.array(overlaps.distance),
            "mirrored": pa.array(overlaps.mirrored),
            "exact": pa.array(overlaps.exact),
        }
        part = rows.select(_NAMES).take(overlaps.row)
        parts.append(pa.table({**{name: part[name] for name in _NAMES}, **columns}))
        progress.advance(len(rows), len(rows))
    return pa.concat_tables(parts).sort_by("sid")


def _chunks(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Yields the rows of batches, _CHUNK or a little more at a time."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(map(len, held)) >= _CHUNK:
            yield pa.Table.from_batches(held)
            held = []
    if held:
        yield pa.Table.from_batches(held)

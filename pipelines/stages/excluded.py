"""The pictures that a set may not have: verification sets (.bin), read and signed like the records of a source, and
looked for in a published dataset by the hashes that its manifest keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from faceshards.checksums import file_digest
from faceshards.dataset.manifest import Manifest
from faceshards.formats.verification_bin import SetError, read_bin, set_names
from faceshards.progress import Progress
from pipelines.config import BuildConfig
from pipelines.dedupe.overlap import Finder, Pictures, find_overlaps
from pipelines.records import words_of
from pipelines.sources.base import Scanned
from pipelines.stages.signatures import sign

_CHUNK = 1 << 18  # rows of a dataset looked up at a time
_NAMES = ("sid", "label_original", "label")


class SignedSets(NamedTuple):
    """What is known of some verification sets."""

    pictures: Pictures
    about: list[dict[str, Any]]  # what tells each set from another: name, pictures (their number), sha256
    warnings: list[str]  # about pictures that may not be found


def sign_sets(paths: Sequence[Path], image_size: Sequence[int], limit: int) -> SignedSets:
    """Returns what is known of verification sets; one of them is held at a time.

    Args:
        paths: .bin files; none of them, no picture.
        image_size: [height, width] in pixels of the pictures that are to be compared with them; [0, 0] for any.
        limit: Hamming bits of that comparison.

    Raises:
        SetError: one is no verification set, is named twice, or has no picture that can be decoded.
    """
    nothing = np.zeros(0, np.int32), np.zeros(0, np.int32), *(np.zeros((0, n), np.uint64) for n in (2, 4))
    parts, about, warnings = [(*nothing, np.zeros(0, bool))], [], []
    if paths and limit < 0:
        warnings.append("of the sets kept out only the same bytes are found, as no distance is allowed")
    names = set_names(paths)
    for place, (path, name) in enumerate(zip(paths, names, strict=True)):
        images = read_bin(path).images
        rows = Scanned.of_images([np.frombuffer(image, np.uint8) for image in images])
        column = sign(rows, BuildConfig(image_size=(0, 0)))
        lacking = len(images) - int(column["hashed"].sum())
        if lacking == len(images):
            raise SetError(f"{path}: none of its {lacking} pictures can be decoded: {rows.detail[0]}")
        if lacking:
            warnings.append(
                f"{name}: {lacking} of {len(images)} pictures cannot be decoded, only their bytes are found"
            )
        size = np.stack([column["height"], column["width"]], axis=1)[column["hashed"]]  # (E, 2)
        other = size[(size != image_size).any(axis=1)]
        if any(image_size) and len(other):
            given, wanted = (f"{height} x {width}" for height, width in (other[0], image_size))
            warnings.append(
                f"{name}: {len(other)} of {len(images)} pictures are not of {wanted} pixels (the first is of {given}): "
                "what shows more or less of a face than they do is not found"
            )
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
    pictures = Pictures(names, *(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    return SignedSets(pictures, about, warnings)


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

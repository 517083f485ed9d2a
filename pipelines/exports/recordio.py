"""InsightFace's layout: a header record, images identity by identity, a record for each identity, and `property`.

Record 0 and identity records have two float32 labels: the header one key behind the last image and one behind the last
identity record, an identity record those of its first image and behind its last. Readers select by them
(insightface, recognition/arcface_torch/dataset.py), so they are written only where float32 is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from faceshards.formats.recordio import Writer
from pipelines.exports.base import ExportError, Piece, Sample, Written
from pipelines.exports.cuts import between_identities as bounds
from pipelines.exports.rec_parts import join, part_name, refuse_labels, write_part
from pipelines.records import MAX_LABEL

__all__ = ["BESIDE", "BY_IDENTITY", "FILE_EACH", "IN_PLACE", "NUMBERS", "bounds", "finish", "refuse", "write"]

BY_IDENTITY, NUMBERS, IN_PLACE = True, True, False
FILE_EACH = False
BESIDE = 256  # headers, and lines of .idx and .lst
_HEADER, _IDENTITIES = "header", "identities"


def refuse(images: int, labels: Any) -> None:
    """Refuses labels, and a number of records, that float32 does not say exactly; see Format."""
    refuse_labels(labels)
    if (behind := 1 + images + len(labels)) > MAX_LABEL:
        raise ExportError(
            f"the header record would have to say {behind:,}, and float32 is exact only up to {MAX_LABEL:,}: readers "
            "would lose images; --to im2rec has no such record"
        )


def write(piece: Piece, samples: Iterator[Sample], room: Path, _out: Path) -> dict[str, Any]:
    """Returns the facts of a part; see Format."""
    return write_part(piece, samples, room, 1)


def finish(written: Written) -> list[str]:
    """Makes train.rec, train.idx, train.lst and property; see Format."""
    images = int(written.kept.sum())
    behind = (1 + images, 1 + images + len(written.kept))
    header = _structural(written.parts / _HEADER, 0, np.array([behind]))
    ends = 1 + np.cumsum(written.kept)
    ranges = np.stack([ends - written.kept, ends], 1)
    identities = _structural(written.parts / _IDENTITIES, behind[0], ranges)
    parts = [(written.parts / part_name(i), facts["bytes"]) for i, facts in enumerate(written.facts)]
    join([header, *parts, identities], written.out / "train")
    sizes = {tuple(side) for facts in written.facts for side in facts["sizes"]}
    if len(sizes) > 1:
        return ["the images are of several sizes, so there is no file `property`, which names one"]
    ((height, width),) = sizes
    (written.out / "property").write_text(f"{written.classes},{height},{width}\n", encoding="ascii")
    return []


def _structural(path: Path, first_key: int, ranges: np.ndarray) -> tuple[Path, int]:
    """Returns a part of records without image, and its bytes; it is written, unless it was copied already.

    Args:
        path: of the part, without suffix.
        first_key: of its first record.
        ranges: (n, 2) int, the labels of each record.
    """
    size = 40 * len(ranges)  # header of the part 8 bytes, of the record 24, two labels
    done = path.with_suffix(".done")  # what is missing beside it was copied already
    if not done.exists():
        with Writer(path.with_suffix(".rec")) as rec:
            for key, (first, behind) in enumerate(ranges.tolist(), first_key):
                rec.write(key, [float(first), float(behind)], b"")
        done.touch()
    return path, size

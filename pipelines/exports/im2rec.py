"""im2rec's layout: one .rec with keys from 0 and numbers for labels, in the shuffled order of the shards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.exports.base import Piece, Sample, Written
from pipelines.exports.cuts import within_shards as bounds
from pipelines.exports.rec_parts import join, part_name, write_part
from pipelines.exports.rec_parts import refuse_labels as _refuse_labels

__all__ = ["BESIDE", "BY_IDENTITY", "FILE_EACH", "IN_PLACE", "NUMBERS", "bounds", "finish", "refuse", "write"]

BY_IDENTITY, NUMBERS, IN_PLACE = False, True, False
FILE_EACH = False
BESIDE = 256  # headers, and lines of .idx and .lst


def refuse(_images: int, labels: Any) -> None:
    """Refuses labels that float32 does not tell apart; see Format."""
    _refuse_labels(labels)


def write(piece: Piece, samples: Iterator[Sample], room: Path, _out: Path) -> dict[str, Any]:
    """Returns the facts of a part; see Format."""
    return write_part(piece, samples, room, 0)


def finish(written: Written) -> list[str]:
    """Makes train.rec, train.idx and train.lst; see Format."""
    parts = [(written.parts / part_name(i), facts["bytes"]) for i, facts in enumerate(written.facts)]
    join(parts, written.out / "train")
    return []

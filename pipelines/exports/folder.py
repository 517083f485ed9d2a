"""An image folder: one sub-folder per identity, a file per image under its sid."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipelines.exports.base import Piece, Sample, Written
from pipelines.exports.cuts import within_shards as bounds
from pipelines.exports.images import suffix

__all__ = ["BESIDE", "BY_IDENTITY", "FILE_EACH", "IN_PLACE", "NUMBERS", "bounds", "finish", "refuse", "write"]

BY_IDENTITY, NUMBERS, IN_PLACE = False, False, True
FILE_EACH = True
BESIDE = 4096  # the last block of a file


def refuse(_images: int, _labels: Any) -> None:
    """Refuses nothing: every name can be a folder's; see Format."""


def write(piece: Piece, samples: Iterator[Sample], room: Path, out: Path) -> dict[str, Any]:
    """Returns the bytes of a piece; see Format.

    A file appears under its name by rename: a worker that outlived its export may be writing the same one.
    """
    size = 0
    temporary = room / "image"
    for sample in samples:
        folder = out / str(sample.label)
        with suppress(FileExistsError):
            folder.mkdir()
        temporary.write_bytes(sample.image)
        os.replace(temporary, folder / f"{piece.stem(sample.sid)}{suffix(sample)}")
        size += len(sample.image)
    # Once for all files of a piece: to wait for the disk after each of them would take days.
    os.sync()
    return {"bytes": size}


def finish(_: Written) -> list[str]:
    """Has nothing to do: the files are in their places; see Format."""
    return []

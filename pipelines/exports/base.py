"""What a format is to an export: the order it wants, the labels it can say, and how a piece of it is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from faceshards.dataset.manifest import Manifest
from faceshards.errors import FaceshardsError

ABOUT, IDENTITIES = "export.json", "identities.parquet"
"""What lies beside the images of every export."""


class ExportError(FaceshardsError):
    """A dataset cannot be exported as it was asked for, or the export cannot go on."""


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Args:
        to: a key of EXPORTS.
        labels: ``new`` ones, 0..C-1 as in the dataset, or ``old`` ones, as the source said them.
        shard_bytes: aimed size of a file in bytes where the format has many; 0: one for each shard of the dataset.
    """

    to: str
    labels: str = "new"
    shard_bytes: int = 0


class Sample(NamedTuple):
    """One image on its way."""

    sid: int
    source: str
    key: str
    label: int | str  # as it is written: a number, or the name of a folder
    label_original: str
    sha256: bytes
    image: bytes


@dataclass(frozen=True)
class Piece:
    """What one task writes: a run of images in the order of the export.

    Args:
        number: from 0.
        first: place of its first image in the whole.
        digits: as many as the largest sid has.
        of: number of all pieces.
    """

    number: int
    first: int
    digits: int
    of: int

    def stem(self, sid: int) -> str:
        """Returns the name of an image without its suffix: names sort as sids do."""
        return f"{sid:0{self.digits}d}"


@dataclass(frozen=True)
class Written:
    """What the tasks have left, for `finish`.

    Args:
        parts: folder of what they wrote, each piece under its `part_name`.
        out: folder that is going to be published.
        facts: of each piece, in order: what `write` returned, and its rows.
        kept: (C,) int64 images of each identity.
        classes: a head for these labels has as many: the largest label and one.
    """

    parts: Path
    out: Path
    facts: list[dict[str, Any]]
    kept: np.ndarray
    classes: int


class Format(Protocol):
    """What a format can do: a module with these, and a line in EXPORTS."""

    BY_IDENTITY: bool
    """Images lie identity by identity, not in the order of the shards."""

    NUMBERS: bool
    """Labels have to be numbers; names are for folders."""

    IN_PLACE: bool
    """What a piece leaves in its room is a file of the export already."""

    FILE_EACH: bool
    """Every image is a file of its own: on a disk that is a format, in a bucket a request for each of millions."""

    BESIDE: int
    """Bytes that an image may take on disk besides its own."""

    def refuse(self, images: int, labels: np.ndarray | Sequence[str]) -> None:
        """Refuses what the format cannot say.

        Args:
            images: how many there are.
            labels: (C,) as they are written: int64, or names.

        Raises:
            ExportError: says what does not fit, and what to do.
        """

    def bounds(self, manifest: Manifest, request: Request, step: int) -> np.ndarray:
        """Returns where each piece begins, and the end: (P + 1,) int64 places, ascending.

        Args:
            manifest: the dataset.
            request: what is asked for.
            step: aimed bytes of a piece where the format does not care.
        """

    def write(self, piece: Piece, samples: Iterator[Sample], room: Path, out: Path) -> dict[str, Any]:
        """Returns facts of a piece (plain JSON values) once it is on disk.

        Args:
            piece: which.
            samples: its images, in order.
            room: an empty folder, on the disk of `out`; what is left there moves to the parts, or to `out`.
            out: folder that is going to be published.
        """

    def finish(self, written: Written) -> list[str]:
        """Returns warnings after making the whole of the parts; may be killed and called again."""

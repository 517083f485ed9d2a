"""Pictures that are too small, or too long for their width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from faceshards.settings import check_settings, within
from pipelines.filters.base import Image, Verdict, above, below


@dataclass(frozen=True)
class Size:
    """Drops by the header's height and width; of use where image_size is [0, 0], as else all have one size.

    Args:
        min_side: least pixels of the shorter side.
        max_aspect: largest ratio of the longer side to the shorter one.
    """

    min_side: int = within(40, 0, 65535)
    max_aspect: float = within(2.0, 1, 65535)

    REASONS: ClassVar[tuple[str, ...]] = ("small", "narrow")

    def __post_init__(self) -> None:
        check_settings(self)

    def check(self, image: Image) -> Verdict:
        """Returns ``small`` or ``narrow``, the first that holds, or None."""
        side = min(image.height, image.width)
        aspect = max(image.height, image.width) / max(side, 1)
        image.measure("side", side)
        image.measure("aspect", aspect)
        causes = (
            ("small", below("side", side, self.min_side)),
            ("narrow", above("aspect", aspect, self.max_aspect)),
        )
        return next((cause for cause in causes if cause[1]), None)

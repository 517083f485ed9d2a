"""Pictures without colour, for sets that must have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np

from faceshards.settings import check_settings, within
from pipelines.filters.base import Image, Verdict, below


def mean_chroma(bgr: np.ndarray) -> float:
    """Returns the mean over the pixels of largest less smallest channel, in levels 0..255.

    Args:
        bgr: (height, width, 3) uint8.
    """
    blue, green, red = cv2.split(bgr)
    most, least = cv2.max(cv2.max(blue, green), red), cv2.min(cv2.min(blue, green), red)
    return float(cv2.sumElems(cv2.subtract(most, least))[0]) / most.size


@dataclass(frozen=True)
class Gray:
    """Drops what is gray: stored so, or in three channels that are alike. One tint over all (sepia) counts as colour.

    Args:
        min_chroma: least mean chroma, 0..255; the colours are decoded, except of files that have one channel.
    """

    min_chroma: float = within(4.0, 0, 255)

    REASONS: ClassVar[tuple[str, ...]] = ("gray",)

    def __post_init__(self) -> None:
        check_settings(self)

    def check(self, image: Image) -> Verdict:
        """Returns ``gray``, or None."""
        chroma = image.measure("chroma", 0.0 if image.header.channels in (1, 2) else mean_chroma(image.bgr))
        detail = below("chroma", chroma, self.min_chroma)
        return ("gray", detail) if detail else None

"""Pictures that are too dark, too bright, or too flat to show a face."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np

from faceshards.errors import ConfigError
from faceshards.settings import check_settings, within
from pipelines.filters.base import Image, Verdict, above, below


def tones(gray: np.ndarray) -> tuple[float, int]:
    """Returns the mean gray level, and the gray levels between the quantiles 5 % and 95 %.

    A quantile is the lowest level that so large a share of the pixels does not exceed.

    Args:
        gray: (height, width) uint8.
    """
    counts = cv2.calcHist([gray], [0], None, [256], [0, 256]).ravel()
    reached = counts.cumsum(dtype=np.int64) * 20  # twentieths of the pixels, so that the shares are exact
    low, high = reached.searchsorted(gray.size), reached.searchsorted(19 * gray.size)
    return float(cv2.sumElems(gray)[0]) / gray.size, int(high - low)


@dataclass(frozen=True)
class Exposure:
    """Drops what is nearly black, nearly white, or nearly of one tone.

    Args:
        min_mean: least mean gray level, 0..255.
        max_mean: largest mean gray level.
        min_spread: least number of gray levels between the quantiles 5 % and 95 %.
    """

    min_mean: float = within(12.0, 0, 255)
    max_mean: float = within(240.0, 0, 255)
    min_spread: float = within(20.0, 0, 255)

    REASONS: ClassVar[tuple[str, ...]] = ("dark", "bright", "flat")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.min_mean > self.max_mean:
            raise ConfigError(f"min_mean: {self.min_mean:g} is above max_mean {self.max_mean:g}")

    def check(self, image: Image) -> Verdict:
        """Returns ``dark``, ``bright`` or ``flat``, the first that holds, or None."""
        mean, spread = tones(image.gray)
        image.measure("mean", mean)
        image.measure("spread", spread)
        causes = (
            ("dark", below("mean", mean, self.min_mean)),
            ("bright", above("mean", mean, self.max_mean)),
            ("flat", below("spread", spread, self.min_spread)),
        )
        return next((cause for cause in causes if cause[1]), None)

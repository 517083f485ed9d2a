"""Blurred pictures, by the variance of the Laplacian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np

from faceshards.settings import check_settings, within
from pipelines.filters.base import Image, Verdict, below


def laplacian_variance(gray: np.ndarray) -> float:
    """Returns the variance of the Laplacian of a gray image, in squared gray levels.

    The sums are of integers, and exact: the value is the same on every machine.

    Args:
        gray: (height, width) uint8.

    Source: Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy, ICPR 2000 (LAPV).
    """
    edges = cv2.Laplacian(gray, cv2.CV_16S)  # four neighbours less four times the pixel
    mean = cv2.sumElems(edges)[0] / edges.size
    return max(cv2.norm(edges, cv2.NORM_L2SQR) / edges.size - mean * mean, 0.0)


@dataclass(frozen=True)
class Blur:
    """Drops what has no fine detail at half its size.

    Args:
        min_variance: least variance of the Laplacian of the half-size gray image; 0 drops nothing.
    """

    min_variance: float = within(30.0, 0, 1e6)

    REASONS: ClassVar[tuple[str, ...]] = ("blurred",)

    def __post_init__(self) -> None:
        check_settings(self)

    def check(self, image: Image) -> Verdict:
        """Returns ``blurred``, or None."""
        variance = image.measure("variance", laplacian_variance(image.gray))
        detail = below("variance", variance, self.min_variance)
        return ("blurred", detail) if detail else None

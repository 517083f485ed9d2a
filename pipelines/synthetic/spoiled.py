"""Photographs that are spoiled as photographs are: out of focus, badly exposed, without colour, too small, too long."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

SPOILED = ("blurred", "dark", "bright", "flat", "gray", "small", "narrow")
"""What is planted; each by the name of the drop reason that it should get."""


def spoil(rng: np.random.Generator, picture: NDArray[np.uint8], kind: str) -> NDArray[np.uint8]:
    """Returns a spoiled copy of a picture of 112 x 112; the copy of ``small`` and ``narrow`` has another size.

    Args:
        rng: decides how much.
        picture: (112, 112, 3) uint8.
        kind: of SPOILED.
    """
    match kind:
        case "blurred":
            return np.asarray(cv2.GaussianBlur(picture, (0, 0), rng.uniform(7, 9)), np.uint8)
        case "dark":
            return _toned(picture, rng.uniform(0.03, 0.07), 0)
        case "bright":
            return _toned(picture, rng.uniform(0.03, 0.07), rng.uniform(244, 248))
        case "flat":
            return _toned(picture, rng.uniform(0.03, 0.07), rng.uniform(60, 180))
        case "gray":
            return np.repeat(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)[..., None], 3, axis=2).astype(np.uint8)
        case "small":
            side = int(rng.integers(20, 37))
            return np.asarray(cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA), np.uint8)
    return np.asarray(cv2.resize(picture, (int(rng.integers(48, 53)), 112), interpolation=cv2.INTER_AREA), np.uint8)


def _toned(picture: NDArray[np.uint8], gain: float, offset: float) -> NDArray[np.uint8]:
    return np.clip(picture * gain + offset, 0, 255).astype(np.uint8)

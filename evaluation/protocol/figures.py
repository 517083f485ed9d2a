"""What a figure is: a value with its interval, found by its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Interval = tuple[float, float]
_TAR = "tar@"


@dataclass(frozen=True)
class Figure:
    """One number that was measured.

    Args:
        value: None where the pairs cannot show it.
        interval: of 95 %, by resampled pairs; None if they were not resampled, or there is no value.
    """

    value: float | None
    interval: Interval | None = None


def tar_name(far: float) -> str:
    """Returns the name of the true accept rate at a false accept rate: ``tar@0.001``."""
    return f"{_TAR}{far}"


def by_far(figures: Mapping[str, Figure]) -> dict[float, Figure]:
    """Returns those figures that are true accept rates, by their false accept rate."""
    return {float(name.removeprefix(_TAR)): figure for name, figure in figures.items() if name.startswith(_TAR)}


def middle(drawn: np.ndarray) -> Interval | None:
    """Returns the middle 95 % of a figure's resamples (R,), None if none of them has it (NaN)."""
    known = drawn[np.isfinite(drawn)]
    if not len(known):
        return None
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)

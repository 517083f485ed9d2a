"""The margins by name."""

from __future__ import annotations

from collections.abc import Callable

from training.config import TrainConfig
from training.head.margins.base import Margin
from training.head.margins.combined import CombinedMargin

MARGINS: dict[str, Callable[[TrainConfig], Margin]] = {
    "combined": CombinedMargin.from_config,
}


def make_margin(config: TrainConfig) -> Margin:
    """Returns the margin of a run; three numbers in its settings are those of the combined one.

    Raises:
        ConfigError: a number outside its range.
    """
    return MARGINS["combined"](config)

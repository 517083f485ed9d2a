"""The margins by name."""

from __future__ import annotations

from collections.abc import Callable

from faceshards.errors import ConfigError
from faceshards.extensions import blamed, family, lacking
from training.config import TrainConfig
from training.head.margins.adaface import AdaFaceMargin
from training.head.margins.base import Margin
from training.head.margins.combined import CombinedMargin
from training.head.margins.subcenter import SubCenterMargin

_OWN: dict[str, Callable[[TrainConfig], Margin]] = {
    "combined": CombinedMargin.from_config,
    "adaface": AdaFaceMargin.from_config,
    "subcenter": SubCenterMargin.from_config,
}
MARGINS = family("margins", _OWN, Callable)


def make_margin(config: TrainConfig) -> Margin:
    """Returns the margin of a run's settings.

    Raises:
        ConfigError: no such margin (the message lists the known ones), or a number it has not, or outside its range.
    """
    name, _ = config.margin_numbers()
    if name not in MARGINS:
        raise ConfigError(
            f"margin: '{name}' is not one of {', '.join(MARGINS)}, nor [m1, m2, m3] of combined, where [1, 0.5, 0] is "
            f"ArcFace and [1, 0, 0.4] CosFace"
        )
    with blamed(f"margin '{name}'"):
        found = MARGINS[name](config)
        if lacks := lacking(found, Margin):
            raise TypeError(f"{type(found).__name__} has no {', '.join(lacks)}")
    return found

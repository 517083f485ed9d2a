"""Sub-centre ArcFace: several centres a class, so that wrongly labelled pictures gather around one of their own."""

from __future__ import annotations

import dataclasses

from faceshards.errors import ConfigError
from training.head.margins.combined import CombinedMargin


@dataclasses.dataclass(frozen=True)
class SubCenterMargin(CombinedMargin):
    """The combined margin, where the cosine of a class is the largest of those of its k centres.

    Args:
        k: centres of each class, 2 to 64; the others are the combined margin's.

    Raises:
        ConfigError: a number outside its range.

    Source: Deng et al., Sub-center ArcFace, ECCV 2020, section 3.2, where k is 3.
    """

    k: float = 3  # a whole number; settings have floats

    @property
    def centers(self) -> int:
        """k."""
        return int(self.k)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k not in range(2, 65):
            raise ConfigError(f"margin: k = {self.k!r} is not a whole number from 2 to 64")

"""The combined angular margin: SphereFace, ArcFace and CosFace are its settings."""

from __future__ import annotations

import dataclasses
import math

import mindspore as ms
from mindspore import nn, ops

from training.config import TrainConfig
from training.head.margins.base import check_numbers, from_settings


@dataclasses.dataclass(frozen=True)
class CombinedMargin:
    """What is done to the cosines before the softmax: the target's becomes cos(m1 * theta + m2) - m3, all times scale.

    Args:
        m1: factor of the angle (SphereFace), at least 1; 1 leaves the angle alone.
        m2: added to the angle in radians (ArcFace), 0 to pi.
        m3: taken from the cosine (CosFace), 0 to 2.
        scale: s, the factor of all logits, above 0.
        interclass_threshold: negatives whose cosine is above it get logit 0 and no gradient; 0 turns the filter off.

    Raises:
        ConfigError: a number outside its range.

    Source: ArcFace, arXiv 1801.07698, equation 4; CosFace, arXiv 1801.09414, equation 4; interclass filtering as in
    Partial FC, arXiv 2203.15565.
    """

    m1: float = 1.0
    m2: float = 0.5
    m3: float = 0.0
    scale: float = 64.0
    interclass_threshold: float = 0.0

    @property
    def centers(self) -> int:
        """One centre a class."""
        return 1

    def __post_init__(self) -> None:
        check_numbers(self, {"m1": (1.0, 10.0), "m2": (0.0, math.pi), "m3": (0.0, 2.0)})

    @classmethod
    def from_config(cls, config: TrainConfig) -> CombinedMargin:
        """Returns the margin of a run's settings.

        Raises:
            ConfigError: a number outside its range.
        """
        return from_settings(cls, config)

    def target_cosine(self) -> TargetCosine:
        """Returns the cell that gives the target's cosine after the margin."""
        return TargetCosine(self)


class TargetCosine(nn.Cell):
    """The margin at the target: cos(m1 * theta + m2) - m3 of cosines t = cos(theta), of any shape.

    With m1 = 1 it is t cos(m2) - sqrt(1 - t^2) sin(m2) - m3, which needs no arccosine; with another m1 the angle is
    computed. As in the reference the value is taken as it comes also where m1 * theta + m2 exceeds pi, and the gradient
    passes as if there were no margin.
    """

    def __init__(self, margin: CombinedMargin) -> None:
        super().__init__()
        self.m1 = float(margin.m1)
        self.m2 = float(margin.m2)
        self.m3 = float(margin.m3)
        self.cos_m2 = math.cos(margin.m2)
        self.sin_m2 = math.sin(margin.m2)

    def construct(self, t: ms.Tensor, lengths: ms.Tensor) -> tuple[ms.Tensor, None]:
        """Returns the target's cosine after the margin, in t's shape, and no slope; the lengths make no difference."""
        if self.m1 != 1.0:
            return ops.cos(ops.acos(t) * self.m1 + self.m2) - self.m3, None
        if self.m2 == 0.0:
            return t - self.m3, None
        return t * self.cos_m2 - ops.sqrt(1.0 - t * t) * self.sin_m2 - self.m3, None

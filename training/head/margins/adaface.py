"""AdaFace: a margin that follows the embedding's length, which tells a good picture from a poor one."""

from __future__ import annotations

import dataclasses
import math

import mindspore as ms
from mindspore import nn, ops

from training.config import TrainConfig
from training.head.margins.base import check_numbers, from_settings

# The authors' figures.
FIRST_MEAN, FIRST_DEVIATION = 20.0, 100.0
MOMENTUM = 0.01  # of the batch in the running mean and deviation
SHORTEST, LONGEST = 1e-3, 100.0  # that a length counts as
EPSILON = 1e-3  # added to the deviation; and angles and cosines keep this distance from the ends of their ranges


@dataclasses.dataclass(frozen=True)
class AdaFaceMargin:
    """The target's cosine becomes cos(theta - m z) - (m + m z), where z in [-1, 1] says how long the embedding is.

    z = h (length - mean) / (deviation + 1e-3), limited to [-1, 1], with the running mean and deviation of lengths. A
    short embedding (z = -1) gets ArcFace's margin m, one of the mean length CosFace's, a long one (z = 1) is moved by
    -m and pays 2 m.

    Args:
        m: the margin, in radians and in cosines, 0 to pi / 2.
        h: how much of the lengths' distribution z spreads over, 0.001 to 10.
        scale: s, the factor of all logits, above 0.
        interclass_threshold: negatives whose cosine is above it get logit 0 and no gradient; 0 turns the filter off.

    Raises:
        ConfigError: a number outside its range.

    Source: AdaFace, arXiv 2204.00964, section 3.3; what the equations leave open is as in the authors' code.
    """

    m: float = 0.4
    h: float = 0.333
    scale: float = 64.0
    interclass_threshold: float = 0.0

    @property
    def centers(self) -> int:
        """One centre a class."""
        return 1

    def __post_init__(self) -> None:
        check_numbers(self, {"m": (0.0, math.pi / 2), "h": (1e-3, 10.0)})

    @classmethod
    def from_config(cls, config: TrainConfig) -> AdaFaceMargin:
        """Returns the margin of a run's settings.

        Raises:
            ConfigError: a number outside its range.
        """
        return from_settings(cls, config)

    def target_cosine(self) -> AdaptiveTarget:
        """Returns the cell that gives the target's cosine after the margin, with the statistics of a run's begin."""
        return AdaptiveTarget(self)


class AdaptiveTarget(nn.Cell):
    """The margin at the target, and its slope: other than the combined margin's, this one is part of the gradient.

    Attributes:
        mean: () float32, running mean of the lengths; counts the batch before it is used.
        deviation: () float32, likewise of their deviation (with n - 1).
    """

    def __init__(self, margin: AdaFaceMargin) -> None:
        super().__init__(auto_prefix=False)
        self.m = float(margin.m)
        self.h = float(margin.h)
        self.mean = _statistic("mean", FIRST_MEAN)
        self.deviation = _statistic("deviation", FIRST_DEVIATION)

    def construct(self, t: ms.Tensor, lengths: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        """Returns the target's cosine after the margin and its slope, in t's shape; moves the statistics."""
        lengths = ops.clamp(lengths, SHORTEST, LONGEST)  # (G, 1)
        mean = lengths.mean()
        squares = ops.square(lengths - mean).sum()
        deviation = ops.sqrt(squares / max(lengths.shape[0] - 1, 1))
        mean = MOMENTUM * mean + (1 - MOMENTUM) * self.mean
        deviation = MOMENTUM * deviation + (1 - MOMENTUM) * self.deviation
        ops.assign(self.mean, mean)
        ops.assign(self.deviation, deviation)

        z = ops.clamp((lengths - mean) / (deviation + EPSILON) * self.h, -1.0, 1.0)  # (G, 1)
        cosine = ops.clamp(t, -1.0 + EPSILON, 1.0 - EPSILON)
        wanted = ops.acos(cosine) - self.m * z
        angle = ops.clamp(wanted, EPSILON, math.pi - EPSILON)
        inside = ops.logical_and(ops.equal(cosine, t), ops.equal(angle, wanted)).astype(ms.float32)
        slope = ops.sin(angle) / ops.sqrt(1.0 - cosine * cosine) * inside  # d cos(theta - m z) / d cos(theta)
        return ops.cos(angle) - (self.m + self.m * z), slope


def _statistic(name: str, value: float) -> ms.Parameter:
    return ms.Parameter(ms.Tensor(value, ms.float32), name=f"margin.{name}", requires_grad=False)

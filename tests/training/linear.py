"""A backbone of one matrix, whose embeddings are exact in float16: what mixed precision does can be worked out."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import nn

from training.config import TrainConfig
from training.device.distributed import Group
from training.device.prepare import prepare
from training.head.margins.base import Margin
from training.head.margins.combined import CombinedMargin
from training.head.partial_fc import Head
from training.step import Step

INPUTS, DIM, SCALE = 8, 16, 16.0
COSFACE = CombinedMargin(1, 0, 0.2, SCALE)


class Linear(nn.Cell):
    """(B, INPUTS) to (B, DIM)."""

    def __init__(self, weight: np.ndarray) -> None:
        super().__init__()
        self.dense = nn.Dense(INPUTS, DIM, weight_init=ms.Tensor(weight), has_bias=False)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Returns the embeddings."""
        return self.dense(x)


def integers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Returns float32 whole numbers from -3 to 3: sums of INPUTS of their products are exact in float16."""
    return rng.integers(-3, 4, shape).astype(np.float32)


def linear_step(
    weight: np.ndarray, group: Group, margin: Margin = COSFACE, **settings: object
) -> tuple[Step, ms.Parameter]:
    """Returns a step over Linear and its weight (DIM, INPUTS), unless told with CosFace 0.2 and the scale SCALE.

    After one step from nothing, the optimiser's momentum is the gradient.
    """
    config = TrainConfig(**{"clip": 0, "weight_decay": 0, "amp": "O2", **settings})  # type: ignore[arg-type]
    backbone = Linear(weight)
    prepare(backbone, config, group)
    return Step(config, backbone, Head(group, margin), group), backbone.dense.weight


def momentum(step: Step) -> np.ndarray:
    """Returns the optimiser's momentum of the weight, (DIM, INPUTS)."""
    return next(found.asnumpy() for found in step.slots.values() if found.shape == (DIM, INPUTS))

"""One optimiser step on a rank: backbone, head, gradients, and the backbone's update, in three graphs."""

from __future__ import annotations

import math
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.experimental import optim

from training.config import TrainConfig
from training.device.distributed import Group
from training.head.partial_fc import Head

CHANCE = 1 << 32  # in a generator's seed, where the sampler has its rank

# Of a loss scale found as it goes: arcface_torch's GradScaler begins there, and doubles after so many good steps.
FIRST_SCALE, GROWTH_STEPS = 2.0**16, 100
LARGEST_SCALE = 2.0**24  # what a user may set; gradients of nothing but zeros would double it for ever


class LossScale:
    """The factor by which the backbone's gradients are larger while they are float16, so that the small ones stay.

    A scale that is found as it goes halves when gradients came out too large for float16, and doubles after
    GROWTH_STEPS steps without. In float32 it is 1.

    Args:
        config: the run's settings.

    Attributes:
        value: in force.
        good: steps since it last changed.
    """

    def __init__(self, config: TrainConfig) -> None:
        mixed = config.amp != "O0"
        self.dynamic = mixed and config.loss_scale == 0
        self.value = FIRST_SCALE if self.dynamic else config.loss_scale if mixed else 1.0
        self.good = 0

    @property
    def state(self) -> tuple[float, int]:
        """What a checkpoint keeps of it."""
        return self.value, self.good

    def shrink(self) -> bool:
        """Halves the scale and returns True; False where it is fixed, or already 1."""
        if not self.dynamic or self.value <= 1:
            return False
        self.value, self.good = self.value / 2, 0
        return True

    def keep(self) -> None:
        """Counts a step whose gradients were finite; where the scale is fixed nothing is counted."""
        if not self.dynamic:
            return
        self.good += 1
        if self.good >= GROWTH_STEPS:
            self.value, self.good = min(self.value * 2, LARGEST_SCALE), 0


class Gradients(nn.Cell):
    """Forward and backward pass of one part of a batch.

    The head computes its own gradients; the backbone's are those of sum(embeddings * d_embeddings).

    Args:
        backbone: (b, 3, H, W) float32 -> (b, D).
        head: of the ranks' sampled class centres.
    """

    def __init__(self, backbone: nn.Cell, head: Head) -> None:
        super().__init__(auto_prefix=False)  # the backbone's parameters keep their names
        self.backbone = backbone
        self.head = head
        self.weights = ms.ParameterTuple(backbone.trainable_params())
        self.differentiate = ops.value_and_grad(self.forward, None, self.weights, has_aux=True)

    def forward(
        self, images: ms.Tensor, rows: ms.Tensor, targets: ms.Tensor, scale: ms.Tensor, *chance: ms.Tensor
    ) -> tuple[ms.Tensor, ms.Tensor, ms.Tensor]:
        """Returns the scalar whose gradient is wanted, the loss, and the gradient of the rows."""
        embeddings = self.backbone(images, *chance).astype(ms.float32)  # (b, D)
        loss, d_embeddings, d_rows = self.head(ops.stop_gradient(embeddings), rows, targets)
        inner = (embeddings * ops.stop_gradient(d_embeddings)).sum() * scale
        return inner, ops.stop_gradient(loss), ops.stop_gradient(d_rows)

    @ms.jit
    def construct(
        self, images: ms.Tensor, rows: ms.Tensor, targets: ms.Tensor, scale: ms.Tensor, *chance: ms.Tensor
    ) -> tuple[ms.Tensor, ms.Tensor, tuple[ms.Tensor, ...]]:
        """Returns loss (), gradient of the rows (S, D), and the weights' gradients times `scale`."""
        (_, loss, d_rows), gradients = self.differentiate(images, rows, targets, scale, *chance)
        return loss, d_rows, gradients


class Reduce(nn.Cell):
    """Sums the gradients over the ranks in one message, and measures them.

    Args:
        group: the ranks.
        weights: the parameters, in the order of the gradients.
    """

    def __init__(self, group: Group, weights: ms.ParameterTuple) -> None:
        super().__init__()
        self.group = group
        self.shapes = [weight.shape for weight in weights]
        self.sizes = [math.prod(shape) for shape in self.shapes]

    @ms.jit
    def construct(self, gradients: tuple[ms.Tensor, ...], factor: ms.Tensor) -> tuple[tuple[ms.Tensor, ...], ms.Tensor]:
        """Returns the summed gradients times `factor`, and their L2 norm ()."""
        if self.group.world > 1:
            flat = self.group.sum(ops.concat([gradient.astype(ms.float32).reshape(-1) for gradient in gradients]))
            gradients, start = (), 0
            for i in range(len(self.sizes)):
                gradients = (*gradients, flat[start : start + self.sizes[i]].reshape(self.shapes[i]))
                start += self.sizes[i]
        summed: Any = ()
        squares = ms.Tensor(0.0, ms.float32)
        for gradient in gradients:
            gradient = gradient.astype(ms.float32) * factor
            # Not of all in one vector: MindSpore cuts a long one by how long it took lately (measured: 2.10, from
            # somewhere above 50,000 on), and the sum's last bit is then another one in the same step of another run.
            squares = squares + ops.square(gradient).sum()
            summed = (*summed, gradient)
        return summed, ops.sqrt(squares)


class Update(nn.Cell):
    """Clips the gradients and moves the weights.

    SGD is torch's: v <- momentum * v + (g + weight_decay * w), w <- w - lr * v; AdamW is arXiv 1711.05101's with bias
    correction. As in the reference, weight decay applies to every weight, batch norm's too.

    Args:
        config: the run's settings.
        weights: the parameters.
    """

    def __init__(self, config: TrainConfig, weights: ms.ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.clip = config.clip
        if config.optimizer == "sgd":
            self.optimizer = optim.SGD(
                list(weights), lr=0.0, momentum=config.momentum, weight_decay=config.weight_decay
            )
        else:
            self.optimizer = optim.AdamW(list(weights), lr=0.0, weight_decay=config.weight_decay)
        self.rate = self.optimizer.param_groups[0]["lr"]

    @ms.jit
    def construct(self, gradients: tuple[ms.Tensor, ...], norm: ms.Tensor, lr: ms.Tensor) -> ms.Tensor:
        """Moves the weights; returns the norm. Gradients longer than `clip` are shortened to it, as torch does."""
        if self.clip > 0:
            factor = ops.minimum(self.clip / (norm + 1e-6), ms.Tensor(1.0, ms.float32))
            shortened: Any = ()
            for gradient in gradients:
                shortened = (*shortened, gradient * factor)
            gradients = shortened
        ops.assign(self.rate, lr)
        self.optimizer(gradients)
        return norm


class Step:
    """An optimiser step: call it with a batch and the sampled rows.

    Args:
        config: the run's settings.
        backbone: the embedding network.
        head: over the ranks' sampled rows.
        group: the ranks.
    """

    def __init__(self, config: TrainConfig, backbone: nn.Cell, head: Head, group: Group) -> None:
        self._config, self._parts, self._rank, self._world = config, config.accumulate, group.rank, group.world
        self._draw = getattr(backbone, "draw", None)  # of a backbone that leaves something to chance in training
        self._gradients = Gradients(backbone, head)
        self._gradients.set_train()
        self._reduce = Reduce(group, self._gradients.weights)
        self._update = Update(config, self._gradients.weights)
        self.scale = LossScale(config)

    @property
    def slots(self) -> dict[str, ms.Parameter]:
        """What optimiser and margin keep from step to step, by name, without the weights; the same on every rank."""
        optimizer = self._update.optimizer
        weights = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        kept = [parameter for parameter in optimizer.get_parameters() if id(parameter) not in weights]
        return {parameter.name: parameter for parameter in (*kept, *self._gradients.head.get_parameters())}

    def __call__(
        self, images: np.ndarray, rows: np.ndarray | ms.Tensor, targets: np.ndarray, lr: float, number: int
    ) -> tuple[float, float, ms.Tensor | None]:
        """Returns loss, norm of the backbone's gradient, and the rows' gradient (S, D).

        Args:
            images: (B, 3, H, W) float32, this rank's.
            rows: (S, D) float32, this rank's sampled class centres.
            targets: (accumulate, G / accumulate) int32, place of each label in rows or -1, part by part.
            lr: learning rate.
            number: of the step; with the seed it decides what the backbone leaves to chance.

        The rows' gradient is None, and nothing was moved, if the loss scale proved too large for this step and is
        smaller now: on every rank, since the norm is that of the sum over all ranks. A loss or norm that is not finite
        is returned as it is, and nothing was moved.
        """
        part = len(images) // self._parts
        scale = ms.Tensor(self.scale.value, ms.float32)
        rows = rows if isinstance(rows, ms.Tensor) else ms.Tensor.from_numpy(rows)
        chance = self._chance(len(images), number)
        for i in range(self._parts):
            batch, *drawn = (ms.Tensor.from_numpy(array[i * part : (i + 1) * part]) for array in (images, *chance))
            loss_i, d_rows_i, gradients_i = self._gradients(batch, rows, ms.Tensor(targets[i]), scale, *drawn)
            if i == 0:
                loss, d_rows, gradients = loss_i, d_rows_i, gradients_i
            else:
                loss, d_rows = loss + loss_i, d_rows + d_rows_i
                gradients = tuple(a + b for a, b in zip(gradients, gradients_i, strict=True))
        # A plain tuple would be a constant of the graph, which is then compiled at every step.
        factor = ms.Tensor(1 / (self.scale.value * self._parts), ms.float32)
        gradients, norm = self._reduce(ms.mutable(gradients), factor)
        length, value = float(norm), float(loss) / self._parts
        if math.isfinite(value) and not math.isfinite(length) and self.scale.shrink():
            return value, length, None
        if math.isfinite(value) and math.isfinite(length):
            self._update(ms.mutable(gradients), norm, ms.Tensor(lr, ms.float32))
            self.scale.keep()
        return value, length, d_rows / self._parts if self._parts > 1 else d_rows

    def _chance(self, images: int, number: int) -> tuple[np.ndarray, ...]:
        """Returns the backbone's draws for this rank's images of a step, arrays (B, ...): its part of all ranks' draws,
        so that the number of ranks makes no difference."""
        if self._draw is None:
            return ()
        rng = np.random.default_rng([self._config.seed, number, CHANCE])
        drawn = self._draw(rng, self._world * images, self._config.drop_path, self._config.mask_ratio)
        return tuple(array[self._rank * images : (self._rank + 1) * images] for array in drawn)

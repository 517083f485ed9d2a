"""What the convolutional backbones share: seeded first values, and convolutions as PyTorch counts them."""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import nn

Rng = np.random.Generator


def conv(
    rng: Rng,
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    std: float = 0.0,
) -> nn.Conv2d:
    """Returns a convolution without bias, its weights drawn from `rng`.

    Args:
        rng: of the backbone; layers draw in the order in which they are made.
        inputs: channels.
        outputs: channels.
        kernel: side in pixels.
        stride: in pixels.
        padding: pixels on each side.
        groups: of channels; `inputs` makes it depthwise.
        std: of the normal distribution; 0 takes He's with fan-out (arXiv 1502.01852, equation 14).
    """
    shape = (outputs, inputs // groups, kernel, kernel)
    std = std or math.sqrt(2 / (outputs * kernel * kernel / groups))
    weight = ms.Tensor(rng.normal(0, std, shape).astype(np.float32))
    return nn.Conv2d(
        inputs,
        outputs,
        kernel,
        stride=stride,
        pad_mode="pad",
        padding=padding,
        group=groups,
        has_bias=False,
        weight_init=weight,
    )


def dense(rng: Rng, inputs: int, outputs: int, bias: bool = True, std: float = 0.0) -> nn.Dense:
    """Returns a linear layer; without `std`, weights and bias are uniform within 1 / sqrt(inputs), as PyTorch's."""
    bound = 1 / math.sqrt(inputs)
    shape = (outputs, inputs)
    weight = rng.normal(0, std, shape) if std else rng.uniform(-bound, bound, shape)
    first = rng.uniform(-bound, bound, outputs) if bias and not std else np.zeros(outputs)
    return nn.Dense(
        inputs,
        outputs,
        has_bias=bias,
        weight_init=ms.Tensor(weight.astype(np.float32)),
        bias_init=ms.Tensor(first.astype(np.float32)),
    )


def batch_norm(channels: int, eps: float = 1e-5) -> nn.BatchNorm2d:
    """Returns a batch norm of images, with PyTorch's momentum of 0.1."""
    return nn.BatchNorm2d(channels, eps=eps, momentum=0.9)


def recompute_activations(cell: nn.Cell) -> None:
    """Has a cell's activations computed again in the backward pass, those of its batch norms apart.

    A batch norm that runs twice in a step also moves its mean and variance twice (measured: MindSpore 2.10 on CPU).
    """
    cell.recompute()
    for _, layer in cell.cells_and_names():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.bn_train.recompute(False)

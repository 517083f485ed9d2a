"""Parameters and multiply-adds of a backbone."""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import nn

from training.backbones.vit import TOKENS, Attention
from training.device.cpu import BandedConv2d, UnfoldedConv2d

# 10^9 multiply-adds for one image of 112 x 112, as arcface_torch's pages and configurations give them.
PUBLISHED = {"mbf": 0.45, "r50": 6.3, "r100": 12.1, "r200": 23.5, "vit_t": 1.5, "vit_s": 5.7, "vit_b": 11.4,
             "vit_l": 25.3}  # fmt: skip


def count_parameters(cell: nn.Cell) -> int:
    """Returns how many numbers are trained or, like a batch norm's gain that is fixed at 1, belong to the weights.

    Moving means and variances do not count, as in PyTorch's parameters().
    """
    return sum(math.prod(p.shape) for p in cell.get_parameters() if not p.name.endswith(("mean", "variance")))


def count_flops(cell: nn.Cell, size: int = 112) -> int:
    """Returns the multiply-adds of one image's forward pass: convolutions, linear layers and attention products.

    Norms, activations, biases and sums are not counted, as is usual.

    Args:
        cell: a backbone, as it is or adapted to a CPU.
        size: side of the image in pixels.
    """
    total = 0
    inner = {
        id(layer.layer) for _, layer in cell.cells_and_names() if isinstance(layer, (UnfoldedConv2d, BandedConv2d))
    }

    def adapted(layer: UnfoldedConv2d | BandedConv2d, _: object, out: ms.Tensor) -> None:
        convolution(layer.layer, _, out)

    def convolution(layer: nn.Conv2d, _: object, out: ms.Tensor) -> None:
        nonlocal total
        total += math.prod(out.shape[1:]) * math.prod(layer.weight.shape[1:])

    def linear(layer: nn.Dense, _: object, out: ms.Tensor) -> None:
        nonlocal total
        total += math.prod(out.shape[1:]) * layer.weight.shape[1]

    def attention(layer: Attention, _: object, out: ms.Tensor) -> None:
        nonlocal total
        total += 2 * TOKENS * TOKENS * out.shape[-1]

    kinds = (
        (nn.Conv2d, convolution),
        (UnfoldedConv2d, adapted),
        (BandedConv2d, adapted),
        (nn.Dense, linear),
        (Attention, attention),
    )
    hooks = []
    for _, layer in cell.cells_and_names():
        for kind, count in kinds:
            if isinstance(layer, kind) and id(layer) not in inner:
                hooks.append(layer.register_forward_hook(count))
    cell.set_train(False)
    cell(ms.Tensor(np.zeros((1, 3, size, size), np.float32)))
    for hook in hooks:
        hook.remove()
    return total

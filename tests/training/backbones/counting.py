"""Multiply-adds of a backbone, counted while an image goes through it."""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import nn

from training.backbones.vit import TOKENS, Attention
from training.device.cpu import BandedConv2d, UnfoldedConv2d


def of_convolution(layer, out):
    return math.prod(out[1:]) * math.prod(layer.weight.shape[1:])


def of_adapted(layer, out):
    return of_convolution(layer.layer, out)


def of_linear(layer, out):
    return math.prod(out[1:]) * layer.weight.shape[1]


def of_attention(_, out):
    """The two products of tokens by tokens; its linear layers count by themselves."""
    return 2 * TOKENS * TOKENS * out[-1]


COUNTS = {
    nn.Conv2d: of_convolution,
    UnfoldedConv2d: of_adapted,
    BandedConv2d: of_adapted,
    nn.Dense: of_linear,
    Attention: of_attention,
}


def count_flops(cell, size=112):
    """Returns the multiply-adds of one image's forward pass: convolutions, linear layers and attention products.

    Norms, activations, biases and sums are not counted, as is usual. The backbone may be adapted to a CPU: the
    convolution within an adapted one is never called, so nothing counts twice.
    """
    total = 0

    def hook(layer, _, out):
        nonlocal total
        total += COUNTS[type(layer)](layer, out.shape)

    hooks = [layer.register_forward_hook(hook) for _, layer in cell.cells_and_names() if type(layer) in COUNTS]
    cell.set_train(False)
    cell(ms.Tensor(np.zeros((1, 3, size, size), np.float32)))
    for entry in hooks:
        entry.remove()
    return total

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

STEPS = ("kernel_size", "stride", "padding", "dilation", "group")


def structure(cell):
    """Returns what decides the shapes within a cell: kinds of cells, shapes of parameters, steps of convolutions."""
    return tuple(
        (type(found), *(p.shape for p in found._params.values()), *(getattr(found, name, None) for name in STEPS))
        for _, found in cell.cells_and_names()
    )


def count_flops(cell, size=112):
    """Returns the multiply-adds of one image's forward pass: convolutions, linear layers and attention products.

    Norms, activations, biases and sums are not counted, as is usual. The backbone may be adapted to a CPU: the
    convolution within an adapted one is never called, so nothing counts twice. A cell that is made like one before it,
    for an input of the same shape, is not computed again, but counts again: a deep backbone costs what a shallow one
    does. The cells are for nothing else after it.
    """
    total = 0
    known = {}  # output and multiply-adds, by how a cell is made and the shape of its input

    def counted(layer):
        construct, made = layer.construct, structure(layer)

        def run(x):
            nonlocal total
            if (made, x.shape) not in known:
                before, out = total, construct(x)
                count = COUNTS.get(type(layer), lambda layer, out: 0)
                known[made, x.shape] = out, total - before + count(layer, out.shape)
                total = before
            out, more = known[made, x.shape]
            total += more
            return out

        return run

    cell.set_train(False)
    for _, layer in cell.cells_and_names():
        layer.construct = counted(layer)
    cell(ms.Tensor(np.zeros((1, 3, size, size), np.float32)))
    return total

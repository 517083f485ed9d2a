"""Layers for a CPU are the layers that they stand for."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops

from training.backbones.registry import create_backbone
from training.device.cpu import BandedConv2d, SteadyPReLU, UnfoldedConv2d, adapt_to_cpu

pytestmark = pytest.mark.numeric


def slopes(cell, x):
    """Returns output, gradient of the input and of the weights, for a fixed direction."""
    weights = ms.ParameterTuple(cell.trainable_params())
    direction = ms.Tensor(np.random.default_rng(5).normal(size=cell(x).shape).astype(np.float32))
    d_x, d_weights = ops.grad(lambda x: (cell(x) * direction).sum(), 0, weights)(x)
    return [part.asnumpy() for part in (cell(x), d_x, *d_weights)]


LAYERS = pytest.mark.parametrize(
    ("layer", "adapted", "shape"),
    [
        (lambda: nn.Conv2d(6, 8, 3, 2, pad_mode="pad", padding=1, has_bias=False), UnfoldedConv2d, (3, 6, 14, 14)),
        (lambda: nn.Conv2d(6, 8, 3, pad_mode="pad", padding=1, has_bias=True), UnfoldedConv2d, (3, 6, 9, 9)),
        (lambda: nn.Conv2d(6, 6, 3, pad_mode="pad", padding=1, group=6), BandedConv2d, (3, 6, 10, 10)),
        (lambda: nn.Conv2d(6, 6, 3, 2, pad_mode="pad", padding=1, group=6), BandedConv2d, (3, 6, 14, 9)),
        (lambda: nn.Conv2d(6, 6, 7, pad_mode="pad", group=6), BandedConv2d, (3, 6, 7, 7)),
        (lambda: nn.PReLU(6), SteadyPReLU, (3, 6, 5, 5)),
        (lambda: nn.PReLU(6), SteadyPReLU, (3, 6)),
    ],
)


@LAYERS
def test_layers_for_a_cpu_are_the_layers(layer, adapted, shape):
    plain = layer()
    x = ms.Tensor(np.random.default_rng(1).normal(size=shape).astype(np.float32))
    for got, want in zip(slopes(adapted(plain), x), slopes(plain, x), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


@LAYERS
def test_in_float16_they_differ_by_its_rounding(layer, adapted, shape):
    """Of inputs, weights, products and sums: at most a unit in the last place of the largest value for each."""
    plain = layer()
    x = ms.Tensor(np.random.default_rng(1).normal(size=shape).astype(np.float32))
    wanted = slopes(plain, x)
    half = adapted(plain).to_float(ms.float16)
    assert half(x).dtype == ms.float16
    for got, want in zip(slopes(half, x), wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=4 * 2.0**-10 * np.abs(want).max())


def test_the_slopes_gradient_is_the_same_bits_each_time():
    cell = SteadyPReLU(nn.PReLU(32))
    x = ms.Tensor(np.random.default_rng(2).normal(size=(16, 32, 28, 28)).astype(np.float32))
    first = slopes(cell, x)[2]
    for _ in range(5):
        np.testing.assert_array_equal(slopes(cell, x)[2], first)


@pytest.mark.parametrize(
    "options",
    [
        {},  # MindSpore's default, "same"
        {"pad_mode": "pad", "padding": (0, 1, 0, 1)},
        {"pad_mode": "pad", "padding": 2, "dilation": 2},
    ],
)
@pytest.mark.parametrize("group", [1, 6])
def test_a_convolution_that_is_padded_or_spread_otherwise_stays(options, group):
    cell = nn.SequentialCell(nn.Conv2d(6, 6, 3, 2, group=group, **options))
    adapt_to_cpu(cell)
    assert type(cell[0]) is nn.Conv2d


def test_a_second_adaptation_changes_nothing():
    cell = create_backbone("mbf_narrow", 32)
    plain = {type(layer) for _, layer in cell.cells_and_names()}
    adapt_to_cpu(cell)
    once = [(name, type(layer)) for name, layer in cell.cells_and_names()]
    assert {UnfoldedConv2d, BandedConv2d, SteadyPReLU} == {kind for _, kind in once} - plain
    adapt_to_cpu(cell)
    assert [(name, type(layer)) for name, layer in cell.cells_and_names()] == once

"""Backbones: their size, their weights from PyTorch, and their layers on a CPU."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops

from faceshards.errors import ConfigError, WeightsError
from training.backbones.counts import PUBLISHED, count_flops, count_parameters
from training.backbones.registry import BACKBONES, create_backbone
from training.device.cpu import BandedConv2d, SteadyPReLU, UnfoldedConv2d, adapt_to_cpu
from training.device.distributed import Group
from training.head.margins.combined import Margin
from training.head.partial_fc import Head
from training.step import Gradients
from training.weights.assign import from_torch, load, to_torch

pytestmark = pytest.mark.numeric

# Millions, counted in PyTorch; the reference's pages give multiply-adds only (counts.PUBLISHED).
PARAMETERS = {"r18": 24.026, "r34": 34.139, "r50": 43.591, "r100": 65.156, "r200": 118.834, "mbf": 2.060,
              "mbf_narrow": 0.308, "vit_t": 19.138, "vit_s": 76.023, "vit_b": 113.833, "vit_l": 255.684}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["mbf_narrow", *(pytest.param(name, marks=pytest.mark.slow) for name in sorted(BACKBONES) if name != "mbf_narrow")],
)
def test_sizes_are_the_published_ones(name, capsys):
    cell = create_backbone(name)
    parameters = count_parameters(cell) / 1e6
    adapt_to_cpu(cell)
    flops = count_flops(cell) / 1e9
    with capsys.disabled():
        print(f"\n{name}: {parameters:.3f} M parameters ({PARAMETERS[name]} M in PyTorch), "
              f"{flops:.3f} G multiply-adds ({PUBLISHED.get(name, 'not')} published)", end="")  # fmt: skip
    assert parameters == pytest.approx(PARAMETERS[name], abs=6e-4)
    if name in PUBLISHED:
        assert flops == pytest.approx(PUBLISHED[name], rel=0.03)


@pytest.mark.parametrize("name", ["r18", "r50", "mbf", "mbf_narrow", "vit_t"])
def test_weights_of_pytorch_give_its_embeddings(name, capsys):
    torch = pytest.importorskip("torch")
    from tests.training.backbones.torch_backbones import shuffled

    model, cell = shuffled(name), create_backbone(name)
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    load(cell, from_torch({f"module.{key}": value for key, value in state.items()}, cell))
    cell.set_train(False)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 3, 112, 112)).astype(np.float32)
    with torch.no_grad():
        want = model(torch.from_numpy(images)).numpy()
    worst = []
    for adapt in (False, True):
        if adapt:
            adapt_to_cpu(cell)
        got = cell(ms.Tensor(images)).asnumpy()
        worst.append(float(np.abs(got - want).max() / np.abs(want).max()))
    with capsys.disabled():
        print(f"\n{name}: largest difference to PyTorch {worst[0]:.1e}, with layers for a CPU {worst[1]:.1e}", end="")
    assert max(worst) < 1e-5
    back = to_torch(create_backbone(name))
    assert back.keys() == {key for key in state if not key.endswith("num_batches_tracked")}


@pytest.mark.parametrize("name", sorted(set(BACKBONES) - {"r200", "vit_b", "vit_l"}))
def test_pytorch_counts_as_many_parameters(name):
    pytest.importorskip("torch")
    from tests.training.backbones.torch_backbones import create

    assert sum(p.numel() for p in create(name).parameters()) == count_parameters(create_backbone(name))


def test_weights_that_do_not_fit_are_named():
    cell = create_backbone("mbf_narrow", 32)
    state = to_torch(cell)
    first = next(iter(state))
    for change, message in (
        ({key: value for key, value in state.items() if key != first}, f"lacks {first}"),
        ({**state, "extra.weight": np.zeros(1)}, "has unknown extra.weight"),
        ({**state, first: np.zeros((2, 2))}, rf"has {first} \[2, 2\] instead of"),
    ):
        with pytest.raises(WeightsError, match=message) as failure:
            from_torch(change, cell)
        assert "\n" not in str(failure.value)


def test_first_values_depend_on_the_seed_alone():
    one, same, other = (to_torch(create_backbone("mbf_narrow", 32, seed=seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(one[key], same[key]) for key in one)
    assert any(not np.array_equal(one[key], other[key]) for key in one)


def test_an_unknown_backbone_lists_the_known():
    with pytest.raises(ConfigError, match="'r51' is not one of r18, r34, r50, r100"):
        create_backbone("r51")


def slopes(cell, x):
    """Returns output, gradient of the input and of the weights, for a fixed direction."""
    weights = ms.ParameterTuple(cell.trainable_params())
    direction = ms.Tensor(np.random.default_rng(5).normal(size=cell(x).shape).astype(np.float32))
    d_x, d_weights = ops.grad(lambda x: (cell(x) * direction).sum(), 0, weights)(x)
    return [part.asnumpy() for part in (cell(x), d_x, *d_weights)]


@pytest.mark.parametrize(
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
def test_layers_for_a_cpu_are_the_layers(layer, adapted, shape):
    plain = layer()
    x = ms.Tensor(np.random.default_rng(1).normal(size=shape).astype(np.float32))
    for got, want in zip(slopes(adapted(plain), x), slopes(plain, x), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


def test_the_slopes_gradient_is_the_same_bits_each_time():
    cell = SteadyPReLU(nn.PReLU(32))
    x = ms.Tensor(np.random.default_rng(2).normal(size=(16, 32, 28, 28)).astype(np.float32))
    first = slopes(cell, x)[2]
    for _ in range(5):
        np.testing.assert_array_equal(slopes(cell, x)[2], first)


def test_recomputed_activations_change_nothing():
    """Not even the batch norms' moving values, which a second run of theirs would move again."""
    rng = np.random.default_rng(0)
    images, rows = rng.uniform(-1, 1, (4, 3, 112, 112)), rng.normal(size=(6, 32))
    inputs = (ms.Tensor(images.astype(np.float32)), ms.Tensor(rows.astype(np.float32)))
    after = []
    for recompute in (False, True):
        cell = create_backbone("mbf_narrow", 32, recompute)
        first = {p.name: p.asnumpy().copy() for p in cell.get_parameters()}
        step = Gradients(cell, Head(Group(), Margin())).set_train()
        _, _, gradients = step(*inputs, ms.Tensor([0, 1, 2, 3], ms.int32), ms.Tensor(1.0))
        after.append([*(p.asnumpy() for p in cell.get_parameters()), *(part.asnumpy() for part in gradients)])
    for plain, again in zip(*after, strict=True):
        np.testing.assert_allclose(again, plain, rtol=1e-3, atol=1e-5 * np.abs(plain).max())
    moved = {name for (name, value), now in zip(first.items(), after[1], strict=False) if (value != now).any()}
    assert moved
    assert all("moving" in name for name in moved), moved

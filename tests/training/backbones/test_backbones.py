"""Backbones: their size, and their weights from PyTorch."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

from faceshards.errors import ConfigError, WeightsError
from tests.training.backbones.counting import count_flops
from training.backbones.counts import count_parameters
from training.backbones.registry import BACKBONES, create_backbone
from training.device.cpu import adapt_to_cpu
from training.device.distributed import Group
from training.head.margins.combined import CombinedMargin
from training.head.partial_fc import Head
from training.step import Gradients
from training.weights.assign import set_weights, to_torch

pytestmark = pytest.mark.numeric

# Millions, counted in PyTorch; the reference's pages give multiply-adds only.
PARAMETERS = {
    "r18": 24.026,
    "r34": 34.139,
    "r50": 43.591,
    "r100": 65.156,
    "r200": 118.834,
    "mbf": 2.060,
    "mbf_narrow": 0.308,
    "vit_t": 19.138,
    "vit_s": 76.023,
    "vit_b": 113.833,
    "vit_l": 255.684,
}


class Zeros:
    """Draws that cost nothing, for cells whose values do not matter."""

    def normal(self, _mean, _std, shape):
        return np.broadcast_to(0.0, shape)

    uniform = normal


@pytest.mark.parametrize(
    "name",
    ["mbf_narrow", *(pytest.param(name, marks=pytest.mark.slow) for name in sorted(BACKBONES) if name != "mbf_narrow")],
)
def test_sizes_are_the_published_ones(name, capsys, monkeypatch):
    monkeypatch.setattr(np.random, "default_rng", lambda seed: Zeros())
    cell = create_backbone(name)
    parameters = count_parameters(cell) / 1e6
    adapt_to_cpu(cell)
    flops = count_flops(cell) / 1e9
    published = BACKBONES[name].multiply_adds
    with capsys.disabled():
        print(
            f"\n{name}: {parameters:.3f} M parameters ({PARAMETERS[name]} M in PyTorch), "
            f"{flops:.3f} G multiply-adds ({published or 'not'} published)",
            end="",
        )
    assert parameters == pytest.approx(PARAMETERS[name], abs=6e-4)
    if published is not None:
        assert flops == pytest.approx(published, rel=0.03)


@pytest.mark.parametrize("name", ["r18", "r50", "mbf", "mbf_narrow", "vit_t"])
def test_weights_of_pytorch_give_its_embeddings(name, capsys):
    torch = pytest.importorskip("torch")
    from tests.training.backbones.torch_backbones import shuffled

    model, cell = shuffled(name), create_backbone(name)
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    set_weights(cell, {f"module.{key}": value for key, value in state.items()})
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
            set_weights(cell, change)
        assert "\n" not in str(failure.value)


def test_first_values_depend_on_the_seed_alone():
    one, same, other = (to_torch(create_backbone("mbf_narrow", 32, seed=seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(one[key], same[key]) for key in one)
    assert any(not np.array_equal(one[key], other[key]) for key in one)


def test_an_unknown_backbone_lists_the_known():
    with pytest.raises(ConfigError, match="'r51' is not one of r18, r34, r50, r100"):
        create_backbone("r51")


def test_recomputed_activations_change_nothing():
    """Not even the batch norms' moving values, which a second run of theirs would move again."""
    rng = np.random.default_rng(0)
    images, rows = rng.uniform(-1, 1, (4, 3, 112, 112)), rng.normal(size=(6, 32))
    inputs = (ms.Tensor(images.astype(np.float32)), ms.Tensor(rows.astype(np.float32)))
    after = []
    for recompute in (False, True):
        cell = create_backbone("mbf_tiny", 32, recompute)  # a layer of each kind
        first = {p.name: p.asnumpy().copy() for p in cell.get_parameters()}
        step = Gradients(cell, Head(Group(), CombinedMargin())).set_train()
        _, _, gradients = step(*inputs, ms.Tensor([0, 1, 2, 3], ms.int32), ms.Tensor(1.0))
        after.append([*(p.asnumpy() for p in cell.get_parameters()), *(part.asnumpy() for part in gradients)])
    for plain, again in zip(*after, strict=True):
        np.testing.assert_allclose(again, plain, rtol=1e-3, atol=1e-5 * np.abs(plain).max())
    moved = {name for (name, value), now in zip(first.items(), after[1], strict=False) if (value != now).any()}
    assert moved
    assert all("moving" in name for name in moved), moved

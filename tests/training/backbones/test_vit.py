"""What a vision transformer leaves to chance in training: drawn by (seed, step), applied as the reference does."""

from __future__ import annotations

import json
import shutil
from functools import partial

import mindspore as ms
import numpy as np
import pytest
from mindspore import ops
from safetensors.numpy import load_file

from tests.training.runs import refused, trace, train
from training import checkpoint, loop
from training.backbones.registry import BACKBONES
from training.backbones.spec import Spec
from training.backbones.vit import TOKENS, VisionTransformer
from training.config import TrainConfig
from training.device.distributed import Group
from training.head.margins.combined import CombinedMargin
from training.head.partial_fc import Head
from training.step import Step
from training.weights.assign import set_weights

pytestmark = pytest.mark.numeric


@pytest.fixture
def cell():
    return VisionTransformer(16, 3, 4, 32)


def pictures(count):
    return np.random.default_rng(0).uniform(-1, 1, (count, 3, 112, 112)).astype(np.float32)


def test_draws_have_the_probabilities(cell):
    branches, shown = cell.draw(np.random.default_rng(0), 4000, 0.5, 0.1)
    assert (branches.shape, shown.shape) == ((4000, 3, 2), (4000, 129))
    assert (branches[:, 0] == 1).all()
    assert set(np.unique(branches[:, 1])) == {0, np.float32(1 / 0.75)}
    assert set(np.unique(branches[:, 2])) == {0, 2}
    # Five standard errors about the probabilities.
    assert np.abs((branches == 0).mean(axis=(0, 2)) - [0, 0.25, 0.5]).max() < 5 * np.sqrt(0.25 / 8000)
    assert (np.diff(shown, axis=1) > 0).all()
    seen = np.bincount(shown.ravel(), minlength=TOKENS) / 4000
    assert np.abs(seen - 129 / 144).max() < 5 * np.sqrt(0.09 / 4000)


def test_hidden_tokens_are_the_mask_token_and_move_nothing(cell):
    cell.set_train(False)
    branches, shown = cell.draw(np.random.default_rng(0), 2, 0.0, 0.5)
    images = pictures(2)
    hidden = np.setdiff1d(np.arange(TOKENS), shown[0])
    changed = images.copy()
    for token in hidden:
        row, column = divmod(int(token), 12)
        changed[0, :, 9 * row : 9 * row + 9, 9 * column : 9 * column + 9] += 1
    chance = ms.Tensor(branches), ms.Tensor(shown)
    want, got = (cell(ms.Tensor(x), *chance).asnumpy() for x in (images, changed))
    np.testing.assert_array_equal(got, want)
    cell.mask_token.set_data(cell.mask_token + 1)
    assert np.abs(cell(ms.Tensor(images), *chance).asnumpy() - want).min() > 0
    # All tokens shown and all branches taken are the network as it is.
    every = cell.draw(np.random.default_rng(0), 2, 0.0, 0.0)
    np.testing.assert_array_equal(
        cell(ms.Tensor(images), *map(ms.Tensor, every)).asnumpy(), cell(ms.Tensor(images)).asnumpy()
    )


def test_masks_and_gradients_are_those_of_pytorch(cell):
    torch = pytest.importorskip("torch")
    from tests.training.backbones import torch_backbones

    torch.manual_seed(0)
    model = torch_backbones.VisionTransformer(16, 3, 4, 32).eval()
    set_weights(cell, {name: value.numpy() for name, value in model.state_dict().items()})
    cell.set_train(False)
    images, chance = pictures(3), cell.draw(np.random.default_rng(1), 3, 0.5, 0.25)
    want = model(torch.from_numpy(images), *map(torch.from_numpy, (chance[0], chance[1].astype(np.int64))))
    got = cell(ms.Tensor(images), *map(ms.Tensor, chance)).asnumpy()
    np.testing.assert_allclose(got, want.detach().numpy(), rtol=1e-4, atol=1e-6 * np.abs(got).max())
    want.square().sum().backward()
    weights = [cell.mask_token, cell.blocks[2].attn.qkv.weight, cell.patch_embed.proj.weight]
    slopes = ops.grad(lambda *x: cell(*x).square().sum(), None, ms.ParameterTuple(weights))(
        *map(ms.Tensor, (images, *chance))
    )
    theirs = [model.mask_token, model.blocks[2].attn.qkv.weight, model.patch_embed.proj.weight]
    for ours, other in zip(slopes, theirs, strict=True):
        expected = other.grad.numpy()
        np.testing.assert_allclose(ours.asnumpy(), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


class Ranks(Group):
    """A group of which only the numbers are asked."""

    def __init__(self, rank, world):
        self.rank, self.world = rank, world


def test_ranks_have_their_part_of_the_same_draws(cell):
    config = TrainConfig(backbone="vit_t", optimizer="adamw", seed=7)

    def chance(rank, world, number):
        head = Head(Group(), CombinedMargin(1, 0.5, 0, 64))
        return Step(config, cell, head, Ranks(rank, world))._chance(12 // world, number)

    whole, again, other = chance(0, 1, 5), chance(0, 1, 5), chance(0, 1, 6)
    for i in range(2):
        np.testing.assert_array_equal(whole[i], again[i])
        assert not np.array_equal(whole[i], other[i])
        np.testing.assert_array_equal(np.concatenate([chance(rank, 3, 5)[i] for rank in range(3)]), whole[i])


@pytest.mark.slow
def test_from_what_is_on_disk_at_a_step_it_goes_on_bit_for_bit(data, tmp_path, monkeypatch, caplog):
    """With sub-centres, too: one run shows both."""
    monkeypatch.setitem(BACKBONES, "vit_t", Spec(partial(VisionTransformer, 16, 2, 4), "feature.3"))
    settings = {
        "backbone": "vit_t",
        "optimizer": "adamw",
        "accumulate": 2,
        "checkpoint_steps": 5,
        "keep": 9,
        "log_steps": 3,
        "epochs": 1,
        "warmup_epochs": 0,
        "sync_bn": False,
        "drop_path": 0.5,
        "margin": {"name": "subcenter", "k": 2},
    }

    class Copied(loop.RunLog):
        def step(self, step, *values):
            super().step(step, *values)
            if step == 8:
                shutil.copytree(tmp_path / "straight", tmp_path / "run")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "RunLog", Copied)
        straight = train(data.path, tmp_path / "straight", **settings)
    assert straight.exit_code == 0, straight.output
    resumed = train(data.path, tmp_path / "run", "--resume", **settings)
    assert resumed.exit_code == 0, resumed.output
    assert "going on from" in caplog.text
    assert trace(tmp_path / "run") == trace(tmp_path / "straight")
    # 6 is the mean of 4, 5 and 6, though 5 was the checkpoint.
    assert list(trace(tmp_path / "run")) == [3, 6, 9, 12, 15]
    lasts = [checkpoint.known(tmp_path / name / "checkpoints")[-1] for name in ("straight", "run")]
    assert load_file(lasts[0] / "rank-0-of-1.safetensors")["weight"].shape == (12, 2 * 32)  # classes, components
    for name in ("backbone", "optimizer", "rank-0-of-1"):
        one, other = ((last / f"{name}.safetensors").read_bytes() for last in lasts)
        assert one == other
    assert "margin" in refused(train(data.path, tmp_path / "run", "--resume", **{**settings, "margin": [1, 0, 0.4]}))
    assert json.loads((lasts[1] / "checkpoint.json").read_text())["config"]["margin"] == settings["margin"]

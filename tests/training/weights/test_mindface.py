"""Checkpoints of mindface as its train.py saves them: backbone, head and optimiser side by side."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from faceshards.errors import WeightsError
from training.backbones.iresnet import IResNet
from training.backbones.mobilefacenet import Gdc, conv_block, residuals
from training.backbones.registry import BACKBONES, create_backbone
from training.weights.assign import embedding_size, load_weights, to_torch
from training.weights.read import read_weights

pytestmark = pytest.mark.numeric

DIM = 32
HEAD = np.ones((7, DIM), np.float32)


def same(found, wanted):
    return found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in wanted)


class Head(nn.Cell):
    def __init__(self):
        super().__init__()
        self.weight = ms.Parameter(ms.Tensor(HEAD), name="weight")


class Trained(nn.Cell):
    """Backbone and head as mindface's wrapper has them."""

    def __init__(self, backbone, auto_prefix):
        super().__init__(auto_prefix=auto_prefix)
        self._backbone = backbone
        self.fc = Head()


class TheirMobileFaceNet(nn.Cell):
    """Its layers appended to a CellList that has its name already, as mindface's are."""

    def __init__(self, seed):
        super().__init__()
        rng = np.random.default_rng(seed)
        self.layers = nn.CellList()
        self.layers.append(conv_block(rng, 3, 32, 4, 4))
        self.layers.append(conv_block(rng, 32, 64, 3, 2, 1))
        self.layers.extend([conv_block(rng, 64, 128, 3, 2, 1), residuals(rng, 128, 1, 128)])
        self.conv_sep = conv_block(rng, 128, 256, 1)
        self.features = Gdc(rng, 256, 7, DIM)


def save_trained(path, backbone, auto_prefix=True):
    """Saves a backbone with its head and optimiser; returns the names in the file."""
    net = Trained(backbone, auto_prefix)
    wrapper = nn.Cell(auto_prefix=False)
    wrapper.network, wrapper.optimizer = net, nn.Momentum(net.trainable_params(), 0.1, 0.9)
    ms.save_checkpoint(wrapper, str(path))
    return set(ms.load_checkpoint(str(path)))


def test_an_iresnet_of_mindface_as_its_training_saves_it(tmp_path, caplog):
    path = tmp_path / "x.ckpt"
    for auto_prefix, some, head in (
        (True, {"fc.weight", "_backbone.fc.weight", "moments._backbone.fc.weight"}, "fc.weight"),
        (False, {"weight", "fc.weight", "moments.fc.weight"}, "weight"),
    ):
        caplog.clear()
        theirs, ours = (IResNet((1, 1, 1, 1), DIM, seed) for seed in (1, 2))
        wanted = to_torch(theirs)
        assert some <= save_trained(path, theirs, auto_prefix)
        load_weights(path, ours)
        assert same(to_torch(ours), wanted)
        assert caplog.messages == [f"{path}: passed over beside the backbone: {head}"]
        assert embedding_size(read_weights(path), BACKBONES["r18"]) == DIM


def test_a_mobilefacenet_of_mindface_as_its_training_saves_it(tmp_path, caplog):
    """MindSpore's CellList names layers by how they came in, and by whether the cells around give prefixes."""
    path, ours = tmp_path / "x.ckpt", create_backbone("mbf_narrow", DIM, seed=2)
    weights = to_torch(create_backbone("mbf_narrow", DIM, seed=1))
    assert {"fc.weight", "_backbone.layers.0.layers.0.weight"} <= save_trained(path, TheirMobileFaceNet(1))
    load_weights(path, ours)
    assert same(to_torch(ours), weights)
    names = save_trained(path, TheirMobileFaceNet(1), auto_prefix=False)
    assert {"0.layers.0.weight", "0.layers.1.layers.0.weight", "moments.0.layers.0.weight"} <= names
    load_weights(path, ours)
    assert same(to_torch(ours), weights)
    found = ms.load_checkpoint(str(path))
    both = [
        {"name": f"_backbone.{name}", "data": found[name]}
        for name in names
        if "layers." in name.partition("moments")[0]
    ]
    ms.save_checkpoint([*both, {"name": "fc.weight", "data": ms.Tensor(HEAD)}], str(path))
    caplog.clear()
    load_weights(path, ours)
    assert same(to_torch(ours), weights)
    assert caplog.messages == [f"{path}: passed over beside the backbone: fc.weight"]


def test_a_transformer_of_mindface_is_refused_with_the_reason(tmp_path):
    names = ("_backbone.blocks.0.layer1.0.cell.1.qkv.bias", "fc.weight")
    ms.save_checkpoint([{"name": name, "data": ms.Tensor(HEAD)} for name in names], str(tmp_path / "x.ckpt"))
    with pytest.raises(WeightsError, match=r"x\.ckpt: its attention has biases \(mindface's transformers\)"):
        read_weights(tmp_path / "x.ckpt")


def test_a_name_that_a_checkpoint_of_mindspore_has_twice(tmp_path):
    names = ("backbone.conv_sep.layers.2.w", "network.conv_sep.layers.2.a")
    ms.save_checkpoint([{"name": name, "data": ms.Tensor(HEAD)} for name in names], str(tmp_path / "x.ckpt"))
    with pytest.raises(WeightsError, match=r"comes twice, as 'network\.conv.*\.a' and 'backbone\.conv.*\.w'"):
        load_weights(tmp_path / "x.ckpt", create_backbone("mbf_narrow", DIM))

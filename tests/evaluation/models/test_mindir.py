"""MindIR files of others as models."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops

from evaluation.models.load import load_model
from evaluation.models.model import ModelError

pytestmark = pytest.mark.numeric


class Means(nn.Cell):
    """The means of 7 x 7 squares by channel, with what else is wanted."""

    def __init__(self, kind):
        super().__init__()
        self.pool, self.flatten, self.kind = nn.AvgPool2d(16, 16), nn.Flatten(), kind

    def construct(self, images):
        means = self.flatten(self.pool(images))
        if self.kind == "norm":
            return means, ops.norm(means, dim=1, keepdim=True)
        if self.kind == "twice":
            return means, -means
        return means


def exported(path, kind, side=112):
    ms.export(
        Means(kind), ms.Tensor(np.zeros((2, 3, side, side), np.float32)), file_name=str(path), file_format="MINDIR"
    )
    return path


def test_the_embeddings_are_told_from_what_else_it_gives(tmp_path, caplog):
    images = np.random.default_rng(0).uniform(-1, 1, (3, 3, 112, 112)).astype(np.float32)
    wanted = images.reshape(3, 3, 7, 16, 7, 16).mean(axis=(3, 5)).reshape(3, -1)
    np.testing.assert_allclose(load_model(exported(tmp_path / "x.mindir", "norm")).forward(images), wanted, atol=1e-6)
    path = tmp_path / "x.mindir"
    assert caplog.messages == [f"{path}: of its outputs takes output 0 [B, 147], not output 1 [B, 1]"]
    with pytest.raises(ModelError, match=r"y\.mindir: gives .*: more than one of them \[B, D\]"):
        load_model(exported(tmp_path / "y.mindir", "twice"))
    with pytest.raises(
        ModelError, match=r"z\.mindir: takes \[2, 3, 128, 128\] and gives .*, not one \[B, 3, 112, 112\]"
    ):
        load_model(exported(tmp_path / "z.mindir", "alone", side=128))

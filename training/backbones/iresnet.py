"""The improved residual networks of ArcFace (arXiv 1801.07698, section 3.1; He et al. 2016 for the units).

Layer names and layer counts are those of InsightFace's arcface_torch, whose weights they take.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import mindspore as ms
import numpy as np
from mindspore import nn

from training.backbones.blocks import Rng, batch_norm, conv, dense, recompute_activations
from training.backbones.spec import Graph, Spec


class Unit(nn.Cell):
    """Batch norm, 3x3, batch norm, PReLU, 3x3 with the stride, batch norm; and the shortcut.

    Args:
        rng: for first values.
        inputs: channels.
        outputs: channels.
        stride: 2 in the first unit of a stage.
    """

    def __init__(self, rng: Rng, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = batch_norm(inputs)
        self.conv1 = conv(rng, inputs, outputs, 3, 1, 1, std=0.1)
        self.bn2 = batch_norm(outputs)
        self.prelu = nn.PReLU(outputs)
        self.conv2 = conv(rng, outputs, outputs, 3, stride, 1, std=0.1)
        self.bn3 = batch_norm(outputs)
        self.projects = stride != 1 or inputs != outputs
        if self.projects:
            self.downsample = nn.SequentialCell(conv(rng, inputs, outputs, 1, stride, std=0.1), batch_norm(outputs))

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Returns (B, outputs, H / stride, W / stride)."""
        out = self.conv1(self.bn1(x))
        out = self.bn3(self.conv2(self.prelu(self.bn2(out))))
        return out + (self.downsample(x) if self.projects else x)

    def to_onnx(self, graph: Graph, x: str) -> str:
        """Returns the name of the output."""
        out = graph.chain(x, self.bn1, self.conv1, self.bn2, self.prelu, self.conv2, self.bn3)
        return graph.add("Add", out, graph.chain(x, self.downsample) if self.projects else x)


class IResNet(nn.Cell):
    """(B, 3, 112, 112) float32 to (B, embedding_size).

    Args:
        units: in the four stages.
        embedding_size: components.
        seed: of the first values.
        recompute: keeps no activations inside the units.
    """

    def __init__(self, units: Sequence[int], embedding_size: int = 512, seed: int = 0, recompute: bool = False) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        self.conv1 = conv(rng, 3, 64, 3, 1, 1, std=0.1)
        self.bn1 = batch_norm(64)
        self.prelu = nn.PReLU(64)
        self.layer1 = _stage(rng, 64, 64, units[0], recompute)
        self.layer2 = _stage(rng, 64, 128, units[1], recompute)
        self.layer3 = _stage(rng, 128, 256, units[2], recompute)
        self.layer4 = _stage(rng, 256, 512, units[3], recompute)
        self.bn2 = batch_norm(512)
        self.flatten = nn.Flatten()
        self.fc = dense(rng, 512 * 7 * 7, embedding_size)
        self.features = nn.BatchNorm1d(embedding_size, eps=1e-5, momentum=0.9)
        self.features.gamma.requires_grad = False  # stays 1, as in the reference: only the direction counts

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Returns the embeddings, not normalised."""
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.features(self.fc(self.flatten(self.bn2(x))))

    def to_onnx(self, graph: Graph, x: str) -> str:
        """Returns the name of the output."""
        x = graph.chain(x, self.conv1, self.bn1, self.prelu, self.layer1, self.layer2, self.layer3, self.layer4)
        return graph.chain(x, self.bn2, self.flatten, self.fc, self.features)


def _stage(rng: Rng, inputs: int, outputs: int, units: int, recompute: bool) -> nn.SequentialCell:
    made = [Unit(rng, inputs, outputs, 2)] + [Unit(rng, outputs, outputs, 1) for _ in range(units - 1)]
    if recompute:
        for unit in made:
            recompute_activations(unit)
    return nn.SequentialCell(*made)


def _spec(*units: int, fixed: int, multiply_adds: float | None = None) -> Spec:
    values = (fixed, 512 * 7 * 7 + 5)  # of a component: its row of fc, its bias, and four of the last norm
    return Spec(build=partial(IResNet, units), last_norm="features", multiply_adds=multiply_adds, values=values)


SPECS = {
    "r18": _spec(2, 2, 2, 2, fixed=11_192_704),
    "r34": _spec(3, 4, 6, 3, fixed=21_317_568),
    "r50": _spec(3, 4, 14, 3, fixed=30_781_376, multiply_adds=6.3),
    "r100": _spec(3, 13, 30, 3, fixed=52_378_176, multiply_adds=12.1),
    "r200": _spec(6, 26, 60, 6, fixed=106_122_368, multiply_adds=23.5),
}

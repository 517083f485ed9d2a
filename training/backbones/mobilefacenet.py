"""MobileFaceNet, and a narrow variant that trains on a CPU in minutes.

Source: MobileFaceNets, arXiv 1804.07573, in the shape that InsightFace's arcface_torch trains (0.45 G multiply-adds):
stages of 1, 4, 6, 2 blocks, twice the channels, and a head of its own. Layer names are arcface_torch's.
"""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import nn

from training.backbones.blocks import Rng, batch_norm, conv, dense, recompute_activations
from training.backbones.spec import Graph, Spec


def conv_block(
    rng: Rng, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0, groups: int = 1
) -> nn.Cell:
    """Returns convolution, batch norm and PReLU, under the name that the reference gives them."""
    return _Layers(conv(rng, inputs, outputs, kernel, stride, padding, groups), batch_norm(outputs), nn.PReLU(outputs))


class _Layers(nn.Cell):
    """Layers one after the other, named ``layers.0``, ``layers.1``, ..."""

    def __init__(self, *layers: nn.Cell) -> None:
        super().__init__()
        self.layers = nn.SequentialCell(*layers)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Returns x after all layers."""
        return self.layers(x)

    def to_onnx(self, graph: Graph, x: str) -> str:
        """Returns the name of the output."""
        return graph.chain(x, self.layers)


class DepthWise(_Layers):
    """Widens by a 1x1, convolves each channel by itself, narrows by a 1x1; with a shortcut if `residual`."""

    def __init__(self, rng: Rng, inputs: int, outputs: int, stride: int, groups: int, residual: bool) -> None:
        super().__init__(
            conv_block(rng, inputs, groups, 1),
            conv_block(rng, groups, groups, 3, stride, 1, groups),
            _Layers(conv(rng, groups, outputs, 1), batch_norm(outputs)),
        )
        self.residual = residual

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Returns (B, outputs, H / stride, W / stride)."""
        return x + self.layers(x) if self.residual else self.layers(x)

    def to_onnx(self, graph: Graph, x: str) -> str:
        """Returns the name of the output."""
        out = graph.chain(x, self.layers)
        return graph.add("Add", x, out) if self.residual else out


def residuals(rng: Rng, channels: int, count: int, groups: int) -> nn.Cell:
    """Returns `count` blocks with shortcuts."""
    return _Layers(*[DepthWise(rng, channels, channels, 1, groups, True) for _ in range(count)])


class Gdc(_Layers):
    """Global depthwise convolution: weighs the places of the last map, then projects to the embedding."""

    def __init__(self, rng: Rng, channels: int, side: int, embedding_size: int) -> None:
        last = nn.BatchNorm1d(embedding_size, eps=1e-5, momentum=0.9)
        super().__init__(
            _Layers(conv(rng, channels, channels, side, groups=channels), batch_norm(channels)),
            nn.Flatten(),
            dense(rng, channels, embedding_size, bias=False),
            last,
        )


class MobileFaceNet(nn.Cell):
    """(B, 3, 112, 112) float32 to (B, embedding_size).

    Args:
        layers: the stages, which give a map of 7 x 7.
        conv_sep: widens it.
        features: makes the embedding of it.
        recompute: keeps no activations inside the stages.
    """

    def __init__(self, layers: Sequence[nn.Cell], conv_sep: nn.Cell, features: nn.Cell, recompute: bool) -> None:
        super().__init__()
        self.layers = nn.CellList(layers)
        self.conv_sep = conv_sep
        self.features = features
        if recompute:
            for layer in layers:
                recompute_activations(layer)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Returns the embeddings, not normalised."""
        for layer in self.layers:
            x = layer(x)
        return self.features(self.conv_sep(x))

    def to_onnx(self, graph: Graph, x: str) -> str:
        """Returns the name of the output."""
        return graph.chain(x, *self.layers, self.conv_sep, self.features)


def wide(embedding_size: int, seed: int, recompute: bool) -> nn.Cell:
    """Returns the MobileFaceNet that arcface_torch trains; arguments as in Spec."""
    rng = np.random.default_rng(seed)
    layers = [
        conv_block(rng, 3, 128, 3, 2, 1),
        conv_block(rng, 128, 128, 3, 1, 1, 64),
        DepthWise(rng, 128, 128, 2, 128, False),
        residuals(rng, 128, 4, 128),
        DepthWise(rng, 128, 256, 2, 256, False),
        residuals(rng, 256, 6, 256),
        DepthWise(rng, 256, 256, 2, 512, False),
        residuals(rng, 256, 2, 256),
    ]
    return MobileFaceNet(layers, conv_block(rng, 256, 512, 1), Gdc(rng, 512, 7, embedding_size), recompute)


def narrow(embedding_size: int, seed: int, recompute: bool) -> nn.Cell:
    """Returns a MobileFaceNet for the embedded set on a CPU; arguments as in Spec.

    The image becomes small at once (a 4x4 convolution of stride 4 to 28x28), and depthwise layers work on 7x7 only:
    their gradients are the slowest part on a CPU.
    """
    rng = np.random.default_rng(seed)
    layers = [
        conv_block(rng, 3, 32, 4, 4),
        conv_block(rng, 32, 64, 3, 2, 1),
        conv_block(rng, 64, 128, 3, 2, 1),
        residuals(rng, 128, 1, 128),
    ]
    return MobileFaceNet(layers, conv_block(rng, 128, 256, 1), Gdc(rng, 256, 7, embedding_size), recompute)


SPECS = {
    "mbf": Spec(build=wide, last_norm="features.layers.3", multiply_adds=0.45, values=(1_819_136, 516)),
    "mbf_narrow": Spec(build=narrow, last_norm="features.layers.3", values=(178_144, 260)),
}

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
    """MobileFaceNet: (B, 3, 112, 112) float32 to (B, embedding_size).

    Args:
        embedding_size: components.
        seed: of the first values.
        recompute: keeps no activations inside the blocks.
        blocks: residual blocks in the four stages.
        scale: factor of the channels.
    """

    def __init__(
        self,
        embedding_size: int = 512,
        seed: int = 0,
        recompute: bool = False,
        blocks: Sequence[int] = (1, 4, 6, 2),
        scale: int = 2,
    ) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        wide = 64 * scale
        layers: list[nn.Cell] = [conv_block(rng, 3, wide, 3, 2, 1)]
        if blocks[0] == 1:
            layers.append(conv_block(rng, wide, wide, 3, 1, 1, 64))
        else:
            layers.append(residuals(rng, wide, blocks[0], 128))
        layers += [
            DepthWise(rng, wide, wide, 2, 128, False),
            residuals(rng, wide, blocks[1], 128),
            DepthWise(rng, wide, 2 * wide, 2, 256, False),
            residuals(rng, 2 * wide, blocks[2], 256),
            DepthWise(rng, 2 * wide, 2 * wide, 2, 512, False),
            residuals(rng, 2 * wide, blocks[3], 256),
        ]
        self.layers = nn.CellList(layers)
        self.conv_sep = conv_block(rng, 2 * wide, 512, 1)
        self.features = Gdc(rng, 512, 7, embedding_size)
        if recompute:
            for layer in layers:
                recompute_activations(layer)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Returns the embeddings, not normalised."""
        for layer in self.layers:
            x = layer(x)
        return self.features(self.conv_sep(x))


class NarrowMobileFaceNet(nn.Cell):
    """A MobileFaceNet for the embedded set on a CPU: (B, 3, 112, 112) float32 to (B, embedding_size).

    The image becomes small at once (a 4x4 convolution of stride 4 to 28x28), and depthwise layers work on 7x7 only:
    their gradients are the slowest part on a CPU.

    Args:
        embedding_size: components.
        seed: of the first values.
        recompute: keeps no activations inside the blocks.
    """

    def __init__(self, embedding_size: int = 512, seed: int = 0, recompute: bool = False) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        layers = [
            conv_block(rng, 3, 32, 4, 4),
            conv_block(rng, 32, 64, 3, 2, 1),
            conv_block(rng, 64, 128, 3, 2, 1),
            residuals(rng, 128, 1, 128),
        ]
        self.layers = nn.CellList(layers)
        self.conv_sep = conv_block(rng, 128, 256, 1)
        self.features = Gdc(rng, 256, 7, embedding_size)
        if recompute:
            for layer in layers:
                recompute_activations(layer)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Returns the embeddings, not normalised."""
        for layer in self.layers:
            x = layer(x)
        return self.features(self.conv_sep(x))

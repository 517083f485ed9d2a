"""The backbones by name."""

from __future__ import annotations

from collections.abc import Callable

from mindspore import nn

from pipelines.errors import ConfigError
from training.backbones.mobilefacenet import MobileFaceNet, NarrowMobileFaceNet

# Each takes embedding_size, seed and recompute.
BACKBONES: dict[str, Callable[[int, int, bool], nn.Cell]] = {
    "mbf": MobileFaceNet,
    "mbf_narrow": NarrowMobileFaceNet,
}


def create_backbone(name: str, embedding_size: int = 512, recompute: bool = False, seed: int = 0) -> nn.Cell:
    """Returns a backbone with its first values: (B, 3, 112, 112) float32 to (B, embedding_size), not normalised.

    Args:
        name: of BACKBONES.
        embedding_size: components.
        recompute: computes activations again in the backward pass instead of keeping them.
        seed: of the first values; the same in every process.

    Raises:
        ConfigError: no such name; the message lists those there are.
    """
    if name not in BACKBONES:
        raise ConfigError(f"backbone: '{name}' is not one of {', '.join(BACKBONES)}")
    return BACKBONES[name](embedding_size, seed, recompute)

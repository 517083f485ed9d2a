"""The backbones by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mindspore import nn

from faceshards.errors import ConfigError
from training.backbones.iresnet import IResNet
from training.backbones.mobilefacenet import MobileFaceNet, NarrowMobileFaceNet
from training.backbones.vit import VisionTransformer

# Layers of the iresnets' stages; width and depth of the transformers: as in arcface_torch.
_UNITS = {
    "r18": (2, 2, 2, 2),
    "r34": (3, 4, 6, 3),
    "r50": (3, 4, 14, 3),
    "r100": (3, 13, 30, 3),
    "r200": (6, 26, 60, 6),
}
_TRANSFORMERS = {"vit_t": (256, 12), "vit_s": (512, 12), "vit_b": (512, 24), "vit_l": (768, 24)}

# Each takes embedding_size, seed and recompute.
BACKBONES: dict[str, Callable[[int, int, bool], nn.Cell]] = {
    **{name: partial(IResNet, units) for name, units in _UNITS.items()},
    "mbf": MobileFaceNet,
    "mbf_narrow": NarrowMobileFaceNet,
    **{name: partial(VisionTransformer, width, depth, 8) for name, (width, depth) in _TRANSFORMERS.items()},
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

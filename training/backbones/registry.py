"""The backbones by name."""

from __future__ import annotations

from mindspore import nn

from faceshards.errors import ConfigError
from faceshards.extensions import blamed, family
from training.backbones import iresnet, mobilefacenet, vit
from training.backbones.spec import Spec
from training.device.numpy2 import settle_numpy

BACKBONES: dict[str, Spec] = family("backbones", {**iresnet.SPECS, **mobilefacenet.SPECS, **vit.SPECS}, Spec)


def find_spec(name: str) -> Spec:
    """Returns the SPEC of a backbone.

    Raises:
        ConfigError: no such name; the message lists those there are.
    """
    if name not in BACKBONES:
        raise ConfigError(f"backbone: '{name}' is not one of {', '.join(BACKBONES)}")
    return BACKBONES[name]


def create_backbone(name: str, embedding_size: int = 512, recompute: bool = False, seed: int = 0) -> nn.Cell:
    """Returns a backbone with its first values: (B, 3, 112, 112) float32 to (B, embedding_size), not normalised.

    Args:
        name: of BACKBONES.
        embedding_size: components.
        recompute: computes activations again in the backward pass instead of keeping them.
        seed: of the first values; the same in every process.

    Raises:
        ConfigError: see find_spec.
    """
    spec = find_spec(name)
    settle_numpy()
    with blamed(f"backbone '{name}'"):
        found = spec.build(embedding_size, seed, recompute)
        if not isinstance(found, nn.Cell):
            raise TypeError(f"build gives {type(found).__name__}, no Cell")
    return found

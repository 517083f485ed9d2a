"""Weights under PyTorch's names (arcface_torch's state dicts), mindface's and ours: a rule, no table."""

from __future__ import annotations

import re

from mindspore import nn

_PREFIXES = ("_orig_mod.", "module.", "network.", "_backbone.", "backbone.")  # of what wraps a backbone in training
_NORMS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def plain_name(name: str) -> str:
    """Returns a parameter's name without the prefixes of what wraps a backbone in training."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def our_name(name: str) -> str:
    """Returns our name for mindface's.

    Its MobileFaceNet appends to a CellList that already has its name, so the cells miss ``layers.``, or all but the
    first begin with ``0.layers.``; MindSpore 1 calls a PReLU's slopes ``a``.
    """
    name = re.sub(r"^0\.layers\.(\d+)\.(?=layers\.)", r"layers.\1.", name)
    name = re.sub(r"^(\d+)\.(?=layers\.)", r"layers.\1.", name)
    return re.sub(r"\.a$", ".w", name)


def torch_names(cell: nn.Cell) -> dict[str, str]:
    """Returns PyTorch's name of every parameter of a backbone, by our name."""
    names = {}
    for prefix, layer in cell.cells_and_names():
        for parameter in layer.get_parameters(expand=False):
            last = parameter.name.rpartition(".")[2]
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm):
                last = _NORMS[last]
            elif isinstance(layer, nn.PReLU):
                last = "weight"
            names[parameter.name] = f"{prefix}.{last}" if prefix else last
    return names

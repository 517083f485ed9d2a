"""Weights under PyTorch's names (arcface_torch's state dicts), mindface's and ours: a rule, no table."""

from __future__ import annotations

import re
from collections.abc import Mapping

import mindspore as ms
import numpy as np
from mindspore import nn

from pipelines.errors import FaceshardsError


class WeightsError(FaceshardsError):
    """Weights do not belong to the backbone."""


_PREFIXES = ("_orig_mod.", "module.", "network.", "_backbone.", "backbone.")  # of what wraps a backbone in training
_LAST_NORM = ("features", "features.layers.3", "feature.3")  # of iresnets, MobileFaceNets, transformers
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


def from_torch(state: Mapping[str, np.ndarray], cell: nn.Cell) -> dict[str, np.ndarray]:
    """Returns arrays by our names for a backbone.

    Args:
        state: floating-point arrays by PyTorch's names; prefixes such as ``module.`` and the counters of batch norm are
            passed over.
        cell: the backbone.

    Raises:
        WeightsError: names that lack, that are too many, or shapes that differ; the first three of each.
    """
    clean = {}
    for name, array in state.items():
        name = plain_name(name)
        if not name.endswith("num_batches_tracked"):
            clean[name] = np.asarray(array)
    names = torch_names(cell)
    shapes = {names[parameter.name]: tuple(parameter.shape) for parameter in cell.get_parameters()}
    lacking = [name for name in shapes if name not in clean]
    unknown = [name for name in clean if name not in shapes]
    other = [f"{name} {list(clean[name].shape)} instead of {list(shape)}" for name, shape in shapes.items()
             if name in clean and clean[name].shape != shape]  # fmt: skip
    other += [f"{name} of {array.dtype}" for name, array in clean.items() if array.dtype.kind != "f"]
    problems = [
        f"{what} {', '.join(found[:3])}" + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        for what, found in (("lacks", lacking), ("has unknown", unknown), ("has", other))
        if found
    ]
    if problems:
        raise WeightsError(f"weights of another backbone: {'; '.join(problems)}")
    return {ours: clean[theirs].astype(np.float32) for ours, theirs in names.items()}


def to_torch(cell: nn.Cell) -> dict[str, np.ndarray]:
    """Returns a backbone's arrays by PyTorch's names; batch norm's counters are not among them."""
    names = torch_names(cell)
    return {names[parameter.name]: parameter.asnumpy() for parameter in cell.get_parameters()}


def load(cell: nn.Cell, arrays: Mapping[str, np.ndarray]) -> None:
    """Sets a backbone's parameters from arrays by our names."""
    for parameter in cell.get_parameters():
        parameter.set_data(ms.Tensor(arrays[parameter.name].reshape(parameter.shape), parameter.dtype))


def set_weights(cell: nn.Cell, state: Mapping[str, np.ndarray]) -> None:
    """Sets a backbone's parameters.

    Args:
        cell: the backbone, as created (not adapted to a CPU).
        state: arrays by PyTorch's names or by ours.

    Raises:
        WeightsError: see from_torch; names are given as PyTorch's.
    """
    theirs = torch_names(cell)
    named: dict[str, np.ndarray] = {}
    for name, array in state.items():
        plain = theirs.get(plain_name(name), plain_name(name))
        if plain in named or not plain.isprintable():
            raise WeightsError(f"weights with the name {plain!r}, twice or unreadable")
        named[plain] = array
    load(cell, from_torch(named, cell))


def embedding_size(state: Mapping[str, np.ndarray]) -> int:
    """Returns the components of the embeddings: the length of the last batch norm's gain; 512 if it is not there."""
    named = {plain_name(name): array for name, array in state.items()}
    for layer in _LAST_NORM:
        for name in (f"{layer}.weight", f"{layer}.gamma"):
            if name in named:
                return int(named[name].size)
    return 512

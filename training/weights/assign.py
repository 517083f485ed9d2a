"""Backbones take weights from arrays by name, and give them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn

from faceshards.errors import WeightsError
from training.backbones.spec import Spec
from training.weights.names import plain_name, torch_names
from training.weights.read import read_weights


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


def load_weights(path: Path, cell: nn.Cell) -> None:
    """Sets a backbone's parameters from a file of weights.

    Raises:
        WeightsError: see read_weights, or the weights are of another backbone.
    """
    state = read_weights(path)
    try:
        set_weights(cell, state)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None


def embedding_size(state: Mapping[str, np.ndarray], spec: Spec) -> int:
    """Returns the components of a backbone's embeddings: the length of its last norm's gain.

    Args:
        state: arrays by PyTorch's names or by ours.
        spec: of the backbone.

    Raises:
        WeightsError: the gain is not there, or no gain.
    """
    named = {plain_name(name): array for name, array in state.items()}
    theirs, ours = f"{spec.last_norm}.weight", f"{spec.last_norm}.gamma"
    gain = named.get(theirs, named.get(ours))
    if gain is None:
        raise WeightsError(f"weights of another backbone: lacks {theirs}, whose length is the embeddings'")
    if gain.ndim != 1 or not gain.size:
        raise WeightsError(f"weights of another backbone: has {theirs} {list(gain.shape)} instead of [D]")
    return int(gain.size)

"""Backbones take weights from arrays by name, and give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn

from faceshards.errors import WeightsError
from training.backbones.spec import Spec
from training.weights.names import plain_name, torch_names
from training.weights.read import read_weights


def set_parameters(parameters: Mapping[str, ms.Parameter], arrays: Mapping[str, np.ndarray]) -> None:
    """Sets parameters from arrays by the same names: a backbone's, or an optimiser's.

    Args:
        parameters: by name, as parameters_dict() gives them.
        arrays: of any dtype; each takes its parameter's.

    Raises:
        WeightsError: names that lack, that are too many, or shapes that differ; nothing was set then.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    if problems := _problems(shapes, arrays):
        raise WeightsError(f"of another model: {problems}")
    for name, parameter in parameters.items():
        parameter.set_data(ms.Tensor(arrays[name], parameter.dtype))


def set_weights(cell: nn.Cell, state: Mapping[str, np.ndarray]) -> None:
    """Sets a backbone's parameters from the weights of a file.

    Args:
        cell: the backbone, as created (not adapted to a CPU).
        state: floating-point arrays by PyTorch's names or by ours; prefixes such as ``module.`` and the counters of
            batch norm are passed over.

    Raises:
        WeightsError: names that lack, that are too many or there twice, shapes that differ, arrays that hold no floats;
            the first three of each, by PyTorch's names. Nothing was set then.
    """
    names = torch_names(cell)  # by ours
    named: dict[str, np.ndarray] = {}
    for name, array in state.items():
        plain = names.get(plain_name(name), plain_name(name))
        if plain in named or not plain.isprintable():
            raise WeightsError(f"weights with the name {plain!r}, twice or unreadable")
        if not plain.endswith("num_batches_tracked"):
            named[plain] = np.asarray(array)
    parameters = cell.parameters_dict()
    shapes = {names[ours]: tuple(parameter.shape) for ours, parameter in parameters.items()}
    no_floats = [f"{name} of {array.dtype}" for name, array in named.items() if array.dtype.kind != "f"]
    if problems := _problems(shapes, named, no_floats):
        raise WeightsError(f"weights of another backbone: {problems}")
    set_parameters(parameters, {ours: named[names[ours]].astype(np.float32) for ours in parameters})


def _problems(shapes: Mapping[str, tuple[int, ...]], arrays: Mapping[str, np.ndarray], more: Sequence[str] = ()) -> str:
    """Returns what keeps arrays from being those of the shapes wanted, and `more` of it; nothing if they fit."""
    lacking = [name for name in shapes if name not in arrays]
    unknown = [name for name in arrays if name not in shapes]
    other = [
        f"{name} {list(arrays[name].shape)} instead of {list(shape)}"
        for name, shape in shapes.items()
        if name in arrays and arrays[name].shape != shape
    ]
    return "; ".join(
        f"{what} {', '.join(found[:3])}" + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        for what, found in (("lacks", lacking), ("has unknown", unknown), ("has", [*other, *more]))
        if found
    )


def to_torch(cell: nn.Cell) -> dict[str, np.ndarray]:
    """Returns a backbone's arrays by PyTorch's names; batch norm's counters are not among them."""
    names = torch_names(cell)
    return {names[parameter.name]: parameter.asnumpy() for parameter in cell.get_parameters()}


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

"""Backbones take weights from arrays by name, and give them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn

from faceshards.errors import WeightsError, first_few
from faceshards.formats.pickles import shown
from faceshards.formats.torch_zip import is_copy
from training.backbones.spec import Spec
from training.weights.names import is_head, our_name, plain_name, prefix_of, torch_names, twice, unwrapped
from training.weights.read import read_weights

log = logging.getLogger(__name__)


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


def set_weights(cell: nn.Cell, state: Mapping[str, np.ndarray]) -> list[str]:
    """Returns the names passed over (a head's, those of a second copy) after setting a backbone's parameters.

    Args:
        cell: the backbone, as created (not adapted to a CPU).
        state: floating-point arrays by PyTorch's names or by ours, under whatever prefix; the counters of batch norm
            are passed over in silence.

    Raises:
        WeightsError: names that lack, that are too many or there twice, shapes that differ, arrays that hold no floats
            or none that are finite; the first three of each, by PyTorch's names. Nothing was set then.
    """
    names = torch_names(cell)  # by ours
    parameters = cell.parameters_dict()
    shapes = {names[ours]: tuple(parameter.shape) for ours, parameter in parameters.items()}
    named, left = _sorted_out(state, names, shapes)
    if no_floats := [f"{name} of {array.dtype}" for name, array in named.items() if array.dtype.kind != "f"]:
        raise WeightsError(f"weights that are no floats, quantised perhaps: {first_few(no_floats)}")
    if problems := _problems(shapes, named):
        raise WeightsError(f"weights of another backbone: {problems}")
    if wrong := [name for name in shapes if not np.isfinite(named[name]).all()]:
        raise WeightsError(f"weights that are not finite: {first_few(wrong)}")
    set_parameters(parameters, {ours: named[names[ours]].astype(np.float32) for ours in parameters})
    return left


def _sorted_out(
    state: Mapping[str, np.ndarray], names: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns the arrays that belong to a backbone or might, by PyTorch's names, and the names of the others.

    Args:
        state: arrays by the names of a file.
        names: PyTorch's of the backbone, by ours.
        shapes: by PyTorch's names.

    Raises:
        WeightsError: a name is there twice, or unreadable.
    """
    origins = {name: origin for name, origin in unwrapped(state).items() if not name.endswith("num_batches_tracked")}
    prefix = prefix_of(origins, {*names, *shapes})
    own = {name.partition(".")[0] for name in shapes}
    named: dict[str, np.ndarray] = {}
    taken: dict[str, str] = {}  # the file's names by PyTorch's
    left = []
    for name, origin in sorted(origins.items(), key=lambda item: not item[0].startswith(prefix)):  # the backbone first
        if not name.isprintable():
            raise WeightsError(f"a name that is unreadable: {name!r}")
        array = np.asarray(state[origin])
        inside = name.startswith(prefix)
        rest = name[len(prefix) :] if inside else plain_name(name)
        plain = names.get(our_name(rest), our_name(rest))
        if plain in taken and (inside or (array.shape == shapes.get(plain) and not is_copy(name))):
            raise twice(plain, taken[plain], origin)
        beside = is_copy(rest) or (plain.partition(".")[0] not in own and is_head(plain, array))
        if not inside or (plain not in shapes and beside):
            left.append(origin)
        else:
            named[plain], taken[plain] = array, origin
    return named, left


def _problems(shapes: Mapping[str, tuple[int, ...]], arrays: Mapping[str, np.ndarray]) -> str:
    """Returns what keeps arrays from being those of the shapes wanted; nothing if they fit."""
    lacking = [name for name in shapes if name not in arrays]
    unknown = [name for name in arrays if name not in shapes]
    other = [
        f"{name} {list(arrays[name].shape)} instead of {list(shape)}"
        for name, shape in shapes.items()
        if name in arrays and arrays[name].shape != shape
    ]
    return "; ".join(
        f"{what} {first_few(found)}"
        for what, found in (("lacks", lacking), ("has unknown", unknown), ("has", other))
        if found
    )


def to_torch(cell: nn.Cell) -> dict[str, np.ndarray]:
    """Returns a backbone's arrays by PyTorch's names; batch norm's counters are not among them."""
    names = torch_names(cell)
    return {names[parameter.name]: parameter.asnumpy() for parameter in cell.get_parameters()}


def load_weights(path: Path, cell: nn.Cell, state: Mapping[str, np.ndarray] | None = None) -> None:
    """Sets a backbone's parameters from a file of weights; a warning says what of it is passed over.

    Args:
        path: the file.
        cell: the backbone, as created.
        state: what read_weights gave, where the file was read before.

    Raises:
        WeightsError: see read_weights, or the weights are of another backbone.
    """
    state = read_weights(path) if state is None else state
    try:
        left = set_weights(cell, state)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    if left:
        log.warning("%s: passed over beside the backbone: %s", path, first_few(map(shown, left)))


def embedding_size(state: Mapping[str, np.ndarray], spec: Spec) -> int:
    """Returns the components of a backbone's embeddings: the length of its last norm's gain.

    Args:
        state: arrays by PyTorch's names or by ours, under whatever prefix.
        spec: of the backbone.

    Raises:
        WeightsError: the gain is not there, there twice, or no gain.
    """
    theirs, ours = f"{spec.last_norm}.weight", f"{spec.last_norm}.gamma"
    origins = unwrapped(state)
    prefix = prefix_of(origins, {theirs, ours})
    origin = origins.get(prefix + theirs, origins.get(prefix + ours))
    if origin is None:
        has = first_few(map(shown, state))
        raise WeightsError(f"weights of another backbone: lacks {theirs}, whose length is the embeddings'; has {has}")
    gain = state[origin]
    if gain.ndim != 1 or not gain.size:
        raise WeightsError(f"weights of another backbone: has {theirs} {list(gain.shape)} instead of [D]")
    return int(gain.size)

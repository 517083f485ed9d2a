"""Weights under PyTorch's names (arcface_torch's state dicts) and under ours: a rule, no table."""

from __future__ import annotations

from collections.abc import Mapping

import mindspore as ms
import numpy as np
from mindspore import nn

from pipelines.errors import FaceshardsError


class WeightsError(FaceshardsError):
    """Weights do not belong to the backbone."""


_NORMS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


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
        state: arrays by PyTorch's names; prefixes ``module.`` and ``backbone.`` and the counters of batch norm are
            passed over, and so is the transformers' mask token.
        cell: the backbone.

    Raises:
        WeightsError: names that lack, that are too many, or shapes that differ; the first three of each.
    """
    clean = {}
    for name, array in state.items():
        for prefix in ("module.", "backbone."):
            name = name.removeprefix(prefix)
        if not name.endswith("num_batches_tracked") and name != "mask_token":
            clean[name] = np.asarray(array)
    names = torch_names(cell)
    shapes = {names[parameter.name]: tuple(parameter.shape) for parameter in cell.get_parameters()}
    lacking = [name for name in shapes if name not in clean]
    unknown = [name for name in clean if name not in shapes]
    other = [f"{name} {list(clean[name].shape)} instead of {list(shape)}" for name, shape in shapes.items()
             if name in clean and clean[name].shape != shape]  # fmt: skip
    problems = [
        f"{what} {', '.join(found[:3])}" + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        for what, found in (("lacks", lacking), ("has unknown", unknown), ("has", other))
        if found
    ]
    if problems:
        raise WeightsError(f"weights of another backbone: {'; '.join(problems)}")
    return {ours: clean[theirs].astype(np.float32) for ours, theirs in names.items()}


def to_torch(cell: nn.Cell) -> dict[str, np.ndarray]:
    """Returns a backbone's arrays by PyTorch's names."""
    names = torch_names(cell)
    return {names[parameter.name]: parameter.asnumpy() for parameter in cell.get_parameters()}


def load(cell: nn.Cell, arrays: Mapping[str, np.ndarray]) -> None:
    """Sets a backbone's parameters from arrays by our names."""
    for parameter in cell.get_parameters():
        parameter.set_data(ms.Tensor(arrays[parameter.name].reshape(parameter.shape), parameter.dtype))

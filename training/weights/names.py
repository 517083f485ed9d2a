"""Weights under PyTorch's names (arcface_torch's state dicts), mindface's and ours: a rule, no table.

Where in a file the backbone is, its own names say: most of them lie under one prefix, whatever that is.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

import numpy as np
from mindspore import nn

from faceshards.errors import WeightsError
from faceshards.formats.torch_zip import is_copy

# Of what wraps a backbone in training, in any order: a second copy of a weight is told by them.
_PREFIXES = re.compile(r"((module|_orig_mod|network|_backbone|backbone|model|net|encoder|student)\.)+")
# Parts that PyTorch puts anywhere into a name.
_WRAPPERS = re.compile(r"(^|(?<=\.))(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Words in the names of what follows a backbone in training.
_HEADS = {
    "head",
    "heads",
    "fc",
    "partialfc",
    "classifier",
    "softmax",
    "logits",
    "loss",
    "criterion",
    "margin",
    "metric",
}
_HEADS |= {"arcface", "cosface", "adaface", "magface", "curricularface", "arcmargin", "centers", "mpweight", "kernel"}
_NORMS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def unwrapped(state: Iterable[str]) -> dict[str, str]:
    """Returns names by what is left of them without the parts that PyTorch's wrappers put into them.

    Raises:
        WeightsError: of two nothing different is left.
    """
    found: dict[str, str] = {}
    for name in state:
        left = _WRAPPERS.sub("", name)
        if left in found:
            raise twice(left, found[left], name)
        found[left] = name
    return found


def plain_name(name: str) -> str:
    """Returns a parameter's name without the prefixes of what wraps a backbone in training."""
    return _PREFIXES.sub("", name, count=1) if _PREFIXES.match(name) else name


def prefix_of(names: Iterable[str], wanted: Collection[str]) -> str:
    """Returns the prefix under which the most of the wanted names are; "" if there are none.

    A second copy that says so in its name (an EMA, a teacher) is taken only where there is no other.

    Raises:
        WeightsError: as many of them are under two prefixes.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        for start in (0, *(dot.end() for dot in re.finditer(r"\.", name))):
            if our_name(name[start:]) in wanted:
                found.setdefault(name[:start], []).append(name)
    most = max(map(len, found.values()), default=0)
    best = [prefix for prefix, under in found.items() if len(under) == most]
    best = sorted([prefix for prefix in best if not is_copy(prefix)] or best, key=len)
    for other in best[1:]:
        if not set(found[best[0]]) & set(found[other]):  # the end of a name may be another's whole
            raise twice(found[best[0]][0].removeprefix(best[0]), found[best[0]][0], found[other][0])
    return best[0] if best else ""


def is_head(name: str, array: np.ndarray) -> bool:
    """Returns whether an array that is none of a backbone's is of the head it was trained with, by its name."""
    first = name.partition(".")[0].lower()
    words = {first.replace("_", ""), *first.split("_")}
    return bool(words & _HEADS) or ("." not in name and array.ndim == 2)


def twice(plain: str, *names: str) -> WeightsError:
    """Returns the error about a weight that a file has twice."""
    return WeightsError(f"{plain!r} comes twice, as {' and '.join(repr(name) for name in names)}")


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

"""Weights of backbones from files: PyTorch's, safetensors, and MindSpore's checkpoints (our names and mindface's).

Source of mindface's names: mindspore-lab/mindface, mindface/recognition (models, runner/wrapper.py, optim).
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import mindspore as ms
import numpy as np

from faceshards.errors import WeightsError
from faceshards.formats.safetensors import TensorFile, TensorFileError
from faceshards.formats.torch_pickle import BFLOAT16
from faceshards.formats.torch_zip import read_torch

log = logging.getLogger(__name__)

SUFFIXES = (".pt", ".pth", ".safetensors", ".ckpt")
_OLD_TORCH = b"l\xfc\x9cF\xf9 j\xa8P\x19"  # torch.serialization's MAGIC_NUMBER, as any protocol pickles it
_FLOATS = ("float16", "bfloat16", "float64")  # that become float32
# First parts of the names of MindSpore's and mindface's optimiser states.
_MOMENTS = {
    "accum",
    "stat",
    "moments",
    "moment1",
    "moment2",
    "moment3",
    "adam_m",
    "adam_v",
    "vhat",
    "prev_gradient",
    "exp_avg",
    "exp_avg_sq",
    "mp_weight",
}


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a file of weights by the names it gives them; all floats are float32, others as they are.

    Args:
        path: torch.save's (faceshards.formats.torch_zip), .safetensors, or MindSpore's .ckpt, of which optimiser
            states and counters are passed over. A warning says what had another precision.

    Raises:
        WeightsError: none of these, damaged, or asking for more than tensors.
    """
    state = _read(path)
    kinds = Counter(array.dtype.names[0] if array.dtype.names else array.dtype.name for array in state.values())
    if found := [f"{count} of {kind}" for kind, count in kinds.items() if kind in _FLOATS]:
        log.warning("%s: arrays taken as float32: %s", path, ", ".join(found))
    return {name: _as_float32(state.pop(name)) for name in list(state)}  # of half precision, not held twice


def _as_float32(array: np.ndarray) -> np.ndarray:
    if array.dtype == BFLOAT16:
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):  # what float32 cannot hold is refused as not finite
        return array.astype(np.float32) if array.dtype.name in _FLOATS else array


def _read(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a file as it has them."""
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from None
    if not head:
        raise WeightsError(f"{path}: empty file")
    if head.startswith(b"PK\x03\x04"):
        return read_torch(path)
    if _OLD_TORCH in head:
        raise WeightsError(
            f"{path}: the format of torch before 1.6; save it again with a current torch: "
            f"torch.save(torch.load('{path.name}', weights_only=True), 'new.pth')"
        )
    if head[0] == 0x80 and path.suffix != ".safetensors":
        raise WeightsError(f"{path}: refused: a pickle, which may hold any program; save weights with torch.save")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".ckpt":
        return _read_mindspore(path)
    what = "file of torch.save (a zip archive)" if path.suffix in SUFFIXES else f"weights ({', '.join(SUFFIXES)})"
    raise WeightsError(f"{path}: no {what}")


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with TensorFile(path) as file:
            return file.arrays()
    except TensorFileError as error:
        raise WeightsError(str(error)) from None


def _read_mindspore(path: Path) -> dict[str, np.ndarray]:
    try:
        found = ms.load_checkpoint(str(path))
    except (ValueError, TypeError, RuntimeError, OSError):
        raise WeightsError(f"{path}: not a checkpoint of MindSpore, or it is damaged") from None
    state = {}
    for name, parameter in found.items():
        first, dot, _ = name.partition(".")
        if (dot and first in _MOMENTS) or (not dot and parameter.ndim < 2):  # of no layer, and no tokens: counters
            continue
        if name.endswith("qkv.bias"):
            raise WeightsError(f"{path}: its attention has biases (mindface's transformers), those here have none")
        state[name] = _bfloat16(parameter) if parameter.dtype == ms.bfloat16 else parameter.asnumpy()
    return state


def _bfloat16(parameter: ms.Parameter) -> np.ndarray:
    """Returns the upper halves of what MindSpore makes float32 of, to be told apart like those of other files."""
    return (parameter.astype(ms.float32).asnumpy().view(np.uint32) >> 16).astype(np.uint16).view(BFLOAT16)

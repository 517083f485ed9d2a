"""Weights of backbones from files: PyTorch's, safetensors, and MindSpore's checkpoints (our names and mindface's).

Source of mindface's names: mindspore-lab/mindface, mindface/recognition (models, runner/wrapper.py, optim).
"""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np

from faceshards.errors import WeightsError
from faceshards.formats.safetensors import TensorFile, TensorFileError
from faceshards.formats.torch_zip import read_torch
from training.weights.names import our_name, plain_name

SUFFIXES = (".pt", ".pth", ".safetensors", ".ckpt")
_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # torch.serialization's MAGIC_NUMBER, pickled
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
    """Returns the arrays of a file of weights by the names it gives them.

    Args:
        path: torch.save's (faceshards.formats.torch_zip), .safetensors, or MindSpore's .ckpt, of which optimiser
            states, counters and mindface's head are passed over.

    Raises:
        WeightsError: none of these, damaged, or asking for more than tensors.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(len(_OLD_TORCH))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from None
    if not head:
        raise WeightsError(f"{path}: empty file")
    if head.startswith(b"PK\x03\x04"):
        return read_torch(path)
    if head == _OLD_TORCH:
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
    except TypeError as error:  # a dtype that NumPy has not
        raise WeightsError(f"{path}: {error}; save it as float32") from None


def _read_mindspore(path: Path) -> dict[str, np.ndarray]:
    try:
        found = ms.load_checkpoint(str(path))
    except (ValueError, TypeError, RuntimeError, OSError):
        raise WeightsError(f"{path}: not a checkpoint of MindSpore, or it is damaged") from None
    state = {}
    for name, parameter in found.items():
        # What belongs to no layer has no dot: counters, a head's matrix; tokens of a backbone's own have three axes.
        if name.partition(".")[0] in _MOMENTS or ("." not in name and parameter.ndim < 3):
            continue
        if name.endswith("qkv.bias"):
            raise WeightsError(f"{path}: its attention has biases (mindface's transformers), those here have none")
        wide = parameter.astype(ms.float32) if parameter.dtype == ms.bfloat16 else parameter
        state[our_name(plain_name(name))] = wide.asnumpy()
    return state

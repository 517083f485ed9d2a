"""Files of torch.save, read without PyTorch: tensors only (torch_pickle.py).

Source: torch/serialization.py for the format, a zip archive of ROOT/data.pkl and ROOT/data/KEY.
"""

from __future__ import annotations

import logging
import math
import re
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from faceshards.errors import WeightsError, first_few
from faceshards.formats.pickles import Budget, RefusedError, shown
from faceshards.formats.torch_pickle import DTYPES, HOLDS, Foreign, Storage, Tensor, unpickle

log = logging.getLogger(__name__)

# Under which a checkpoint may have its state dict, at any depth.
STATE_KEYS = ("state_dict", "model", "model_state_dict", "net", "net_state_dict", "backbone", "state_dict_backbone")
COPIES = {"ema", "teacher", "momentum", "average", "averaged", "swa", "shadow"}  # words in the names of a second model
_ASIDE = COPIES | {"opt", "optim", "optimizer", "optimizers", "head", "softmax", "loss", "margin", "classifier"}
DEEPEST = 8  # names on the way to a state dict: the places of a chain of dictionaries would fill the memory
LARGEST_PICKLE = 64 << 20  # bytes; the tensors' bytes are not in it

_HINTS = {
    "torch._utils._rebuild_qtensor": "a quantised tensor; save the weights before they are quantised",
    "torch._utils._rebuild_tensor_v3": "a tensor of a dtype that NumPy lacks; save it as float32",
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor; save it dense",
}
_DAMAGE = (ValueError, LookupError, TypeError, AttributeError, OverflowError, struct.error)


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a file of torch.save by their names; those of bfloat16 have the dtype BFLOAT16.

    Args:
        path: of a state dict, or of a checkpoint with one, under STATE_KEYS or whatever it is called. Objects of other
            classes beside it are passed over, and said in a warning.

    Raises:
        WeightsError: damaged, without a state dict or with two, with more than tensors in it, or made to do harm.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            roots = [name[:-8] for name in archive.namelist() if re.fullmatch(r"[^/]*/data\.pkl", name)]
            if len(roots) != 1:
                raise WeightsError(f"{path}: a zip archive, but not of torch.save")
            root = roots[0]
            if f"{root}constants.pkl" in archive.namelist():
                raise WeightsError(f"{path}: a TorchScript program; save the model's state_dict() with torch.save")
            if archive.getinfo(f"{root}data.pkl").file_size > LARGEST_PICKLE:
                raise WeightsError(f"{path}: refused: a pickle of more than {LARGEST_PICKLE >> 20} MiB")
            size = path.stat().st_size
            budget = Budget(size)
            found, foreign = unpickle(_entry(archive, f"{root}data.pkl"), budget)
            state = _state_dict(found, path)
            if sum(tensor.nbytes for tensor in state.values()) > 2 * size:
                raise RefusedError("its tensors, many views of few numbers, are larger than the file")
            name = f"{root}byteorder"
            big = name in archive.namelist() and _entry(archive, name) == b"big"
            arrays = _arrays(archive, root, big, state, size)
    except RefusedError as refusal:
        raise WeightsError(f"{path}: refused: {refusal}") from None
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError, *_DAMAGE) as error:
        raise WeightsError(f"{path}: damaged or cut: {' '.join(str(error).split())}") from None
    if foreign:
        log.warning("%s: passed over beside its weights: objects of %s", path, first_few(map(shown, foreign)))
    return arrays


def is_copy(name: str) -> bool:
    """Returns whether a name is that of a second model beside the one that is trained: its mean, its teacher."""
    return bool(COPIES & _words(name))


def _words(name: str) -> set[str]:
    return set(re.split(r"[._]", name.lower()))


def _state_dict(found: Any, path: Path) -> dict[str, Tensor]:
    """Returns the tensors of the state dict in what was read."""
    parts = {place: part for place, part in _dicts(found) if any(type(value) is Tensor for value in part.values())}
    if not parts:
        raise _without(found, path)
    counts = {place: sum(type(value) is Tensor for value in part.values()) for place, part in parts.items()}
    # A temperature or a head's matrix is no state dict of a backbone.
    large = [place for place, count in counts.items() if 10 * count >= max(counts.values())]
    best = [place for place in large if _rank(place) == min(map(_rank, large))]
    if len(best) > 1:
        raise WeightsError(f"{path}: has state dicts {_places(best)}; save that of the backbone alone")
    chosen = parts[best[0]]
    for name, value in chosen.items():
        if type(value) is Foreign:
            raise RefusedError(f"{shown(str(name))!r} of its weights is {_described(value)}; {HOLDS}")
    if left := [place for place in large if place != best[0]]:
        log.warning("%s: takes the weights %s, not those %s", path, _place(best[0]), _places(left))
    return {name: value for name, value in chosen.items() if type(name) is str and type(value) is Tensor}


def _dicts(found: Any) -> Iterator[tuple[tuple[str, ...], dict[Any, Any]]]:
    """Yields every dictionary that up to DEEPEST names lead to, once, with these names."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), found)]
    seen: set[int] = set()
    for place, part in waiting:
        if type(part) is dict and id(part) not in seen and len(place) <= DEEPEST:
            seen.add(id(part))
            yield place, part
            waiting += [((*place, key), value) for key, value in part.items() if type(key) is str]


def _rank(place: tuple[str, ...]) -> int:
    """Returns how far down the list a place is of those where a backbone's state dict may be."""
    words = _words(".".join(place))
    if words & _ASIDE:
        return 4
    if "backbone" in words:
        return 0
    if place and all(key in STATE_KEYS or key == "student" for key in place):
        return 1
    return 3 if place else 2


def _place(place: tuple[str, ...]) -> str:
    return f"under {shown('.'.join(place))!r}" if place else "at the top"


def _places(places: list[tuple[str, ...]]) -> str:
    return "under " + " and ".join(repr(shown(".".join(place))) for place in places)


def _without(found: Any, path: Path) -> Exception:
    """Returns the error about a file without a state dict."""
    values = [found, *(value for _, part in _dicts(found) for value in part.values())]
    if foreign := next((value for value in values if type(value) is Foreign), None):
        return RefusedError(f"it has no state dict, but {_described(foreign)}; {HOLDS}")
    return WeightsError(f"{path}: has no state dict, neither itself nor under {', '.join(STATE_KEYS)}")


def _described(value: Foreign) -> str:
    return _HINTS.get(value.name, f"an object of {shown(value.name)}")


def _arrays(
    archive: zipfile.ZipFile, root: str, big: bool, state: dict[str, Tensor], size: int
) -> dict[str, np.ndarray]:
    """Returns tensors as arrays of their own; a storage is read once, however many are views of it.

    Raises:
        RefusedError: one reaches beyond its storage, or the storages are larger than the file of `size` bytes.
    """
    views: dict[Storage, list[str]] = {}
    for name, tensor in state.items():
        views.setdefault(tensor.storage, []).append(name)
    if sum(archive.getinfo(f"{root}data/{storage.key}").file_size for storage in views) > size:
        raise RefusedError("its entries overlap: together they are larger than the file")
    arrays: dict[str, np.ndarray] = dict.fromkeys(state, np.empty(0))  # in the order of the state dict
    for storage, names in views.items():
        dtype = np.dtype(DTYPES[storage.kind]).newbyteorder(">" if big else "<")
        raw = _entry(archive, f"{root}data/{storage.key}")
        if len(raw) != storage.count * dtype.itemsize:
            found = f"storage {storage.key} has {len(raw)} bytes"
            raise ValueError(f"{found}, not {storage.count} numbers of {dtype.itemsize}")
        for name in names:
            arrays[name] = _array(raw, dtype, name, state[name])
    return arrays


def _array(raw: bytes, dtype: np.dtype, name: str, tensor: Tensor) -> np.ndarray:
    """Returns a tensor as an array of its own.

    Raises:
        RefusedError: it reaches beyond its storage.
    """
    storage = tensor.storage
    count = math.prod(tensor.size)
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.size, tensor.stride, strict=True))
    if count > storage.count or (count and last >= storage.count):
        raise RefusedError(f"{name[:80]!r} reaches beyond its storage")
    flat = np.frombuffer(raw, dtype)[tensor.offset :]
    view = np.lib.stride_tricks.as_strided(flat, tensor.size, [step * dtype.itemsize for step in tensor.stride])
    return view.astype(dtype.newbyteorder("="))


def _entry(archive: zipfile.ZipFile, name: str) -> bytes:
    """Returns the bytes of an entry; torch does not compress, and what is not compressed is as large as it looks."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        raise RefusedError(f"{name[:80]!r} is compressed, which torch.save does not do")
    return archive.read(info)

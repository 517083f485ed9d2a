"""Files of torch.save, read without PyTorch: tensors only.

Such a file holds a pickle, and a pickle is a program. Here an interpreter of our own runs it, which knows containers,
numbers, strings and tensors: no name in the file is imported, nothing in it is called.

Source: torch/serialization.py and torch/_utils.py for the format, a zip archive of ROOT/data.pkl and ROOT/data/KEY.
"""

from __future__ import annotations

import math
import pickletools
import re
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from faceshards.errors import WeightsError

STATE_KEYS = ("state_dict_backbone", "state_dict", "backbone", "model")  # the first is arcface_torch's checkpoint_gpu_*
MOST_AXES = 8  # of a tensor
LARGEST_PICKLE = 64 << 20  # bytes; the tensors' bytes are not in it

_STORAGES = {"Float": "f4", "Double": "f8", "Half": "f2", "BFloat16": "u2", "Long": "i8", "Int": "i4", "Short": "i2",
             "Char": "i1", "Byte": "u1", "Bool": "?"}  # fmt: skip
_DTYPES = {f"torch.{name}Storage": dtype for name, dtype in _STORAGES.items()}
_NAMES = {"collections.OrderedDict", "torch.Size", "torch._utils._rebuild_tensor_v2",
          "torch._utils._rebuild_parameter", *_DTYPES}  # fmt: skip
_FRESH: dict[str, Any] = {"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
                          "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}  # fmt: skip
_DAMAGE = (ValueError, LookupError, TypeError, AttributeError, OverflowError, struct.error)


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a file of torch.save by their names.

    Args:
        path: of a state dict, or of a dict with one under STATE_KEYS.

    Raises:
        WeightsError: damaged, without a state dict, or asking for more than tensors.
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
            found = _interpret(_entry(archive, f"{root}data.pkl"))
            state = _state_dict(found, path)
            if sum(math.prod(tensor.size) for tensor in state.values()) > 2 * path.stat().st_size:
                raise _RefusedError("its tensors, many views of few numbers, are larger than the file")
            name = f"{root}byteorder"
            big = name in archive.namelist() and _entry(archive, name) == b"big"
            return {name: _array(archive, root, big, name, tensor) for name, tensor in state.items()}
    except _RefusedError as refusal:
        raise WeightsError(f"{path}: refused: {refusal}") from None
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError, *_DAMAGE) as error:
        raise WeightsError(f"{path}: damaged or cut: {' '.join(str(error).split())}") from None


class _RefusedError(Exception):
    """A file asks for more than tensors, or for bytes that are not its own."""


@dataclass(frozen=True)
class _Name:
    """A name in a pickle; never looked up."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """Numbers of one dtype in a row: an entry of the archive."""

    kind: str
    key: str
    count: int


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage, in numbers, not bytes."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _interpret(data: bytes) -> Any:
    """Returns what a pickle of containers and tensors describes.

    Raises:
        _RefusedError: it has a name or an opcode beyond those.
        ValueError, LookupError, TypeError: it is damaged.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def above_mark() -> list[Any]:
        start = marks.pop()
        items, stack[start:] = stack[start:], []
        return items

    argument: Any
    for opcode, argument, _ in pickletools.genops(data):
        if (name := opcode.name) in ("PROTO", "FRAME"):
            pass
        elif name in ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"):
            stack.append(argument)
        elif name in _FRESH:
            stack.append(_FRESH[name]())
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(above_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else above_mark()
            stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else above_mark()
            if not all(type(key) in (str, int) for key in items[::2]):  # to hash others can take any depth
                raise _RefusedError("it has a dictionary whose keys are neither names nor numbers")
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            parts = argument.split(" ", 1) if name == "GLOBAL" else [stack.pop(-2), stack.pop()]
            stack.append(_known(".".join(parts)))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(_rebuild(stack.pop(), arguments))
        elif name == "BUILD" and type(stack[-2]) is dict:
            stack.pop()  # attributes of a state dict: versions of its modules
        elif name == "STOP":
            return stack.pop()
        else:
            raise _RefusedError(f"its pickle uses {name}, which no state dict needs")
    raise ValueError("the pickle has no end")


def _known(name: str) -> _Name:
    if name not in _NAMES:
        shown = re.sub(r"[^\w.<>-]", "?", name)[:80]
        raise _RefusedError(f"it asks for {shown}; only a state dict is read: torch.save(model.state_dict(), ...)")
    return _Name(name)


def _storage(key: Any) -> _Storage:
    """Returns the storage that a persistent id describes: ("storage", kind, key, device, numbers)."""
    kind, place, count = key[1].name, key[2], key[4]
    if key[0] != "storage" or kind not in _DTYPES or not re.fullmatch(r"[0-9]+", place) or type(count) is not int:
        raise _RefusedError(f"it names no storage of a tensor: {str(place)[:80]!r}")
    return _Storage(kind, place, count)


def _rebuild(callee: Any, arguments: Any) -> Any:
    name = callee.name if type(callee) is _Name else type(callee).__name__
    if name == "collections.OrderedDict":
        if any(arguments):  # torch fills it afterwards; copies of copies would fill the memory
            raise _RefusedError("it has an OrderedDict that is made of something")
        return {}
    if name == "torch.Size":
        (size,) = arguments
        if len(size) > MOST_AXES:
            raise _RefusedError(f"it has a size of more than {MOST_AXES} axes")
        return tuple(size)
    if name == "torch._utils._rebuild_parameter":
        return arguments[0]
    if name != "torch._utils._rebuild_tensor_v2":
        raise _RefusedError(f"it calls {name}")
    storage, offset, size, stride = arguments[:4]
    numbers = (offset, *size, *stride)
    wrong = any(type(n) is not int or n < 0 for n in numbers) or len(size) != len(stride) or len(size) > MOST_AXES
    if type(storage) is not _Storage or wrong:
        raise _RefusedError("it has a tensor without storage, size and strides")
    return _Tensor(storage, offset, tuple(size), tuple(stride))


def _state_dict(found: Any, path: Path) -> dict[str, _Tensor]:
    """Returns the tensors of the state dict in what was read."""
    if type(found) is dict:
        for part in (*[found.get(key) for key in STATE_KEYS], found):
            if type(part) is dict:
                state = {name: value for name, value in part.items() if type(name) is str and type(value) is _Tensor}
                if state:
                    return state
    raise WeightsError(f"{path}: has no state dict, neither itself nor under {', '.join(STATE_KEYS)}")


def _array(archive: zipfile.ZipFile, root: str, big: bool, name: str, tensor: _Tensor) -> np.ndarray:
    """Returns a tensor as an array of its own.

    Raises:
        _RefusedError: it reaches beyond its storage.
    """
    storage = tensor.storage
    dtype = np.dtype(_DTYPES[storage.kind]).newbyteorder(">" if big else "<")
    raw = _entry(archive, f"{root}data/{storage.key}")
    if len(raw) != storage.count * dtype.itemsize:
        raise ValueError(f"storage {storage.key} has {len(raw)} bytes, not {storage.count} numbers of {dtype.itemsize}")
    count = math.prod(tensor.size)
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.size, tensor.stride, strict=True))
    if count > storage.count or (count and last >= storage.count):
        raise _RefusedError(f"{name[:80]!r} reaches beyond its storage")
    flat = np.frombuffer(raw, dtype)[tensor.offset :]
    view = np.lib.stride_tricks.as_strided(flat, tensor.size, [step * dtype.itemsize for step in tensor.stride])
    own = view.astype(dtype.newbyteorder("="))
    return (own.astype(np.uint32) << 16).view(np.float32) if storage.kind == "torch.BFloat16Storage" else own


def _entry(archive: zipfile.ZipFile, name: str) -> bytes:
    """Returns the bytes of an entry; torch does not compress, and what is not compressed is as large as it looks."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        raise _RefusedError(f"{name[:80]!r} is compressed, which torch.save does not do")
    return archive.read(info)

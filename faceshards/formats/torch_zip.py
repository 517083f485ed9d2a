"""Files of torch.save, read without PyTorch: tensors only.

Such a file holds a pickle, and a pickle is a program. Here an interpreter of our own runs it, which knows containers,
numbers, strings and tensors: no name in the file is imported, nothing in it is called.

Source: torch/serialization.py and torch/_utils.py for the format, a zip archive of ROOT/data.pkl and ROOT/data/KEY.
"""

from __future__ import annotations

import math
import re
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from faceshards.errors import WeightsError
from faceshards.formats.pickles import Guard, RefusedError

STATE_KEYS = ("state_dict_backbone", "state_dict", "backbone", "model")  # the first is arcface_torch's checkpoint_gpu_*
MOST_AXES = 8  # of a tensor
LARGEST_PICKLE = 64 << 20  # bytes; the tensors' bytes are not in it

_STORAGES = {
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
    "HalfStorage": "f2",
    "BFloat16Storage": "u2",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_DTYPES = {f"torch.{name}": dtype for name, dtype in _STORAGES.items()}
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
            found = _Machine().run(_entry(archive, f"{root}data.pkl"))
            state = _state_dict(found, path)
            if sum(math.prod(tensor.size) for tensor in state.values()) > 2 * path.stat().st_size:
                raise RefusedError("its tensors, many views of few numbers, are larger than the file")
            name = f"{root}byteorder"
            big = name in archive.namelist() and _entry(archive, name) == b"big"
            return {name: _array(archive, root, big, name, tensor) for name, tensor in state.items()}
    except RefusedError as refusal:
        raise WeightsError(f"{path}: refused: {refusal}") from None
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError, *_DAMAGE) as error:
        raise WeightsError(f"{path}: damaged or cut: {' '.join(str(error).split())}") from None


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


class _Machine:
    """Runs a pickle of containers and tensors. It knows the opcodes that have a line in _OPCODES."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        """Returns what a pickle describes.

        Raises:
            RefusedError: it has a name or an opcode beyond containers and tensors.
            ValueError, LookupError, TypeError: it is damaged.
        """
        for opcode, argument in _GUARD.walk(data):
            _OPCODES[opcode](self, argument)
        return self.stack.pop()

    def above_mark(self) -> list[Any]:
        """Returns what lies above the last mark, taken off the stack."""
        start = self.marks.pop()
        items, self.stack[start:] = self.stack[start:], []
        return items

    def join(self, count: int) -> None:
        """Makes the last values a tuple."""
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def extend(self, items: list[Any]) -> None:
        """Appends to the list on top."""
        self.stack[-1].extend(items)

    def update(self, items: list[Any]) -> None:
        """Puts keys and values, in turn, into the dictionary on top."""
        if not all(type(key) in (str, int) for key in items[::2]):  # to hash others can take any depth
            raise RefusedError("it has a dictionary whose keys are neither names nor numbers")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def put(self, place: int | None) -> None:
        """Puts the value on top away."""
        self.memo[len(self.memo) if place is None else place] = self.stack[-1]

    def name(self, module: Any, name: Any) -> None:
        """Puts a name on top; nothing is looked up by it."""
        _GUARD.check_name(module, name)
        self.stack.append(_Name(f"{module}.{name}"))

    def reduce(self) -> None:
        """Calls, as the file sees it."""
        arguments = self.stack.pop()
        self.stack.append(_rebuild(self.stack.pop(), arguments))

    def build(self) -> None:
        """Drops the attributes of a state dict: versions of its modules."""
        if type(self.stack[-2]) is not dict:
            raise _GUARD.refusal("BUILD")
        self.stack.pop()


def _push(machine: _Machine, argument: Any) -> None:
    machine.stack.append(argument)


_NUMBERS_AND_TEXTS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE")
_OPCODES: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, argument: None),
    **dict.fromkeys(_NUMBERS_AND_TEXTS, _push),
    "NONE": lambda machine, _: _push(machine, None),
    "NEWTRUE": lambda machine, _: _push(machine, True),
    "NEWFALSE": lambda machine, _: _push(machine, False),
    "EMPTY_DICT": lambda machine, _: _push(machine, {}),
    "EMPTY_LIST": lambda machine, _: _push(machine, []),
    "EMPTY_TUPLE": lambda machine, _: _push(machine, ()),
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "TUPLE": lambda machine, _: _push(machine, tuple(machine.above_mark())),
    "TUPLE1": lambda machine, _: machine.join(1),
    "TUPLE2": lambda machine, _: machine.join(2),
    "TUPLE3": lambda machine, _: machine.join(3),
    "APPEND": lambda machine, _: machine.extend([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.above_mark()),
    "SETITEM": lambda machine, _: machine.update([machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine, _: machine.update(machine.above_mark()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, place: _push(machine, machine.memo[place])),
    "GLOBAL": lambda machine, argument: machine.name(*argument.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.name(machine.stack.pop(-2), machine.stack.pop()),
    "BINPERSID": lambda machine, _: _push(machine, _storage(machine.stack.pop())),
    "REDUCE": lambda machine, _: machine.reduce(),
    "BUILD": lambda machine, _: machine.build(),
}
_GUARD = Guard(
    kind="state dict",
    holds="only a state dict is read: torch.save(model.state_dict(), ...)",
    names={
        ("collections", "OrderedDict"),
        ("torch", "Size"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
        *(("torch", name) for name in _STORAGES),
    },
    opcodes=_OPCODES.keys(),
)


def _storage(key: Any) -> _Storage:
    """Returns the storage that a persistent id describes: ("storage", kind, key, device, numbers)."""
    kind, place, count = key[1].name, key[2], key[4]
    if key[0] != "storage" or kind not in _DTYPES or not re.fullmatch(r"[0-9]+", place) or type(count) is not int:
        raise RefusedError(f"it names no storage of a tensor: {str(place)[:80]!r}")
    return _Storage(kind, place, count)


def _rebuild(callee: Any, arguments: Any) -> Any:
    name = callee.name if type(callee) is _Name else type(callee).__name__
    if name == "collections.OrderedDict":
        if any(arguments):  # torch fills it afterwards; copies of copies would fill the memory
            raise RefusedError("it has an OrderedDict that is made of something")
        return {}
    if name == "torch.Size":
        (size,) = arguments
        if len(size) > MOST_AXES:
            raise RefusedError(f"it has a size of more than {MOST_AXES} axes")
        return tuple(size)
    if name == "torch._utils._rebuild_parameter":
        return arguments[0]
    if name != "torch._utils._rebuild_tensor_v2":
        raise RefusedError(f"it calls {name}")
    storage, offset, size, stride = arguments[:4]
    numbers = (offset, *size, *stride)
    wrong = any(type(n) is not int or n < 0 for n in numbers) or len(size) != len(stride) or len(size) > MOST_AXES
    if type(storage) is not _Storage or wrong:
        raise RefusedError("it has a tensor without storage, size and strides")
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
        RefusedError: it reaches beyond its storage.
    """
    storage = tensor.storage
    dtype = np.dtype(_DTYPES[storage.kind]).newbyteorder(">" if big else "<")
    raw = _entry(archive, f"{root}data/{storage.key}")
    if len(raw) != storage.count * dtype.itemsize:
        raise ValueError(f"storage {storage.key} has {len(raw)} bytes, not {storage.count} numbers of {dtype.itemsize}")
    count = math.prod(tensor.size)
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.size, tensor.stride, strict=True))
    if count > storage.count or (count and last >= storage.count):
        raise RefusedError(f"{name[:80]!r} reaches beyond its storage")
    flat = np.frombuffer(raw, dtype)[tensor.offset :]
    view = np.lib.stride_tricks.as_strided(flat, tensor.size, [step * dtype.itemsize for step in tensor.stride])
    own = view.astype(dtype.newbyteorder("="))
    return (own.astype(np.uint32) << 16).view(np.float32) if storage.kind == "torch.BFloat16Storage" else own


def _entry(archive: zipfile.ZipFile, name: str) -> bytes:
    """Returns the bytes of an entry; torch does not compress, and what is not compressed is as large as it looks."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        raise RefusedError(f"{name[:80]!r} is compressed, which torch.save does not do")
    return archive.read(info)

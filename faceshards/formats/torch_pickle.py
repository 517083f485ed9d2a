"""The pickle in a file of torch.save, read without PyTorch.

A pickle is a program. Here an interpreter of our own runs it, which knows containers, numbers, strings and tensors: no
name in the file is imported, nothing in it is called. Objects of other classes become their class's name.

Source: torch/_utils.py for what torch.save pickles; pickletools.py of Python for the opcodes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from faceshards.formats.pickles import Budget, Guard, RefusedError

HOLDS = "only a state dict is read: torch.save(model.state_dict(), ...)"
MOST_AXES = 8  # of a tensor
_LONGEST_KEY = 16  # parts of a tuple, or digits of a storage's name: what was put away may be used a million times
BFLOAT16 = np.dtype([("bfloat16", "u2")])  # NumPy has none: the upper half of a float32
DTYPES: dict[str, Any] = {
    "torch.FloatStorage": "f4",
    "torch.DoubleStorage": "f8",
    "torch.HalfStorage": "f2",
    "torch.BFloat16Storage": BFLOAT16,
    "torch.LongStorage": "i8",
    "torch.IntStorage": "i4",
    "torch.ShortStorage": "i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "?",
}
# What torch.save needs for a state dict; every other name stands for an object that is passed over.
_NEEDED = {
    "collections.OrderedDict",
    "torch.Size",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._tensor._rebuild_from_type_v2",
    *DTYPES,
}
# What reaches for the machine is refused wherever it stands: such a file was made to do harm.
_MACHINE = {"os", "posix", "nt", "pty", "subprocess", "sys", "shutil", "socket", "ctypes", "importlib", "runpy", "code"}
_PROGRAMS = {"eval", "exec", "execfile", "compile", "open", "__import__", "input", "breakpoint"}  # of builtins
# Whose sets, scalars and dtypes beside the weights nobody misses.
_COMMON = {"builtins", "__builtin__", "collections", "copyreg", "copy_reg", "_codecs", "numpy", "torch"}


@dataclass(frozen=True)
class Foreign:
    """A name in a pickle, or an object of that class; never looked up."""

    name: str


@dataclass(frozen=True)
class Storage:
    """Numbers of one dtype in a row: an entry of the archive."""

    kind: str
    key: str
    count: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage, in numbers, not bytes."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.size) * np.dtype(DTYPES[self.storage.kind]).itemsize


def unpickle(data: bytes, budget: Budget | None = None) -> tuple[Any, list[str]]:
    """Returns what a pickle describes, and the names of the classes in it that are neither Python's nor PyTorch's.

    Args:
        data: the pickle.
        budget: pays for what it makes; without it one of the pickle's size.

    Raises:
        RefusedError: it reaches for the machine, or does what no file of torch.save does.
        ValueError, LookupError, TypeError, AttributeError: it is damaged.
    """
    machine = _Machine()
    for opcode, argument in _GUARD.walk(data, budget):
        _OPCODES[opcode](machine, argument)
    return machine.stack.pop(), list(machine.foreign)


class _Machine:
    """Runs a pickle of containers and tensors. It knows the opcodes that have a line in _OPCODES."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.foreign: dict[str, None] = {}  # in the order in which they come

    def above_mark(self) -> list[Any]:
        """Returns what lies above the last mark, taken off the stack."""
        start = self.marks.pop()
        items, self.stack[start:] = self.stack[start:], []
        return items

    def join(self, count: int) -> None:
        """Makes the last values a tuple."""
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def extend(self, items: list[Any]) -> None:
        """Appends to the list on top; what another object gets is passed over."""
        if type(self.stack[-1]) is not Foreign:
            self.stack[-1].extend(items)

    def update(self, items: list[Any]) -> None:
        """Puts keys and values, in turn, into the dictionary on top; what another object gets is passed over."""
        if not all(_is_key(key) for key in items[::2]):
            raise RefusedError("it has a dictionary whose keys are neither names nor numbers")
        if type(self.stack[-1]) is not Foreign:
            self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def new_dict(self, items: list[Any]) -> None:
        """Puts a dictionary of keys and values on top."""
        self.stack.append({})
        self.update(items)

    def put(self, place: int | None) -> None:
        """Puts the value on top away."""
        self.memo[len(self.memo) if place is None else place] = self.stack[-1]

    def name(self, module: Any, name: Any) -> None:
        """Puts a name on top; nothing is looked up by it."""
        _GUARD.check_name(module, name)
        found = Foreign(f"{module}.{name}")
        if found.name not in _NEEDED and module.partition(".")[0] not in _COMMON:
            self.foreign[found.name] = None
        self.stack.append(found)

    def instance(self, argument: str) -> None:
        """Makes an object as protocol 0 does."""
        self.above_mark()
        self.name(*argument.split(" ", 1))

    def drop(self, count: int) -> None:
        """Takes values off the top."""
        del self.stack[len(self.stack) - count :]

    def call(self, and_drop: int = 0) -> None:
        """Calls, as the file sees it, without the last values."""
        self.drop(and_drop)
        arguments = self.stack.pop()
        self.stack.append(_made(self.stack.pop(), arguments))

    def build(self) -> None:
        """Drops the attributes of an object: of a state dict, the versions of its modules."""
        if type(self.stack[-2]) not in (dict, Foreign):
            raise _GUARD.refusal("BUILD")
        self.stack.pop()


def _is_key(key: Any, depth: int = 0) -> bool:
    """Returns whether a dictionary may have a key: to hash others can take any depth."""
    if type(key) is tuple and not depth:
        return len(key) <= _LONGEST_KEY and all(_is_key(part, 1) for part in key)
    return key is None or type(key) in (str, int, float, bool, bytes, Foreign)


def _push(machine: _Machine, argument: Any) -> None:
    machine.stack.append(argument)


_NUMBERS = ("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
_TEXTS = ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
_OPCODES: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, argument: None),
    **dict.fromkeys((*_NUMBERS, *_TEXTS, *_BYTES), _push),
    "NONE": lambda machine, _: _push(machine, None),
    "NEWTRUE": lambda machine, _: _push(machine, True),
    "NEWFALSE": lambda machine, _: _push(machine, False),
    "EMPTY_DICT": lambda machine, _: _push(machine, {}),
    "EMPTY_LIST": lambda machine, _: _push(machine, []),
    "EMPTY_TUPLE": lambda machine, _: _push(machine, ()),
    "EMPTY_SET": lambda machine, _: _push(machine, []),  # a list: its members need not be hashed
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "POP": lambda machine, _: machine.drop(1),
    "POP_MARK": lambda machine, _: machine.drop(len(machine.stack) - machine.marks.pop()),
    "DUP": lambda machine, _: _push(machine, machine.stack[-1]),
    "LIST": lambda machine, _: _push(machine, machine.above_mark()),
    "FROZENSET": lambda machine, _: _push(machine, machine.above_mark()),
    "DICT": lambda machine, _: machine.new_dict(machine.above_mark()),
    "TUPLE": lambda machine, _: _push(machine, tuple(machine.above_mark())),
    "TUPLE1": lambda machine, _: machine.join(1),
    "TUPLE2": lambda machine, _: machine.join(2),
    "TUPLE3": lambda machine, _: machine.join(3),
    "APPEND": lambda machine, _: machine.extend([machine.stack.pop()]),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda machine, _: machine.extend(machine.above_mark())),
    "SETITEM": lambda machine, _: machine.update([machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine, _: machine.update(machine.above_mark()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, place: _push(machine, machine.memo[place])),
    "GLOBAL": lambda machine, argument: machine.name(*argument.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.name(machine.stack.pop(-2), machine.stack.pop()),
    "BINPERSID": lambda machine, _: _push(machine, _storage(machine.stack.pop())),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda machine, _: machine.call()),
    "NEWOBJ_EX": lambda machine, _: machine.call(and_drop=1),
    "OBJ": lambda machine, _: _push(machine, _made(machine.above_mark()[0], ())),
    "INST": _Machine.instance,
    "BUILD": lambda machine, _: machine.build(),
}


class _Nameable:
    """What a file may name: all but what reaches for the machine; no name is looked up."""

    def __contains__(self, entry: object) -> bool:
        module, name = entry if isinstance(entry, tuple) else ("", "")
        if module in ("builtins", "__builtin__"):
            return name not in _PROGRAMS
        return module.partition(".")[0] not in _MACHINE


_GUARD = Guard(
    kind="state dict",
    holds=HOLDS,
    names=_Nameable(),
    opcodes=_OPCODES.keys(),
)


def _storage(key: Any) -> Storage | Foreign:
    """Returns the storage that a persistent id describes: ("storage", kind, key, device, numbers)."""
    kind, place, count = key[1].name, key[2], key[4]
    known = type(place) is str and len(place) <= _LONGEST_KEY and re.fullmatch(r"[0-9]+", place)
    if key[0] != "storage" or not known or not _is_size(count):
        raise RefusedError(f"it names no storage of a tensor: {place[:80] if type(place) is str else type(place)!r}")
    return Storage(kind, place, count) if kind in DTYPES else key[1]


def _made(callee: Any, arguments: Any) -> Any:
    """Returns what a call would: a container or tensor; of another class its name."""
    if type(callee) is not Foreign:
        raise RefusedError(f"it calls {type(callee).__name__}")
    if callee.name == "collections.OrderedDict":
        if any(arguments):  # torch fills it afterwards; copies of copies would fill the memory
            raise RefusedError("it has an OrderedDict that is made of something")
        return {}
    if callee.name == "torch.Size":
        (size,) = arguments
        if len(size) > MOST_AXES:
            raise RefusedError(f"it has a size of more than {MOST_AXES} axes")
        return tuple(size)
    if callee.name.startswith("torch._utils._rebuild_parameter"):
        return arguments[0]
    if callee.name == "torch._tensor._rebuild_from_type_v2":  # a tensor with attributes: function, class, arguments
        function, kind, inner = arguments[:3]
        known = function.name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter")
        return _made(function, inner) if known else kind
    if callee.name in ("copyreg._reconstructor", "copy_reg._reconstructor"):  # an object, of its first argument
        return arguments[0]
    return _tensor(arguments) if callee.name == "torch._utils._rebuild_tensor_v2" else callee


def _is_size(number: Any) -> bool:
    return type(number) is int and 0 <= number < 1 << 63


def _tensor(arguments: Any) -> Tensor | Foreign:
    storage, offset, size, stride = arguments[:4]
    if type(storage) is Foreign:  # of a dtype that NumPy has not
        return storage
    right = len(size) == len(stride) <= MOST_AXES and all(map(_is_size, (offset, *size, *stride)))
    if type(storage) is not Storage or not right:
        raise RefusedError("it has a tensor without storage, size and strides")
    return Tensor(storage, offset, tuple(size), tuple(stride))

"""Verification sets (.bin): pairs of images, the same person or not. Read without trusting the pickle they are."""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import os
import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from faceshards.errors import FaceshardsError, as_typed, one_line
from faceshards.files import replacing
from faceshards.formats.pickles import Budget, Guard, RefusedError, shown
from faceshards.storage.location import Location

GUARD = Guard(
    kind="verification set",
    holds="a verification set holds only bytes, lists, booleans and arrays",
    # By the names of NumPy 1 and 2 and of Python 2 and 3. None of these runs code of its own: they build an array, a
    # dtype, a NumPy scalar, or encode a text as bytes.
    names={
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy.core.numeric", "_frombuffer"),
        ("numpy._core.numeric", "_frombuffer"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    },
    # Texts, numbers, lists, tuples, and calls of the above. No dict: its keys are hashed, however deep they are.
    opcodes={
        *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK"),
        *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        *("LIST", "EMPTY_LIST", "APPEND", "APPENDS", "TUPLE", "EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
        *("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
        *("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"),
    },
)


class SetError(FaceshardsError):
    """A file is no verification set, or asks for more than one holds."""


MOST_AXES = 32  # of an array: NumPy 1's limit


@dataclass(frozen=True)
class VerificationSet:
    """Pairs of images; they stay encoded, since decoded sets take gigabytes.

    Args:
        name: of the set.
        images: 2P encoded images; pair k is images[2k] and images[2k + 1].
        same: (P,) bool, whether a pair shows one person.
    """

    name: str
    images: tuple[bytes, ...]
    same: np.ndarray

    def digest(self) -> str:
        """Returns the SHA-256 (hex) of the pairs, whatever the file is called and however it was pickled."""
        digest = hashlib.sha256(self.same.tobytes())
        for image in self.images:
            digest.update(len(image).to_bytes(8, "little"))
            digest.update(image)
        return digest.hexdigest()


class _Unpickler(pickle.Unpickler):
    """Builds containers, bytes, numbers and arrays, and refuses everything else by name."""

    def __init__(self, file: io.BufferedIOBase, size: int, budget: Budget) -> None:
        super().__init__(file, encoding="bytes")
        self._size, self._budget = size, budget

    def find_class(self, module: str, name: str) -> Any:
        """Returns what a pickle asks for, if verification sets need it."""
        GUARD.check_name(module, name)
        makers: dict[str, Callable[..., Any]] = {
            "dtype": _dtype,
            "encode": self._encode,
            "scalar": _scalar,
            "_frombuffer": self._from_buffer,
            "_reconstruct": lambda *_: _Array(self._size, self._budget),
            "ndarray": lambda *_: None,
        }
        return _Maker(makers[name])

    def _from_buffer(self, data: Any, dtype: Any, shape: Any, _order: Any) -> _Array:
        """Returns an array of pickle protocol 5."""
        array = _Array(self._size, self._budget)
        if isinstance(data, bytearray):
            self._budget.spend(len(data))
            data = bytes(data)
        array.__setstate__((1, shape, dtype, False, data))
        return array

    def _encode(self, text: Any, encoding: Any = "latin1", *_: Any) -> bytes:
        """Returns a text as bytes; Python 3 writes bytes so in old protocols."""
        name = _short(encoding)
        if not isinstance(text, str | bytes) or name.replace("-", "").lower() not in ("latin1", "ascii", "utf8"):
            raise RefusedError(f"a text encoded as '{shown(name, 20)}'")
        if isinstance(text, bytes):
            return text
        self._budget.spend(len(text))  # one that was put away may be encoded again and again
        return text.encode(name)


class _Maker:
    """What stands for a function or class that a pickle may call, or hand on; nothing in the file can change it."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, _state: Any) -> None:
        raise RefusedError("it changes a function")


class _Dtype:
    """The dtype of an array in a pickle: one byte an item, never objects."""

    def __setstate__(self, _state: Any) -> None:
        pass  # byte order and the like, of no meaning for single bytes


def _short(name: Any) -> str:
    """Returns the name of a dtype or an encoding; "none" for what is none: as a text, a list of lists has no end."""
    if isinstance(name, bytes) and len(name) <= 20:
        return name.decode("ascii", "replace")
    return name if isinstance(name, str) and len(name) <= 20 else "none"


def _dtype(code: Any, *_: Any) -> _Dtype:
    text = _short(code)
    if text not in ("u1", "|u1", "b1", "|b1", "uint8", "bool", "S1", "B", "?"):
        raise RefusedError(f"an array of dtype '{shown(text, 20)}'; images are bytes (u1), flags are booleans (b1)")
    return _Dtype()


class _Array:
    """An array in a pickle, which becomes its bytes."""

    def __init__(self, limit: int, budget: Budget) -> None:
        self.data, self._limit, self._budget = b"", limit, budget

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, _fortran, data = state
        if isinstance(data, str):
            self._budget.spend(len(data))
            data = data.encode("latin-1")
        if not isinstance(dtype, _Dtype) or not isinstance(data, bytes) or len(data) > self._limit:
            raise RefusedError("an array that does not hold plain bytes")
        if not isinstance(shape, tuple) or len(shape) > MOST_AXES or not all(isinstance(size, int) for size in shape):
            raise RefusedError(f"an array whose shape is not up to {MOST_AXES} numbers")
        if not all(0 <= size <= self._limit for size in shape) or math.prod(shape) != len(data):
            raise SetError(f"an array of shape {shown(str(shape), 60)} with {len(data)} bytes")
        self.data = data


def _scalar(_dtype: Any, data: Any) -> bool:
    """Returns a NumPy boolean as a bool."""
    if not isinstance(_dtype, _Dtype) or not isinstance(data, bytes | str) or len(data) != 1:
        raise RefusedError("a NumPy number that is no boolean")
    return data not in (b"\0", "\0")


def printable(name: str) -> str:
    """Returns a file's name as text that can be written as UTF-8; see errors.harmless() for what a terminal obeys."""
    return os.fsencode(name).decode("utf-8", "replace")


def read_bin(path: Path | str) -> VerificationSet:
    """Returns a verification set from a .bin, written by Python 2 or 3; nothing in it is run.

    Raises:
        SetError: not a verification set; one line with the file and what is wrong.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            budget = Budget(size)
            for _ in GUARD.walk(file, budget):  # before any of it is carried out
                pass
            file.seek(0)
            loaded = _Unpickler(file, size, budget).load()
    except RefusedError as refusal:
        raise SetError(f"{path}: refused: {refusal}") from None
    except SetError as error:
        raise SetError(f"{path}: {error}") from None
    except OSError as error:
        raise SetError(f"{path}: {error.strerror}") from None
    except Exception as error:  # a damaged pickle raises whatever its bytes lead to
        raise SetError(f"{path}: not a whole pickle: {type(error).__name__} {' '.join(str(error).split())}") from None
    if not isinstance(loaded, tuple | list) or len(loaded) != 2:
        raise SetError(f"{path}: holds no pair of images and flags")
    images, same = loaded[0], loaded[1].data if isinstance(loaded[1], _Array) else loaded[1]
    if not isinstance(images, list | tuple) or not isinstance(same, list | tuple | bytes):
        raise SetError(f"{path}: holds no list of images and list of flags")
    if len(images) != 2 * len(same) or not same:
        raise SetError(f"{path}: {len(images)} images for {len(same)} pairs")
    encoded, total = [], 0
    for number, image in enumerate(images):
        encoded.append(_bytes(image))
        if not encoded[-1]:
            raise SetError(f"{path}: item {number} is no encoded image")
        total += len(encoded[-1])
        if total > budget.whole:  # each of them is decoded and embedded
            raise SetError(f"{path}: refused: its images, some of them many times, are larger than the file")
    if not all(isinstance(flag, bool | int) and flag in (0, 1) for flag in same):
        raise SetError(f"{path}: a flag is neither true nor false")
    return VerificationSet(one_line(printable(path.stem)), tuple(encoded), np.array(list(same), bool))


def set_names(paths: Sequence[Path]) -> list[str]:
    """Returns a name for each of several sets: its file's, with as much of the path as tells it from the others.

    These are a/lfw and b/lfw for a/lfw.bin and b/lfw.bin, and agedb for a/agedb.bin.

    Raises:
        SetError: a file is named twice.
    """
    whole = [Path(as_typed(os.path.abspath(path))) for path in paths]
    if twice := next((path for path, full in zip(paths, whole, strict=True) if whole.count(full) > 1), None):
        raise SetError(f"{twice}: is named twice")
    found = [path.stem for path in whole]
    for stem in {name for name in found if found.count(name) > 1}:
        places = [place for place, path in enumerate(whole) if path.stem == stem]
        # By the suffix, too, if they lie in one folder.
        bare = len({whole[place].parent for place in places}) == len(places)
        parts = [(whole[place].with_suffix("") if bare else whole[place]).parts for place in places]
        depth = next(depth for depth in itertools.count(1) if len({part[-depth:] for part in parts}) == len(parts))
        for place, part in zip(places, parts, strict=True):
            found[place] = "/".join(part[-depth:])
    return [one_line(printable(name)) for name in found]


def _bytes(image: Any) -> bytes:
    """Returns an item's bytes; none if it is something else."""
    image = image.data if isinstance(image, _Array) else image
    return bytes(image) if isinstance(image, bytes | bytearray) else b""


def write_bin(path: Location, images: Sequence[bytes], same: Iterable[bool]) -> None:
    """Writes a verification set that ``pickle.load`` reads anywhere; the file appears whole or not at all.

    Raises:
        SetError: counts do not match, or the disk refuses.
    """
    flags = [bool(flag) for flag in same]
    if len(images) != 2 * len(flags) or not flags:
        raise SetError(f"{path}: {len(images)} images for {len(flags)} pairs")
    try:
        with replacing(path, keep=True) as temporary, open(temporary, "wb") as file:
            pickle.dump(([bytes(image) for image in images], flags), file, protocol=4)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise SetError(f"{path}: cannot be written: {error.strerror}") from None

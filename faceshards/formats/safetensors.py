"""Files of named arrays in the safetensors format, written and read a block of rows at a time.

The library's own writer takes whole arrays; a rank's class centres may be larger than its memory. Reading is the
library's. Format (huggingface/safetensors, README): u64 LE length, a JSON header {name: {dtype, shape, data_offsets}},
then the arrays one after the other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from faceshards.errors import FaceshardsError, why
from faceshards.formats.json_files import parse_json
from faceshards.formats.pickles import shown
from faceshards.formats.torch_pickle import BFLOAT16

DTYPES = {
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint32": "U32",
    "uint64": "U64",
    "bool": "BOOL",
}

Block = tuple[str, int, np.ndarray]  # name, first row, rows


class TensorFileError(FaceshardsError):
    """A file of arrays cannot be written, or is damaged."""


def write_blocks(path: Path, shapes: Mapping[str, tuple[str, tuple[int, ...]]], blocks: Iterable[Block]) -> None:
    """Writes arrays as they come, and makes them durable (fsync).

    Args:
        path: a new file.
        shapes: dtype and shape of every array, by name.
        blocks: rows of the arrays, in any order; together they cover each array once.

    Raises:
        TensorFileError: the disk refuses, or the blocks do not fill the arrays. The file is left to the caller.
    """
    entries: dict[str, Any] = {}
    places: dict[str, int] = {}
    size = 0
    for name, (dtype, shape) in sorted(shapes.items(), key=lambda item: -np.dtype(item[1][0]).itemsize):  # alignment
        count = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        entries[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [size, size + count]}
        places[name] = size
        size += count
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    base, written = 8 + len(header), 0
    try:
        with open(path, "xb", buffering=0) as file:
            os.truncate(path, base + size)
            _pwrite(file.fileno(), len(header).to_bytes(8, "little") + header, 0)
            for name, start, rows in blocks:
                dtype, shape = shapes[name]
                if rows.dtype != dtype or rows.shape[1:] != shape[1:] or start + len(rows) > (shape or (1,))[0]:
                    raise TensorFileError(f"{path}: {name}: a block {rows.dtype} {rows.shape} at {start} is not in it")
                row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * rows.itemsize
                if rows.size:
                    _pwrite(file.fileno(), np.ascontiguousarray(rows), base + places[name] + start * row_bytes)
                written += rows.nbytes
            os.fsync(file.fileno())
    except OSError as error:
        raise TensorFileError(f"{path}: cannot be written: {why(error)}") from None
    if written != size:
        raise TensorFileError(f"{path}: {written} bytes of {size} were given")


def _pwrite(file: int, data: Any, offset: int) -> None:
    view = memoryview(data).cast("B")
    while view:  # a write may take less than all, above all on a disk that is filling up
        done = os.pwrite(file, view[: 1 << 30], offset)
        view, offset = view[done:], offset + done


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes whole arrays; see write_blocks. A scalar is written as an array of one."""
    arrays = {name: np.atleast_1d(array) for name, array in arrays.items()}
    shapes = {name: (str(array.dtype), array.shape) for name, array in arrays.items()}
    write_blocks(path, shapes, ((name, 0, array) for name, array in arrays.items()))


class TensorFile:
    """A file of arrays, opened for reading; a context manager.

    Raises:
        TensorFileError: missing, cut or no safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = safe_open(str(path), framework="numpy")
            self.names: tuple[str, ...] = tuple(self._file.keys())
        except (OSError, SafetensorError) as error:
            raise TensorFileError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        del self._file

    def array(self, name: str) -> np.ndarray:
        """Returns a whole array; one of bfloat16 has the dtype BFLOAT16.

        Raises:
            TensorFileError: there is none of that name, or it is of a dtype that NumPy lacks.
        """
        self._check(name)
        if self._file.get_slice(name).get_dtype() == "BF16":
            return self._bfloat16(name)
        with self._readable(name):
            return self._file.get_tensor(name)

    def _bfloat16(self, name: str) -> np.ndarray:
        """Returns an array of bfloat16, which the library gives to no NumPy: read by the header it has checked."""
        with open(self.path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            start = parse_json(file.read(size))[name]["data_offsets"][0]
            shape = self.shape(name)
            file.seek(8 + size + start)
            return np.fromfile(file, "<u2", int(np.prod(shape, dtype=np.int64))).view(BFLOAT16).reshape(shape)

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns all arrays by name; raises as array()."""
        return {name: self.array(name) for name in self.names}

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns an array's shape."""
        self._check(name)
        return tuple(self._file.get_slice(name).get_shape())

    def rows(self, name: str, start: int, end: int) -> np.ndarray:
        """Returns the rows start..end of an array; only these are read. Raises as array()."""
        self._check(name)
        part = self._file.get_slice(name)
        with self._readable(name):
            return np.asarray(part[start : min(end, self._length(name))])

    def blocks(self, name: str, block: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yields first row and rows of an array, at most `block` rows at a time."""
        for start in range(0, self._length(name), block):
            yield start, self.rows(name, start, start + block)

    def _length(self, name: str) -> int:
        """Returns the number of an array's rows."""
        shape = self.shape(name)
        if not shape:
            raise TensorFileError(f"{self.path}: {shown(name)} is a number, no array")
        return shape[0]

    @contextmanager
    def _readable(self, name: str) -> Iterator[None]:
        """Has what the library raises for a dtype that NumPy lacks be one line."""
        try:
            yield
        except (TypeError, AttributeError, SafetensorError):
            kind = self._file.get_slice(name).get_dtype()
            raise TensorFileError(
                f"{self.path}: {shown(name)} is of {kind}, which NumPy lacks; save it as float32"
            ) from None

    def _check(self, name: str) -> None:
        if name not in self.names:
            raise TensorFileError(f"{self.path}: has no array '{name}'")

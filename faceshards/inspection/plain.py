"""Rows of any query as JSON, CSV or Parquet: bytes become hex, what nests becomes JSON, a batch at a time."""

from __future__ import annotations

import binascii
import json
import math
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from faceshards.errors import FaceshardsError

Batches = Iterator[pa.RecordBatch]


def write_json(batches: Batches, file: BinaryIO, end: str = "\n") -> None:
    """Writes rows as one array of JSON, a row on each line; NaN and infinity are null, as JSON has none."""
    before = "["
    for batch in batches:
        columns = [_jsonable(column).to_pylist() for column in batch.columns]
        if not len(batch):
            continue
        lines = (
            json.dumps(dict(zip(batch.schema.names, map(_json, row), strict=True)), ensure_ascii=False)
            for row in zip(*columns, strict=True)
        )
        file.write((before + "\n" + ",\n".join(lines)).encode())
        before = ","
    file.write((("[]" if before == "[" else "\n]") + end).encode())


def write_csv(schema: pa.Schema, batches: Batches, file: BinaryIO) -> None:
    """Writes rows as CSV with a line of names; null is an empty field, and text stands in quotes."""
    plain = pa.schema([(field.name, _text(pa.array([], field.type)).type) for field in schema])
    with pacsv.CSVWriter(file, plain) as writer:
        for batch in batches:
            writer.write_batch(as_text(batch).cast(plain))


def write_parquet(schema: pa.Schema, batches: Batches, path: Path) -> None:
    """Writes rows as Parquet, bytes as they are.

    Raises:
        FaceshardsError: a column's type has no place in Parquet.
    """
    try:
        with pq.ParquetWriter(path, schema) as writer:
            for batch in batches:
                writer.write_batch(batch.cast(schema))
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise FaceshardsError(f"cannot be written as Parquet: {' '.join(str(error).split())}; CAST it in SQL") from None


def as_text(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Returns a batch with bytes as hex, and what nests as JSON."""
    return pa.RecordBatch.from_arrays([_text(column) for column in batch.columns], names=batch.schema.names)


def _storage(column: pa.Array) -> pa.Array:
    return column.storage if isinstance(column, pa.ExtensionArray) else column


def _text(column: pa.Array) -> pa.Array:
    column = _storage(column)
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
    elif pa.types.is_fixed_size_binary(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return _hex(column)
    elif pa.types.is_decimal(kind) or pa.types.is_null(kind):
        return column.cast(pa.string())
    elif pa.types.is_nested(kind) or pa.types.is_interval(kind) or pa.types.is_duration(kind):
        values = (None if value is None else _json(value) for value in column.to_pylist())
        return pa.array(
            [v if v is None or isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values], pa.string()
        )
    return column


def _hex(column: pa.Array) -> pa.Array:
    """Returns bytes as hex: the buffer as a whole, since a digit of hex is half a byte everywhere."""
    column = pa.concat_arrays([column.cast(pa.large_binary())])  # no part of a larger buffer
    _, offsets, data = column.buffers()
    if not len(column) or data is None:
        return pa.array([None if value is None else "" for value in column.to_pylist()], pa.large_string())
    doubled = pc.multiply(pa.Array.from_buffers(pa.int64(), len(column) + 1, [None, offsets], offset=column.offset), 2)
    text = pa.py_buffer(binascii.hexlify(data))
    found = pa.Array.from_buffers(pa.large_string(), len(column), [None, doubled.buffers()[1], text])
    return pc.if_else(column.is_valid(), found, pa.scalar(None, pa.large_string())) if column.null_count else found


def _jsonable(column: pa.Array) -> pa.Array:
    column = _storage(column)
    kind = column.type
    return _hex(column) if pa.types.is_fixed_size_binary(kind) or pa.types.is_binary(kind) else column


def _json(value: Any) -> Any:
    """Returns a value as JSON can say it."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {str(key): _json(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(part) for part in value]
    return str(value)

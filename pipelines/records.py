"""The record table that the stages hand on: its columns, and why a record may leave.

One row per scanned record, in the order of the source. A row's *sid* (sample id) is its place in that order over the
whole set; it never changes, whatever is dropped, so it names a photograph in every table of the manifest.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

MAX_LABEL = (1 << 24) - 1
"""Largest identity a float32 label holds exactly; 2**24 itself may be 2**24 + 1 rounded."""

RECORD_SCHEMA = pa.schema(
    [
        pa.field("source", pa.int32(), False),  # place in the build's list of files
        pa.field("key", pa.string()),  # .idx key, "@offset" if the .idx lacks it, path in a folder; null: ordinal
        pa.field("ordinal", pa.int32(), False),  # place among the partition's records, the structural ones counted
        pa.field("offset", pa.int64(), False),  # byte of the record's first header
        pa.field("header", pa.int32(), False),  # bytes of the payload before the image
        pa.field("bytes", pa.int64(), False),  # encoded image
        pa.field("parts", pa.int32(), False),  # parts the payload was cut into; 1 but for escaped magic words
        pa.field("label", pa.int32(), False),  # identity in 0..MAX_LABEL, -1 if unusable
        pa.field("label_original", pa.string()),  # as the source says it
        pa.field("reason", pa.uint8(), False),  # CODE; 0 so far
        pa.field("detail", pa.string()),  # the cause in words, when reason is not 0
        pa.field("height", pa.int32(), False),  # pixels, 0 if unknown
        pa.field("width", pa.int32(), False),
        pa.field("sha256", pa.binary(32)),  # of the encoded image; null if it was never read
        pa.field("phash", pa.binary(32)),  # 256-bit perceptual hash; null if it did not decode
    ]
)

ROUTED_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int32()),
        pa.field("row", pa.int32()),
        pa.field("sid", pa.int64()),
        pa.field("source", pa.int32()),
        pa.field("key", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("header", pa.int32()),
        pa.field("bytes", pa.int64()),
        pa.field("parts", pa.int32()),
        pa.field("label", pa.int32()),
        pa.field("label_original", pa.string()),
        pa.field("sha256", pa.binary(32)),
        pa.field("phash", pa.binary(32)),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
    ]
)
"""What of a record that stays its shard needs, ordered by shard and row."""


def words_of(column: pa.ChunkedArray) -> np.ndarray:
    """Returns (N, 4) uint64 of a column of 32-byte values; zeros for nulls."""
    array = column.combine_chunks().fill_null(bytes(32))
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], pa.binary(32))
    data = array.buffers()[1]
    if data is None or not len(array):
        return np.zeros((0, 4), np.uint64)
    return np.frombuffer(data, np.uint64)[array.offset * 4 : (array.offset + len(array)) * 4].reshape(-1, 4)

"""The manifest's tables, column by column, and why a record may be dropped."""

from __future__ import annotations

import functools
import operator
from collections.abc import Collection, Iterable

import pyarrow as pa
import pyarrow.compute as pc

SCHEMA_VERSION = 2
"""Schema 1 has the same tables; its dataset.json has no checksum of its own (faceshards.dataset.upgrade)."""

REASONS: tuple[str, ...] = (
    "kept",
    "damaged",  # the RecordIO chain is broken here: flipped magic, wild length, cut file
    "missing",  # the .idx names a record that the .rec does not hold
    "undecodable",  # no image in the record, not JPEG or PNG, or the decoder refused it
    "too_large",  # more pixels than max_pixels: never decoded
    "wrong_size",  # decodes, but not at image_size
    "bad_label",  # NaN, infinite, negative, fractional, or beyond float32's exact integers
    "quarantined",  # decoding it killed the worker, alone and repeatedly
    "exact_duplicate",  # same bytes as the representative, same identity
    "near_duplicate",  # within near_within bits of the representative, same identity
    "label_conflict",  # the same photograph under another identity
    "min_images",  # its identity kept fewer than min_images
    "max_images",  # its identity had more than max_images
    "test_overlap",  # a picture of a set that the build was told to keep out (--exclude)
    "held_out",  # its identity was split off for verification (faceshards split)
)
"""Every record ends with one of these, or with a reason of a filter; code = place in this tuple (uint8), 0 is kept; the
filters' follow in a build's own order. Which of several causes it is booked under is told by the stages' order, not by
this one: a reason that comes later has its code at the end."""

CODE = {reason: code for code, reason in enumerate(REASONS)}

DROP_REASONS = REASONS[1:]

IDENTITY = ("label", "label_original", "scanned", "kept")
"""The columns of `identities` that are no drop reasons."""

SCHEMAS = {
    "images": pa.schema(
        [
            pa.field("sid", pa.int64(), False),
            pa.field("source", pa.string(), False),
            pa.field("key", pa.string(), False),
            pa.field("label_original", pa.string(), False),
            pa.field("label", pa.int32(), False),
            pa.field("shard", pa.int32(), False),
            pa.field("row", pa.int32(), False),
            pa.field("sha256", pa.binary(32), False),
            pa.field("phash", pa.binary(32), False),
            pa.field("bytes", pa.int64(), False),
            pa.field("height", pa.int32(), False),
            pa.field("width", pa.int32(), False),
        ]
    ),
    "identities": pa.schema(
        [
            pa.field("label", pa.int32()),
            pa.field("label_original", pa.string()),
            pa.field("scanned", pa.int64(), False),
            pa.field("kept", pa.int64(), False),
            *[pa.field(reason, pa.int64(), False) for reason in DROP_REASONS],
        ]
    ),
    "shards": pa.schema(
        [
            pa.field("shard", pa.int32(), False),
            pa.field("file", pa.string(), False),
            pa.field("rows", pa.int64(), False),
            pa.field("identities", pa.int64(), False),
            pa.field("bytes", pa.int64(), False),
            pa.field("sha256", pa.string(), False),
            pa.field("db_bytes", pa.int64(), False),
            pa.field("db_sha256", pa.string(), False),
        ]
    ),
    "dropped": pa.schema(
        [
            pa.field("sid", pa.int64(), False),
            pa.field("source", pa.string(), False),
            pa.field("key", pa.string(), False),
            pa.field("label_original", pa.string()),
            pa.field("reason", pa.string(), False),
            pa.field("detail", pa.string()),
            pa.field("representative", pa.int64()),
            pa.field("distance", pa.int16()),
        ]
    ),
    "conflicts": pa.schema(
        [
            pa.field("sid_a", pa.int64(), False),
            pa.field("sid_b", pa.int64(), False),
            pa.field("label_original_a", pa.string(), False),
            pa.field("label_original_b", pa.string(), False),
            pa.field("distance", pa.int16(), False),
            pa.field("exact", pa.bool_(), False),
            pa.field("mirrored", pa.bool_(), False),
        ]
    ),
    "identity_links": pa.schema(
        [
            pa.field("label_original_a", pa.string(), False),
            pa.field("label_original_b", pa.string(), False),
            pa.field("photographs", pa.int64(), False),
            pa.field("distance", pa.int16(), False),
        ]
    ),
}

LATER: dict[str, dict[str, int | bool]] = {
    "identities": {"test_overlap": 0, "held_out": 0},
    "conflicts": {"mirrored": False},
}
"""Columns that only sets have that were made with a use for them, and what they hold in the others."""


def schema_with(table: str, reasons: Iterable[str]) -> pa.Schema:
    """Returns the schema of a table in a set whose filters give further drop reasons: a column each in `identities`.

    Args:
        table: a name of SCHEMAS.
        reasons: besides DROP_REASONS.
    """
    more = [pa.field(reason, pa.int64(), False) for reason in reasons] if table == "identities" else []
    return pa.schema([*SCHEMAS[table], *more])


def schema_without(table: str, *columns: str) -> pa.Schema:
    """Returns the schema of a table that lacks some of the columns in LATER."""
    return pa.schema([field for field in SCHEMAS[table] if field.name not in columns])


def complete(table: str, rows: pa.Table) -> pa.Table:
    """Returns rows of a table with those columns of LATER that they lack, or have as nulls, filled in.

    Args:
        table: a name of SCHEMAS.
        rows: all columns of it that the file has, or those of LATER that are wanted as nulls.
    """
    for name, value in LATER.get(table, {}).items():
        field = SCHEMAS[table].field(name)
        if name not in rows.column_names:
            rows = rows.append_column(field, pa.repeat(pa.scalar(value, field.type), len(rows)))
        elif rows[name].null_count:
            rows = rows.set_column(rows.column_names.index(name), field, rows[name].fill_null(value))
    return rows


def stood_for(table: str, present: Collection[str]) -> pc.Expression:
    """Returns what holds for each row of a file of a table: what those columns of LATER stand for that it lacks.

    Args:
        table: a name of SCHEMAS.
        present: columns that the file has.
    """
    lacks = [pc.field(name) == value for name, value in LATER.get(table, {}).items() if name not in present]
    return functools.reduce(operator.and_, lacks, pc.scalar(True))

"""What a worker does with one partition: scan, sign, and the record table as a Parquet file."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from faceshards.errors import BuildError
from faceshards.files import replacing
from faceshards.reading import for_arrow
from faceshards.storage.location import Location
from pipelines.config import BuildConfig
from pipelines.filters.screen import MEASURED, BrokenFilterError
from pipelines.records import RECORD_SCHEMA
from pipelines.sources.base import Partition, Scanned, in_sample
from pipelines.sources.registry import scan
from pipelines.stages.origins import SPILL, keep
from pipelines.stages.signatures import sign

_COUNTS = ("records", "structural", "unindexed")


@dataclass(frozen=True)
class PartitionFacts:
    """How much a partition holds.

    Args:
        rows: of its table.
        records: of its file, damaged places counted.
        structural: header and identity records among them.
        unindexed: sound rows that the .idx does not name.
        read: rows that were read to find those of a sample; all of them without one.
        scanning, signing: seconds that it took; 0 if an earlier release did it.
    """

    rows: int
    records: int
    structural: int
    unindexed: int
    read: int = 0
    scanning: float = 0.0
    signing: float = 0.0


def sign_partition(
    part: Partition, config: BuildConfig, out: Location, keeps: bool = False, skip: frozenset[int] = frozenset()
) -> PartitionFacts:
    """Returns the facts of a partition after writing its record table to `out`: RECORD_SCHEMA, and the columns of
    values that filters measured.

    Args:
        part: the partition.
        config: of the build.
        out: Parquet file; its metadata hold the facts.
        keeps: the images are written beside it, before it, so that their source is not read a second time.
        skip: rows that kill the worker when they are decoded.

    Raises:
        SourceError: the file cannot be read.
        BuildError: a filter failed.
    """
    start = time.perf_counter()
    rows, read = _rows(part)
    scanned = time.perf_counter()
    column = _signed(part, rows, config, skip)
    if keeps:
        sound = [
            image for image, reason in zip(rows.images, rows.reason, strict=True) if image is not None and not reason
        ]
        keep(sound, out.with_suffix(SPILL))
    n = len(rows.images)
    table = pa.table(
        {
            "source": pa.array(np.full(n, part.source, np.int32)),
            "key": pa.array(rows.key, pa.string()),
            "ordinal": pa.array(rows.ordinal),
            "offset": pa.array(rows.offset, pa.int64()),
            "header": pa.array(rows.header.astype(np.int32)),
            "bytes": pa.array(rows.size, pa.int64()),
            "parts": pa.array(rows.parts, pa.int32()),
            "label": pa.array(rows.label),
            "label_original": pa.array(rows.label_original, pa.string()),
            "reason": pa.array(rows.reason),
            "detail": pa.array(rows.detail, pa.string()),
            "height": pa.array(column["height"]),
            "width": pa.array(column["width"]),
            "sha256": _binary(column["sha256"], column["signed"]),
            "phash": _binary(column["phash"], column["hashed"]),
        },
        schema=RECORD_SCHEMA,
    )
    for name in sorted(name for name in column if name.startswith(MEASURED)):
        table = table.append_column(name, pa.array(column[name]))
    counts = {name: str(getattr(rows, name)) for name in _COUNTS}
    pace = {"read": read, "scanning": scanned - start, "signing": time.perf_counter() - scanned}
    with replacing(out) as temporary:
        # No dictionary, no compression: read once or twice, then removed.
        facts = counts | {name: str(value) for name, value in pace.items()}
        pq.write_table(table.replace_schema_metadata(facts), temporary, compression="none", use_dictionary=False)
        return partition_facts(temporary)


def partition_facts(path: Location) -> PartitionFacts:
    """Returns the facts of a record table that `sign_partition` wrote, from its metadata alone."""
    footer = pq.read_metadata(for_arrow(path))
    found = footer.metadata or {}
    records, structural, unindexed = (int(found[name.encode()]) for name in _COUNTS)
    scanning, signing = (float(found.get(name, 0)) for name in (b"scanning", b"signing"))
    return PartitionFacts(
        footer.num_rows, records, structural, unindexed, int(found.get(b"read", 0)), scanning, signing
    )


def probe_rows(part: Partition, config: BuildConfig, low: int, high: int) -> int:
    """Signs rows [low, high) of a partition and forgets the result: does the worker survive them?"""
    rows, _ = _rows(part)
    others = frozenset(range(len(rows.images))) - frozenset(range(low, high))
    _signed(part, rows, config, others)
    return high - low


def _signed(part: Partition, rows: Scanned, config: BuildConfig, skip: frozenset[int]) -> dict[str, np.ndarray]:
    """Returns what sign() does, and says of a filter that fails at which record."""
    try:
        return sign(rows, config, skip)
    except BrokenFilterError as error:
        key = rows.key[error.row]
        where = f"record at byte {rows.offset[error.row]}" if key is None else f"record {key}"
        raise BuildError(f"{part.path}: {where}: {error}") from None


def count_rows(part: Partition) -> int:
    """Returns the number of rows in a partition, without decoding any."""
    rows, _ = _rows(part)
    return len(rows.images)


def _rows(part: Partition) -> tuple[Scanned, int]:
    """Returns the rows of a partition, or those of its sample, and how many were read."""
    rows = scan(part)
    read = len(rows.images)
    if part.share < 1:
        # What has no label to be read stands for itself.
        places = zip(rows.label_original, rows.offset.tolist(), strict=True)
        rows = rows.take(in_sample((f"@{at}" if name is None else name for name, at in places), part.share))
    return rows, read


def _binary(values: np.ndarray, valid: np.ndarray) -> pa.Array:
    """Returns (N, 32) uint8 as a column of 32-byte values, null where not valid."""
    bitmap = pa.py_buffer(np.packbits(valid, bitorder="little").tobytes())
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(32), len(values), [bitmap, pa.py_buffer(np.ascontiguousarray(values))]
    )

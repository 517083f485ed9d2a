"""The global step between signing and writing: which records stay, under which label, in which shard and row.

The only step that looks at the whole set at once; it needs about 100 bytes of memory per image.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from faceshards.dataset.schema import CODE, DROP_REASONS, LATER, REASONS, SCHEMAS, schema_with, schema_without
from faceshards.errors import EmptyDatasetError
from faceshards.files import write_json, write_parquet
from faceshards.formats.mindrecord.geometry import geometry
from faceshards.reading import for_arrow
from faceshards.storage.location import Location
from pipelines.config import BuildConfig
from pipelines.dedupe.overlap import Finder, Overlaps, Pictures, find_overlaps
from pipelines.dedupe.policy import Dedupe, dedupe, same_bytes
from pipelines.records import words_of
from pipelines.stages.balance import Balance, Placement, balance, shard_count

log = logging.getLogger(__name__)

_M_MMAP_THRESHOLD = -3  # as malloc.h has it


@dataclass
class Columns:
    """The whole set's columns, one entry per record in order of sid.

    Args:
        reason: (N,) uint8 records.CODE.
        label: (N,) int32, -1 where there is none.
        sha: (N, 2) uint64, the first 16 bytes of the sha256; zeros where it was not read.
        phash: (N, 4) uint64; zeros where it did not decode.
        size: (N,) int32, bytes of the encoded image.
    """

    reason: np.ndarray
    label: np.ndarray
    sha: np.ndarray
    phash: np.ndarray
    size: np.ndarray


def give_back() -> None:
    """Has this process give an array of some MB back to the system as soon as it is freed; for a process of our own.

    glibc keeps those of up to 32 MB, and what lives on between them keeps their room: 58 MB of 2 million images'.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 4 << 20)


def load_columns(parts: Sequence[Location], rows: Sequence[int]) -> Columns:
    """Returns the columns of all record tables.

    Args:
        parts: the tables, in order.
        rows: how many each has.
    """
    n = sum(rows)
    out = Columns(
        np.empty(n, np.uint8),
        np.empty(n, np.int32),
        np.empty((n, 2), np.uint64),
        np.empty((n, 4), np.uint64),
        np.empty(n, np.int32),
    )
    at = 0
    for path, count in zip(parts, rows, strict=True):
        names = ["reason", "label", "sha256", "phash", "bytes"]
        table = pq.read_table(for_arrow(path), columns=names, use_threads=False)
        here = slice(at, at + count)
        out.reason[here] = table["reason"].to_numpy()
        out.label[here] = table["label"].to_numpy()
        out.size[here] = table["bytes"].to_numpy()
        out.sha[here] = words_of(table["sha256"])[:, :2]
        out.phash[here] = words_of(table["phash"])
        at += count
    # Of 2 million images Arrow keeps 80 MB of what was read, an .idx above all; deciding needs the room.
    pa.default_memory_pool().release_unused()
    return out


def decide(
    columns: Columns,
    names: Sequence[str] | None,
    config: BuildConfig,
    threads: int,
    out: Path,
    pictures: Pictures | None = None,
) -> None:
    """Writes the folder `out`, whole or not at all: decisions for every record, and the global tables.

    It holds reason, representative, distance, label, shard, row (.npy, one entry per sid), the manifest's identities,
    conflicts and identity_links (.parquet), details of some drops (.parquet), and facts.json (shards, their geometry,
    identities, dedupe statistics, scanned, kept).

    What is broken in itself, or sorted out by a filter, is gone already. Then goes what is one of the pictures, then
    copies and conflicts among the rest, and at last what max_images and min_images say.

    Args:
        columns: the whole set; emptied on the way, to save memory.
        names: identity names of an image folder by label; None for RecordIO, whose labels are their own names.
        config: of the build.
        threads: to search duplicates with.
        out: folder to make.
        pictures: that the set may not have.

    Raises:
        EmptyDatasetError: no record is left to publish.
    """
    reason, label = columns.reason, columns.label
    overlaps = _keep_out(columns, pictures, config, threads) if pictures else None
    taking_part = np.where(reason == 0, label, -1).astype(np.int32)
    same = same_bytes(taking_part, columns.sha)
    columns.sha = np.zeros((0, 2), np.uint64)
    found = dedupe(taking_part, same, columns.phash, columns.size, config, threads)
    columns.phash = np.zeros((0, 4), np.uint64)
    del taking_part, same
    if overlaps:
        found.distance[overlaps.row] = overlaps.distance
    reason = np.where(reason == 0, found.reason, reason)
    planned = balance(label, reason == 0, config)
    reason = np.where(reason == 0, planned.reason, reason)
    kept = reason == 0
    count = int(kept.sum())
    filtered = config.filter_reasons
    numbered = enumerate((*DROP_REASONS, *filtered), 1)
    lost = {name: number for code, name in numbered if (number := int((reason == code).sum()))}
    if not count:
        causes = ", ".join(f"{name} {number}" for name, number in lost.items())
        raise EmptyDatasetError(
            f"nothing to publish: {len(reason)} records scanned, none kept ({causes or 'none found'})"
        )
    shards = shard_count(int(columns.size[kept].sum(dtype=np.int64)), count, config)
    temporary = out.with_name(f".{out.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    placed = planned.place(shards)
    _save_columns(reason, found, planned, placed, temporary)
    identities = _identities(label, reason, planned.label, names, filtered)
    unused = LATER["identities"].keys() - ({"test_overlap"} if pictures else set())
    identities = identities.drop_columns(sorted(unused))
    write_parquet(identities, temporary / "identities.parquet")
    _write_conflicts(found, label, names, config.near_mirror >= 0, temporary)
    details = pa.table({"sid": found.mirrored_rows, "detail": pa.repeat("mirrored", len(found.mirrored_rows))})
    if pictures and overlaps:
        evidence = pa.table({"sid": overlaps.row, "detail": overlaps.details(pictures)})
        details = pa.concat_tables([details, evidence]).sort_by("sid")
    write_parquet(details, temporary / "details.parquet")
    facts = {
        "shards": shards,
        "geometry": geometry(placed.by_shard(columns.size))._asdict(),
        "identities": int(planned.label.max()) + 1,
        "scanned": len(reason),
        "kept": count,
        "dropped": lost,
        "conflicts": len(found.conflicts),
        "identity_links": len(found.identity_links),
        "dedupe": found.statistics,
    }
    if pictures and overlaps:
        facts["dedupe"] = {**found.statistics, "test_overlap": overlaps.per_set(pictures)}
    write_json(facts, temporary / "facts.json")
    os.replace(temporary, out)


def _keep_out(columns: Columns, pictures: Pictures, config: BuildConfig, threads: int) -> Overlaps:
    """Returns the records that are one of the pictures, once they are dropped in `columns`."""
    rows = np.flatnonzero((columns.reason == 0) & (columns.label >= 0))
    found = find_overlaps(Finder(pictures, config.near_across), columns.sha, columns.phash, rows, threads)
    columns.reason[found.row] = CODE["test_overlap"]
    return found


def _save_columns(reason: np.ndarray, found: Dedupe, planned: Balance, placed: Placement, folder: Path) -> None:
    """Writes what was decided for every record, an .npy a column."""
    columns = {
        "reason": reason,
        "representative": found.representative,
        "distance": found.distance,
        "label": planned.label,
        "shard": placed.shard,
        "row": placed.row,
    }
    for name, column in columns.items():
        np.save(folder / f"{name}.npy", column)


def _name(labels: np.ndarray, names: Sequence[str] | None) -> pa.Array:
    """Returns label_original of labels."""
    if names is None:
        return pa.array(labels, pa.int64()).cast(pa.string())
    return pa.array([names[i] for i in labels.tolist()], pa.string())


def _identities(
    label: np.ndarray,
    reason: np.ndarray,
    new_label: np.ndarray,
    names: Sequence[str] | None,
    filtered: Sequence[str],
) -> pa.Table:
    """Returns the table `identities`: one row per label of the source, and one for the records that have none."""
    reasons = (*REASONS, *filtered)
    present, where = np.unique(label, return_inverse=True)
    counts = np.bincount(where * len(reasons) + reason, minlength=len(present) * len(reasons))
    counts = counts.reshape(-1, len(reasons))  # (identities, reasons)
    fresh = np.full(len(present), -1, np.int32)
    fresh[where[reason == 0]] = new_label[reason == 0]
    order = np.lexsort((present, fresh < 0, present < 0))
    counts, fresh, present = counts[order], fresh[order], present[order]
    nameless = present < 0
    original = _name(np.where(nameless, 0, present), names)
    columns = {
        "label": pa.array(fresh, mask=fresh < 0),
        "label_original": pa.array(original.to_pylist(), pa.string(), mask=nameless),
        "scanned": pa.array(counts.sum(1)),
        "kept": pa.array(counts[:, 0]),
    }
    columns |= {name: pa.array(counts[:, code]) for code, name in enumerate(reasons) if code}
    return pa.table(columns, schema_with("identities", filtered))


def _write_conflicts(
    found: Dedupe, label: np.ndarray, names: Sequence[str] | None, mirrored: bool, folder: Path
) -> None:
    pairs, links = found.conflicts, found.identity_links
    columns = {
        "sid_a": pa.array(pairs["row_a"]),
        "sid_b": pa.array(pairs["row_b"]),
        "label_original_a": _name(label[pairs["row_a"]], names),
        "label_original_b": _name(label[pairs["row_b"]], names),
        "distance": pa.array(pairs["distance"]),
        "exact": pa.array(pairs["exact"]),
    }
    if mirrored:
        columns["mirrored"] = pa.array(found.mirrored_conflicts)
    schema = schema_without("conflicts", *LATER["conflicts"].keys() - columns.keys())
    write_parquet(pa.table(columns, schema), folder / "conflicts.parquet")
    columns = {
        "label_original_a": _name(links["label_a"], names),
        "label_original_b": _name(links["label_b"], names),
        "photographs": pa.array(links["photographs"]),
        "distance": pa.array(links["distance"]),
    }
    write_parquet(pa.table(columns, SCHEMAS["identity_links"]), folder / "identity_links.parquet")

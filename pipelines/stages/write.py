"""Stage write: turns a shard's rows, gathered from what `route` wrote of every partition, into files.

The two are a sort-shuffle on disk: each partition writes one file, ordered by (shard, row), and each shard reads its
stretch of every such file. No process holds more than one partition or one shard's rows. Images come from the sources,
or lie in the same order beside the rows (origins.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from faceshards.dataset.row_check import check_rows
from faceshards.dataset.schema import SCHEMAS
from faceshards.errors import ShardError
from faceshards.files import making, move, write_json, write_parquet
from faceshards.formats.mindrecord.geometry import Geometry
from faceshards.formats.mindrecord.reader import Shard
from faceshards.formats.mindrecord.writer import write_shard
from faceshards.hashing import splitmix64
from faceshards.storage.location import Location
from pipelines.stages.origins import Origin, Spilled, stretches
from pipelines.stages.sections import Routed, at_hand

_SAMPLE = 64  # rows of a shard whose images are read back, besides the first and last of each row group


def gather(shard: int, routed: Sequence[Path]) -> pa.Table:
    """Returns the rows of a shard, in order, ROUTED_SCHEMA.

    Args:
        shard: its number.
        routed: what `route` wrote, for every partition.
    """
    # Views: the mappings outlive the files until the rows are copied below.
    pieces = [table.slice(low, high - low) for _, table, low, high in stretches(shard, routed)]
    found = pa.concat_tables(pieces).combine_chunks()
    return found.take(pa.array(np.argsort(found["row"].to_numpy(), kind="stable"))).combine_chunks()


def write(
    shard: int, origin: Origin, geometry: Geometry, routed: Routed, images: Location, shards: Location, done: Location
) -> int:
    """Returns the rows of a shard after writing its MindRecord files, its part of the table `images`, and `done`.

    Every image is compared with the sha256 that was signed as it comes from its origin, the file is hashed as it goes
    to disk. Before it counts it is opened as a reader does: structure, all labels and sids, and of a sample of rows the
    images. All of them would prove no more of the disk, since they would come from the page cache.

    Args:
        shard: its number.
        origin: where the images come from.
        geometry: page and header size of the set's shards.
        routed: what `route` wrote, for every partition.
        images: folder of the table's parts.
        shards: folder of the shard files.
        done: JSON file that says the shard is finished, with its facts; written last.

    Raises:
        ShardError: it cannot be written, or is not read back as it was written.
        SourceError: a source changed.
        BuildError: what was carried along is damaged.
    """
    with at_hand(routed, isinstance(origin, Spilled)) as here:
        if isinstance(origin, Spilled):
            origin = Spilled(origin.names, here)
        return _write(shard, origin, geometry, here, images, shards, done)


def _write(
    shard: int,
    origin: Origin,
    geometry: Geometry,
    routed: Sequence[Path],
    images: Location,
    shards: Location,
    done: Location,
) -> int:
    table = gather(shard, routed)
    name = f"shard-{shard:05d}.mindrecord"
    # Its name is inside the file, so it is written under that name, in a folder of its own.
    with making(name, shards) as room:
        path = room / name
        sizes, labels, sids = (table[column].to_numpy() for column in ("bytes", "label", "sid"))
        info = write_shard(path, origin.images(table), sizes, labels, sids, **geometry._asdict())
        _read_back(path, table, shard)
        columns = [column for column in SCHEMAS["images"].names if column != "source"]
        sources = pa.array([origin.names[i] for i in table["source"].to_pylist()], pa.string())
        part = table.select(columns).add_column(1, "source", sources).cast(SCHEMAS["images"])
        write_parquet(part, images / f"part-{shard:05d}.parquet")
        for entry, digest in ((f"{name}.db", info.db_sha256), (name, info.sha256)):
            move(room / entry, shards / entry, digest)
    facts = {"shard": shard, "file": name, "identities": len(np.unique(labels)), **dataclasses.asdict(info)}
    write_json({**facts, "image_bytes": int(sizes.sum())}, done)
    return len(table)


def _read_back(path: Path, table: pa.Table, seed: int) -> None:
    """Compares a shard that was just written with its rows: labels and sids of all, images of a sample.

    Args:
        path: of the shard.
        table: its rows in order.
        seed: of the sample.

    Raises:
        ShardError: it is not what was to be written.
    """
    rows, about = np.arange(len(table)), "was not read back as it was scanned"
    with Shard(path) as shard:
        for name, found in zip(("label", "sid"), shard.numbers(), strict=True):
            if not np.array_equal(found, table[name].to_numpy()):
                raise ShardError(path, f"{about}: its column {name} is not the manifest's")
        starts = np.array(shard.starts)
        drawn = np.argsort(splitmix64(seed, 0, rows), kind="stable")[:_SAMPLE]
        for problem in check_rows(
            shard, table, np.unique(np.concatenate([drawn, starts, starts - 1, rows[-1:]]) % len(rows))
        ):
            raise ShardError(path, f"{about}: {problem}")

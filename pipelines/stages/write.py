"""Stage write: turns a shard's rows, gathered from what `route` wrote of every partition, into files.

The two are a sort-shuffle on disk: each partition writes one file, ordered by (shard, row), and each shard reads its
stretch of every such file. No process holds more than one partition or one shard's rows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from faceshards.dataset.row_check import check_rows
from faceshards.dataset.schema import SCHEMAS
from faceshards.errors import ShardError, SourceError
from faceshards.files import write_json, write_parquet
from faceshards.formats.mindrecord.geometry import Geometry
from faceshards.formats.mindrecord.reader import Shard
from faceshards.formats.mindrecord.writer import write_shard
from faceshards.hashing import splitmix64
from pipelines.sources.base import OpenFiles, Place, SourceFile
from pipelines.sources.registry import read_images

_BLOCK = 512  # images read at once, in order of their place in the source
_PLACE = ("key", "offset", "header", "bytes", "parts")
_SAMPLE = 64  # rows of a shard whose images are read back, besides the first and last of each row group


def gather(shard: int, routed: list[Path]) -> pa.Table:
    """Returns the rows of a shard, in order, ROUTED_SCHEMA.

    Args:
        shard: its number.
        routed: what `route` wrote, for every partition.
    """
    pieces = []
    for path in routed:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
            if not len(table):
                continue
            column = table["shard"].chunk(0).to_numpy()
            low, high = np.searchsorted(column, (shard, shard + 1))
            if low < high:  # a view: the mapping outlives the file until the rows are copied below
                pieces.append(table.slice(low, high - low))
    found = pa.concat_tables(pieces).combine_chunks()
    return found.take(pa.array(np.argsort(found["row"].to_numpy(), kind="stable"))).combine_chunks()


class Origin(Protocol):
    """Where the images of shards come from; picklable."""

    names: list[str]
    """Of the sources, by their place in the build's list."""

    def images(self, table: pa.Table) -> Iterator[bytes]:
        """Yields the images of a table's rows in order, each compared with its sha256.

        Raises:
            FaceshardsError: one is not what was signed; names file and record.
        """


class Sources:
    """The files of a build, as where its images come from.

    Args:
        files: the build's files.
    """

    def __init__(self, files: list[SourceFile]) -> None:
        self.files, self.names = files, [file.name for file in files]

    def images(self, table: pa.Table) -> Iterator[bytes]:
        """Yields the images of a table's rows in order, ROUTED_SCHEMA; each block of them is read in order of place.

        Raises:
            SourceError: an image is not what was signed.
        """
        with OpenFiles() as opened:
            for start in range(0, len(table), _BLOCK):
                yield from self._block(table.slice(start, _BLOCK).combine_chunks(), opened)

    def _block(self, rows: pa.Table, opened: OpenFiles) -> list[bytes]:
        """Returns the images of some rows, each compared with the sha256 that was signed."""
        places = list(map(Place._make, zip(*(rows[name].to_pylist() for name in _PLACE), strict=True)))
        signed = rows["sha256"].to_numpy(zero_copy_only=False)
        sources, images = rows["source"].to_numpy(), [b""] * len(rows)
        order = np.lexsort((rows["offset"].to_numpy(), sources))
        for group in np.split(order, np.flatnonzero(np.diff(sources[order])) + 1):
            file, at = self.files[sources[group[0]]], group.tolist()
            wanted = [places[i] for i in at]
            opened.read_ahead(file, wanted)
            for i, image in zip(at, read_images(file, wanted, opened), strict=True):
                if hashlib.sha256(image).digest() != signed[i]:
                    key = places[i].key
                    raise SourceError(f"{file.path}: record {key} changed since it was scanned: its sha256 is another")
                images[i] = image
        return images


def write(
    shard: int, origin: Origin, geometry: Geometry, routed: list[Path], images: Path, shards: Path, done: Path
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
    """
    table = gather(shard, routed)
    name = f"shard-{shard:05d}.mindrecord"
    # Its name is inside the file, so it is written under that name, in a folder of its own.
    room = shards / f".{name}.{uuid.uuid4().hex}"
    room.mkdir()
    try:
        path = room / name
        sizes, labels, sids = (table[column].to_numpy() for column in ("bytes", "label", "sid"))
        info = write_shard(path, origin.images(table), sizes, labels, sids, **geometry._asdict())
        _read_back(path, table, shard)
        columns = [column for column in SCHEMAS["images"].names if column != "source"]
        sources = pa.array([origin.names[i] for i in table["source"].to_pylist()], pa.string())
        part = table.select(columns).add_column(1, "source", sources).cast(SCHEMAS["images"])
        write_parquet(part, images / f"part-{shard:05d}.parquet")
        for entry in (f"{name}.db", name):
            os.replace(room / entry, shards / entry)
    finally:
        for leftover in room.iterdir():
            leftover.unlink()
        room.rmdir()
    facts = {"shard": shard, "file": name, "identities": len(np.unique(labels)), **dataclasses.asdict(info)}
    write_json(facts, done)
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

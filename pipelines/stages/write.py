"""Stage write: turns a shard's rows, gathered from what `route` wrote of every partition, into files.

The two are a sort-shuffle on disk: each partition writes one file, ordered by (shard, row), and each shard reads its
stretch of every such file. No process holds more than one partition or one shard's rows.
"""

from __future__ import annotations

import dataclasses
import itertools
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
from faceshards.formats.mindrecord.reader import Shard
from faceshards.formats.mindrecord.writer import write_shard
from pipelines.sources.base import OpenFiles, Place, SourceFile
from pipelines.sources.registry import read_image

_BLOCK = 512  # images read at once, in order of their place in the source


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
            if low < high:  # a copy: the mapping ends here
                pieces.append(table.slice(low, high - low).take(pa.array(np.arange(high - low))))
    return pa.concat_tables(pieces).sort_by("row").combine_chunks()


class Origin(Protocol):
    """Where the images of shards come from; picklable."""

    names: list[str]
    """Of the sources, by their place in the build's list."""

    def images(self, table: pa.Table) -> Iterator[bytes]:
        """Yields the images of a table's rows in order."""


class Sources:
    """The files of a build, as where its images come from.

    Args:
        files: the build's files.
    """

    def __init__(self, files: list[SourceFile]) -> None:
        self.files, self.names = files, [file.name for file in files]

    def images(self, table: pa.Table) -> Iterator[bytes]:
        """Yields the images of a table's rows in order, ROUTED_SCHEMA.

        Raises:
            SourceError: an image is not what was signed.
        """
        with OpenFiles() as opened:
            yield from _images(table, self.files, opened)


def _images(table: pa.Table, files: list[SourceFile], opened: OpenFiles) -> Iterator[bytes]:
    """Yields images, reading each block of them in order of their place on disk."""
    names = ("source", "key", "offset", "header", "bytes", "parts")
    for start in range(0, len(table), _BLOCK):
        block = table.slice(start, _BLOCK)
        sources, *columns = (block[name].to_pylist() for name in names)
        places = [Place(*row) for row in zip(*columns, strict=True)]
        images: list[bytes] = [b""] * len(places)
        order = sorted(range(len(places)), key=lambda i: (sources[i], places[i].offset))
        for source, some in itertools.groupby(order, key=lambda i: sources[i]):
            opened.read_ahead(files[source], [places[i] for i in some])
        for i in order:
            file, place = files[sources[i]], places[i]
            images[i] = image = read_image(file, place, opened)
            if len(image) != place.size:
                raise SourceError(f"{file.path}: record {place.key} changed since it was scanned")
        yield from images


def write(shard: int, origin: Origin, routed: list[Path], images: Path, shards: Path, done: Path) -> int:
    """Returns the rows of a shard after writing its MindRecord files, its part of the table `images`, and `done`.

    The file is read back before it counts: its structure and every image against the sha256 that was signed.

    Args:
        shard: its number.
        origin: where the images come from.
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
        info = write_shard(path, origin.images(table), sizes, labels, sids)
        with Shard(path) as shard_file:
            for problem in check_rows(shard_file, table):
                raise ShardError(path, f"was not read back as it was scanned: {problem}")
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

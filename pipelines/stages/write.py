"""Stages that move images: route sorts a partition's survivors by shard, write turns a shard's rows into files.

Together they are a sort-shuffle on disk: each partition writes one file, ordered by (shard, row), and each shard reads
its stretch of every such file. No process holds more than one partition or one shard's rows.
"""

from __future__ import annotations

import dataclasses
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from faceshards.dataset.schema import SCHEMAS
from faceshards.dataset.verify import check_rows
from faceshards.errors import ShardError, SourceError
from faceshards.files import write_json, write_parquet
from faceshards.formats.mindrecord.reader import Shard
from faceshards.formats.mindrecord.writer import write_shard
from faceshards.formats.recordio import read_payload
from pipelines.sources.base import SourceFile

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


class ImageReader:
    """Reads images back from the sources by their place; keeps the files open.

    Args:
        files: the build's files, as they were when it started.
    """

    def __init__(self, files: list[SourceFile]) -> None:
        self.files = files
        self._open: dict[int, int] = {}

    def read(self, source: int, key: str, offset: int, header: int, size: int, parts: int) -> bytes:
        """Returns the encoded image of a row.

        Raises:
            SourceError: the file changed, or went away, since it was scanned.
        """
        file = self.files[source]
        try:
            if file.kind == "folder":
                with open(os.path.join(file.path, key), "rb") as handle:
                    return handle.read()
            if source not in self._open:
                self._open[source] = os.open(file.path, os.O_RDONLY)
                stat = os.fstat(self._open[source])
                if (stat.st_size, stat.st_mtime_ns) != (file.bytes, file.mtime_ns):
                    raise SourceError(f"{file.path}: changed since it was scanned")
            if parts == 1:
                return os.pread(self._open[source], size, offset + 8 + header)
            return read_payload(self._open[source], offset, header + size, parts)[header:]
        except OSError as error:
            raise SourceError(f"{file.path}: {error.strerror}") from None

    def close(self) -> None:
        """Closes the files."""
        for handle in self._open.values():
            os.close(handle)


def _images(table: pa.Table, reader: ImageReader) -> Iterator[bytes]:
    """Yields the images of a table's rows in order, reading each block of them in order of their place on disk.

    Raises:
        SourceError: an image is not what was signed.
    """
    names = ("source", "key", "offset", "header", "bytes", "parts")
    for start in range(0, len(table), _BLOCK):
        block = table.slice(start, _BLOCK)
        rows = list(zip(*(block[name].to_pylist() for name in names), strict=True))
        images: list[bytes] = [b""] * len(rows)
        for i in sorted(range(len(rows)), key=lambda i: (rows[i][0], rows[i][2])):
            images[i] = image = reader.read(*rows[i])
            if len(image) != rows[i][4]:
                raise SourceError(f"{reader.files[rows[i][0]].path}: record {rows[i][1]} changed since it was scanned")
        yield from images


def write(shard: int, files: list[SourceFile], routed: list[Path], images: Path, shards: Path, done: Path) -> int:
    """Returns the rows of a shard after writing its MindRecord files, its part of the table `images`, and `done`.

    The file is read back before it counts: its structure and every image against the sha256 that was signed.

    Args:
        shard: its number.
        files: the build's files.
        routed: what `route` wrote, for every partition.
        images: folder of the table's parts.
        shards: folder of the shard files.
        done: JSON file that says the shard is finished, with its facts; written last.

    Raises:
        ShardError: it cannot be written, or is not read back as it was written.
        SourceError: a source changed.
    """
    table = gather(shard, routed)
    reader = ImageReader(files)
    name = f"shard-{shard:05d}.mindrecord"
    # Its name is inside the file, so it is written under that name, in a folder of its own.
    room = shards / f".{name}.{uuid.uuid4().hex}"
    room.mkdir()
    try:
        path = room / name
        sizes, labels, sids = (table[column].to_numpy() for column in ("bytes", "label", "sid"))
        info = write_shard(path, _images(table, reader), sizes, labels, sids)
        with Shard(path) as shard_file:
            for problem in check_rows(shard_file, table):
                raise ShardError(path, f"was not read back as it was scanned: {problem}")
        columns = [column for column in SCHEMAS["images"].names if column != "source"]
        sources = pa.array([files[i].name for i in table["source"].to_pylist()], pa.string())
        part = table.select(columns).add_column(1, "source", sources).cast(SCHEMAS["images"])
        write_parquet(part, images / f"part-{shard:05d}.parquet")
        for entry in (f"{name}.db", name):
            os.replace(room / entry, shards / entry)
    finally:
        reader.close()
        for leftover in room.iterdir():
            leftover.unlink()
        room.rmdir()
    facts = {"shard": shard, "file": name, "identities": len(np.unique(labels)), **dataclasses.asdict(info)}
    write_json(facts, done)
    return len(table)

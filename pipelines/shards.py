"""Stages that move images: route sorts a partition's survivors by shard, write turns a shard's rows into files.

Together they are a sort-shuffle on disk: each partition writes one file, ordered by (shard, row), and each shard reads
its stretch of every such file. No process holds more than one partition or one shard's rows.
"""

from __future__ import annotations

import dataclasses
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import ShardError, SourceError
from pipelines.manifest import ROW_GROUP, SCHEMAS
from pipelines.mindrecord import Shard, write_shard
from pipelines.recordio import read_payload
from pipelines.records import REASONS
from pipelines.sources import SourceFile
from pipelines.verify import check_rows

_BLOCK = 512  # images read at once, in order of their place in the source

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


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a name beside `path` to write to; it becomes `path` only if all went well, and is removed if not."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_parquet(table: pa.Table, path: Path) -> None:
    """Writes a table to `path`, whole or not at all."""
    with replacing(path) as temporary:
        pq.write_table(table, temporary, row_group_size=ROW_GROUP)


def route(
    records: Path, decisions: Path, sid: int, ordinal: int, sources: list[str], routed: Path, dropped: Path
) -> int:
    """Returns the rows of a partition after writing its survivors, ordered by shard and row, and its dropped rows.

    Args:
        records: the partition's record table.
        decisions: folder of whole-set columns (reason, representative, distance, label, shard, row).
        sid: of the partition's first row.
        ordinal: of its first record in its file.
        sources: names of the build's files.
        routed: Arrow file to write, ROUTED_SCHEMA.
        dropped: Parquet file to write, SCHEMAS["dropped"].
    """
    table = pq.read_table(records)
    n = len(table)
    column = {
        name: np.array(np.load(decisions / f"{name}.npy", mmap_mode="r")[sid : sid + n])
        for name in ("reason", "representative", "distance", "label", "shard", "row")
    }
    keys, ordinals = table["key"].to_pylist(), table["ordinal"].to_numpy()
    keys = [str(ordinal + int(at)) if key is None else key for key, at in zip(keys, ordinals, strict=True)]
    table = table.set_column(table.column_names.index("key"), "key", pa.array(keys, pa.string()))
    table = table.append_column("sid", pa.array(np.arange(sid, sid + n)))
    kept = np.flatnonzero(column["reason"] == 0)
    kept = kept[np.lexsort((column["row"][kept], column["shard"][kept]))]
    out = table.drop_columns(["label"]).take(kept)
    for name in ("label", "shard", "row"):
        out = out.append_column(name, pa.array(column[name][kept]))
    out = out.select(ROUTED_SCHEMA.names).cast(ROUTED_SCHEMA).combine_chunks()
    with replacing(routed) as temporary, pa.ipc.new_file(str(temporary), ROUTED_SCHEMA) as writer:
        writer.write_table(out)
    gone = np.flatnonzero(column["reason"])
    lost = table.take(gone)
    names = np.array(sources, object)[lost["source"].to_numpy()]
    stands = column["representative"][gone]
    reasons = np.array(REASONS, object)[column["reason"][gone]]
    columns = {
        "sid": lost["sid"],
        "source": pa.array(names, pa.string()),
        "key": lost["key"],
        "label_original": lost["label_original"],
        "reason": pa.array(reasons, pa.string()),
        "detail": lost["detail"],
        "representative": pa.array(stands, pa.int64(), mask=stands < 0),
        "distance": pa.array(column["distance"][gone], pa.int16(), mask=stands < 0),
    }
    write_parquet(pa.table(columns, SCHEMAS["dropped"]), dropped)
    return n


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


def write_json(value: object, path: Path) -> None:
    """Writes JSON to `path`, whole or not at all, and on disk when it returns."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())

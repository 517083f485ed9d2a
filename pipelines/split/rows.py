"""What a split does with a dataset's rows: a sort-shuffle on disk, as builds have it, and the images they stand for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from faceshards.dataset.manifest import Manifest
from faceshards.dataset.schema import SCHEMAS
from faceshards.dataset.shard_images import blocks, frame_offsets
from faceshards.files import replacing, write_parquet
from faceshards.storage.location import Location

WINDOW = 1 << 20
"""Sids whose dropped rows are put together at once."""


class Shards:
    """The shards of a dataset, as where the images of a split come from.

    Args:
        dataset: its folder.
        names: of its sources.
    """

    def __init__(self, dataset: Location, names: list[str]) -> None:
        self.dataset, self.names = dataset, names

    def images(self, table: pa.Table) -> Iterator[bytes]:
        """Yields the images of rows in order, each compared with its sha256.

        Args:
            table: what `route` wrote of rows that stay.

        Raises:
            ShardError: an image is not the manifest's.
        """
        rows = table.select(["old_shard", "old_row", "offset", "bytes", "sha256"])
        for _, images in blocks(Manifest(self.dataset), rows.rename_columns({"old_shard": "shard", "old_row": "row"})):
            yield from images


def route(dataset: Location, number: int, decisions: Path, names: list[str], routed: Path, held: Path) -> int:
    """Returns the rows of a shard after writing those that stay by their new shard and row, and the others by sid.

    Args:
        dataset: its folder.
        number: of the shard.
        decisions: folder of label.npy, shard.npy and row.npy, one entry per sid: -1 for what does not stay.
        names: of the dataset's sources.
        routed: Arrow file to write: `images` with the new label, shard and row, the source by number, and the old
            shard, row and offset in it.
        held: Arrow file to write: `images` as they were, and the offset in the shard.

    Raises:
        ManifestError: a table is damaged.
        ShardError: the shard is not as the manifest says.
    """
    manifest = Manifest(dataset)
    rows = manifest.table("images", shard=number).sort_by("row").combine_chunks()
    rows = rows.append_column("offset", pa.array(frame_offsets(manifest, number, rows["bytes"].to_numpy())))
    sids = rows["sid"].to_numpy()
    label, shard, row = (np.load(decisions / f"{name}.npy", mmap_mode="r")[sids] for name in ("label", "shard", "row"))
    stays = np.flatnonzero(label >= 0)
    stays = stays[np.lexsort((row[stays], shard[stays]))]
    kept = rows.rename_columns({"shard": "old_shard", "row": "old_row"}).take(stays)
    kept = kept.drop_columns(["label", "source"])
    for name, column in (("label", label), ("shard", shard), ("row", row)):
        kept = kept.append_column(name, pa.array(column[stays]))
    source = pc.index_in(rows["source"], pa.array(names, pa.string())).take(pa.array(stays))
    _write(kept.append_column("source", source), routed)
    _write(rows.take(np.flatnonzero(label < 0)).sort_by("sid"), held)
    return len(rows)


def _write(rows: pa.Table, path: Path) -> None:
    with replacing(path) as temporary, pa.ipc.new_file(str(temporary), rows.schema) as writer:
        writer.write_table(rows.combine_chunks())


def held_rows(paths: Sequence[Path], sids: np.ndarray) -> pa.Table:
    """Returns the rows of some sids, by sid.

    Args:
        paths: what `route` wrote of rows that do not stay.
        sids: (n,) ascending.
    """
    found = []
    for path in paths:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
            if len(table):
                at = np.flatnonzero(np.isin(table["sid"].to_numpy(), sids, assume_unique=True))
                found.append(table.take(pa.array(at)))  # a copy: the mapping ends here
    return pa.concat_tables(found).sort_by("sid").combine_chunks()


def drop(dataset: Location, window: int, held: Sequence[Path], out: Path) -> int:
    """Returns the rows of `dropped` for a window of sids after writing them: the dataset's, and those held out.

    Args:
        dataset: its folder.
        window: its number; it has WINDOW sids.
        held: what `route` wrote of rows that do not stay.
        out: Parquet file to write.

    Raises:
        ManifestError: the table is damaged.
    """
    low, high = window * WINDOW, (window + 1) * WINDOW
    schema = SCHEMAS["dropped"]
    found = [Manifest(dataset).table("dropped", where=(ds.field("sid") >= low) & (ds.field("sid") < high))]
    for path in held:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
            first, stop = np.searchsorted(table["sid"].to_numpy(), (low, high))
            rows = table.slice(first, stop - first).select(["sid", "source", "key", "label_original"])
            columns = [*rows.take(pa.array(np.arange(len(rows)))).columns, pa.repeat("held_out", len(rows))]
            columns += [pa.nulls(len(rows), field.type) for field in list(schema)[len(columns) :]]
            found.append(pa.table(columns, schema))
    rows = pa.concat_tables(found).sort_by("sid")
    write_parquet(rows, out)
    return len(rows)

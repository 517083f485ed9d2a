"""What an export takes from a dataset: its rows, sorted by piece, and the images they stand for.

A sort-shuffle on disk, as builds have it: each shard's rows are written once, ordered by piece, and each piece reads
its stretch of every such file. No process holds more than one shard's rows, one piece's, and a block of images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from faceshards.dataset.manifest import Manifest
from faceshards.dataset.shard_images import blocks, frame_offsets
from faceshards.files import replacing
from faceshards.storage.location import Location
from pipelines.exports.base import Sample

_COLUMNS = ["sid", "source", "key", "label_original", "label", "shard", "row", "sha256", "bytes", "height", "width"]
_SUFFIXES = {b"\xff\xd8": ".jpg", b"\x89P": ".png"}


def suffix(sample: Sample) -> str:
    """Returns .jpg or .png, by what the image is; a build takes no other."""
    return _SUFFIXES[sample.image[:2]]


def sort_shard(dataset: Location, number: int, plan: Path, by_identity: bool, out: Path) -> int:
    """Returns the rows of a shard after writing them by piece: _COLUMNS, `piece`, `offset` (bytes) and `written`.

    Args:
        dataset: its folder.
        number: of the shard.
        plan: folder of bounds.npy, starts.npy (of identities, or of shards) and identities.parquet.
        by_identity: the export is in the order of identities.
        out: Arrow file to write.

    Raises:
        ManifestError: a table is damaged.
        ShardError: the shard is not as the manifest says.
    """
    manifest = Manifest(dataset)
    rows = manifest.table("images", _COLUMNS, shard=number).sort_by("row").combine_chunks()
    bounds, starts = np.load(plan / "bounds.npy"), np.load(plan / "starts.npy")
    place = starts[rows["label"].to_numpy()] if by_identity else starts[number] + rows["row"].to_numpy()
    written = pq.read_table(plan / "identities.parquet", columns=["written"])["written"]
    columns = {
        "piece": np.searchsorted(bounds, place, "right") - 1,
        "offset": frame_offsets(manifest, number, rows["bytes"].to_numpy()),
        "written": written.take(rows["label"]),
    }
    for name, values in columns.items():
        rows = rows.append_column(name, pa.array(values) if isinstance(values, np.ndarray) else values)
    rows = rows.sort_by("piece").combine_chunks()
    with replacing(out) as temporary, pa.ipc.new_file(str(temporary), rows.schema) as writer:
        writer.write_table(rows)
    return len(rows)


def gather(piece: int, routed: Sequence[Path], by_identity: bool) -> pa.Table:
    """Returns the rows of a piece in the order of the export.

    Args:
        piece: its number.
        routed: what `sort_shard` wrote, of every shard that may have some.
        by_identity: the order is that of labels, then sids; else that of shards and rows.
    """
    found = []
    for path in routed:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
            column = table["piece"].to_numpy()
            low, high = np.searchsorted(column, (piece, piece + 1))
            if low < high:  # a copy: the mapping ends here
                found.append(table.slice(low, high - low).take(pa.array(np.arange(high - low))))
    order = ("label", "sid") if by_identity else ("shard", "row")
    return pa.concat_tables(found).sort_by([(name, "ascending") for name in order]).combine_chunks()


def samples(dataset: Location, rows: pa.Table) -> Iterator[Sample]:
    """Yields the images of rows in order, each compared with its sha256.

    Args:
        dataset: its folder.
        rows: what `gather` returned.

    Raises:
        ShardError: an image is not the manifest's.
    """
    names = ("sid", "source", "key", "written", "label_original", "sha256")
    for block, images in blocks(Manifest(dataset), rows):
        yield from map(Sample, *(block[name].to_pylist() for name in names), images)

"""What an export takes from a dataset: its rows, sorted by piece, and the images they stand for.

A sort-shuffle on disk, as builds have it: each shard's rows are written once, ordered by piece, and each piece reads
its stretch of every such file. No process holds more than one shard's rows, one piece's, and a block of images.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from faceshards.dataset.manifest import Manifest, check_image
from faceshards.errors import ShardError
from faceshards.files import open_regular, replacing
from faceshards.formats.mindrecord.reader import Shard
from pipelines.exports.base import Sample

_BLOCK = 32 << 20  # bytes of images held at a time
_COLUMNS = ["sid", "source", "key", "label_original", "label", "shard", "row", "sha256", "bytes", "height", "width"]
_SUFFIXES = {b"\xff\xd8": ".jpg", b"\x89P": ".png"}


def suffix(sample: Sample) -> str:
    """Returns .jpg or .png, by what the image is; a build takes no other."""
    return _SUFFIXES[sample.image[:2]]


def sort_shard(dataset: Path, number: int, plan: Path, by_identity: bool, out: Path) -> int:
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
        "offset": _offsets(manifest, number, rows),
        "written": written.take(rows["label"]),
    }
    for name, values in columns.items():
        rows = rows.append_column(name, pa.array(values) if isinstance(values, np.ndarray) else values)
    rows = rows.sort_by("piece").combine_chunks()
    with replacing(out) as temporary, pa.ipc.new_file(str(temporary), rows.schema) as writer:
        writer.write_table(rows)
    return len(rows)


def _offsets(manifest: Manifest, number: int, rows: pa.Table) -> np.ndarray:
    """Returns where the frame of each row of a shard begins in its file, (n,) int64."""
    with Shard(_paths(manifest)[number]) as shard:
        if len(shard) != len(rows):
            raise ShardError(shard.path, f"{len(shard)} rows, the manifest has {len(rows)}")
        return shard.frame_offsets(rows["bytes"].to_numpy())


def _paths(manifest: Manifest) -> dict[int, Path]:
    """Returns where each shard lies, by its number."""
    shards = manifest.table("shards", ["shard", "file"])
    files = zip(shards["shard"].to_pylist(), shards["file"].to_pylist(), strict=True)
    return {number: manifest.shard_path(file) for number, file in files}


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


def samples(dataset: Path, rows: pa.Table) -> Iterator[Sample]:
    """Yields the images of rows in order, each compared with its sha256.

    Args:
        dataset: its folder.
        rows: what `gather` returned.

    Raises:
        ShardError: an image is not the manifest's.
    """
    paths = _paths(Manifest(dataset))
    blocks = (np.cumsum(rows["bytes"].to_numpy()) // _BLOCK).tolist() if len(rows) else []
    edges = [0, *(i for i in range(1, len(blocks)) if blocks[i] != blocks[i - 1]), len(blocks)]
    for first, stop in pairwise(edges):
        block = rows.slice(first, stop - first)
        images = _read(paths, block)
        names = ("sid", "source", "key", "written", "label_original", "sha256")
        yield from map(Sample, *(block[name].to_pylist() for name in names), images)


def _read(paths: dict[int, Path], rows: pa.Table) -> list[bytes]:
    """Returns the images of rows, read in order of their places on disk."""
    shards, offsets = rows["shard"].to_numpy(), rows["offset"].to_numpy()
    at, sizes, hashes = rows["row"].to_pylist(), rows["bytes"].to_pylist(), rows["sha256"].to_pylist()
    images = [b""] * len(rows)
    order = np.lexsort((offsets, shards))
    for group in np.split(order, np.flatnonzero(np.diff(shards[order])) + 1):
        path = paths[int(shards[group[0]])]
        with closing(_Descriptor(path)) as file:
            for i in group.tolist():
                images[i] = file.frame(int(offsets[i]), sizes[i])
                check_image(path, at[i], images[i], hashes[i])
    return images


class _Descriptor:
    """A shard's file, open for reading at known places."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = open_regular(path)
        except OSError as error:
            raise ShardError(path, f"cannot be opened: {error.strerror}") from None

    def frame(self, offset: int, size: int) -> bytes:
        """Returns the image of a frame: u64 LE length, then as many bytes."""
        return os.pread(self._file, size + 8, offset)[8:]

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

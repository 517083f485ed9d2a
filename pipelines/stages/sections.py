"""What `route` leaves of a partition in a bucket: its rows in sections, one for each shard, fetched one by one.

On a disk a shard maps the files of all partitions and takes its stretch of each. In a bucket that would be a request
for each column, so here the rows of a shard lie together, as an Arrow message, and behind all of them where each ends:
the driver reads that, and a shard then costs one request for its rows of a partition, and one for their images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from faceshards.locks import own_folder
from faceshards.reading import each
from faceshards.storage.location import StoredPath
from faceshards.storage.ranges import PIECE, read_range
from pipelines.records import ROUTED_SCHEMA
from pipelines.stages.origins import SPILL

_TAIL = 64 << 10  # bytes that are read of an index at first: 2,700 shards
_AT_ONCE = 4  # sections in flight


class Sections(NamedTuple):
    """Where the rows of one shard are, and their images; picklable."""

    routed: list[StoredPath]  # of the partitions that have some
    edges: np.ndarray  # (partitions, 4) int64: first byte and end of the rows, and of the images in their spill


Routed = Sequence[Path] | Sections
"""What `route` wrote of all partitions, for one shard."""


def write_sections(rows: pa.Table, path: StoredPath) -> None:
    """Writes the rows of a partition, which are ordered by shard, as one object."""
    shard, size = rows["shard"].to_numpy(), rows["bytes"].to_numpy()
    ends = np.flatnonzero(np.diff(shard, append=-1)) + 1 if len(shard) else np.zeros(0, np.int64)
    parts, index, start = [], np.zeros((len(ends), 3), np.int64), 0
    for i, end in enumerate(ends.tolist()):
        parts.append(rows.slice(start, end - start).combine_chunks().to_batches()[0].serialize())
        index[i] = shard[start], parts[-1].size, size[:end].sum()
        start = end
    index[:, 1] = np.cumsum(index[:, 1])
    path.write_bytes(b"".join([*parts, index.tobytes(), np.int64(len(index)).tobytes()]))


def by_shard(routed: Sequence[StoredPath], shards: int) -> Iterator[Sections]:
    """Yields for each shard where its rows are.

    Args:
        routed: of every partition, what `write_sections` wrote.
        shards: how many there are.
    """
    every = each(_index, routed)
    for shard in range(shards):
        found, edges = [], []
        for path, index in zip(routed, every, strict=True):
            at = int(np.searchsorted(index[:, 0], shard))
            if at < len(index) and index[at, 0] == shard:
                before = index[at - 1, 1:] if at else (0, 0)
                found.append(path)
                edges.append([before[0], index[at, 1], before[1], index[at, 2]])
        yield Sections(found, np.array(edges, np.int64))


def _index(path: StoredPath) -> np.ndarray:
    """Returns what is written behind the rows, (n, 3) int64: shard, end of its rows, end of their images; in bytes."""
    tail = read_range(path, -_TAIL, 0)
    size = int(np.frombuffer(tail[-8:], np.int64)[0]) * 24 + 8
    if size > len(tail):
        tail = read_range(path, -size, 0)
    return np.frombuffer(tail[len(tail) - size : -8], np.int64).reshape(-1, 3)


@contextmanager
def at_hand(routed: Routed, images: bool) -> Iterator[Sequence[Path]]:
    """Yields files of this machine that hold the rows of a shard, perhaps among others.

    Args:
        routed: where they are; out of a bucket they are copied, into temporary files.
        images: their images are needed beside them.
    """
    if not isinstance(routed, Sections):
        yield routed
        return
    with own_folder() as folder:

        def copy(number: int) -> Path:
            path, (start, stop, first, end) = routed.routed[number], routed.edges[number].tolist()
            copied = folder / f"part-{number:06d}.arrow"
            rows = pa.ipc.read_record_batch(pa.py_buffer(read_range(path, start, stop)), ROUTED_SCHEMA)
            with pa.ipc.new_file(str(copied), ROUTED_SCHEMA) as writer:
                writer.write_batch(rows)
            if images:
                _copy(path.with_suffix(SPILL), first, end, copied.with_suffix(SPILL))
            return copied

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            yield list(pool.map(copy, range(len(routed.routed))))


def _copy(path: StoredPath, start: int, stop: int, to: Path) -> None:
    with open(to, "wb") as file:
        for low in range(start, stop, PIECE):
            file.write(read_range(path, low, min(low + PIECE, stop)))

"""Which rows of which shards each rank reads, and in which order: arithmetic on the manifest, no file is opened.

The rows of a dataset, shard by shard, are cut into lanes. A lane has an order of its own in each epoch, from (seed,
epoch, lane), and a global batch takes equally many rows from every lane. A rank owns whole lanes, so that the global
batches do not depend on the number of ranks, as long as it divides the number of lanes. (The idea is that of canonical
nodes in mosaicml's streaming.)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from faceshards.dataset.manifest import Manifest
from faceshards.errors import FaceshardsError

LANES = 8  # so are the shards of all but small sets


class StreamError(FaceshardsError):
    """A dataset cannot be read by so many ranks, or its shards are not what the manifest says."""


class Layout:
    """The lanes of a dataset and the ranks that own them.

    With a number of shards that the lanes divide, a lane is a run of whole shards and no file is read by two ranks.
    Otherwise lanes are equal runs of rows, and neighbours may share a file.

    Args:
        data: the dataset.
        world: ranks.
        global_batch: images in a step over all ranks, divisible by `world`.

    Attributes:
        lanes: their number: 8 if the ranks divide it, otherwise one a rank.
        bounds: (lanes + 1,) int64, first row of each lane, and the number of rows.
        shard_bounds: (shards + 1,) int64, first row of each shard, and the number of rows.
        steps_per_epoch: steps that every rank has images for.

    Raises:
        StreamError: fewer rows than a global batch.
    """

    def __init__(self, data: Manifest, world: int, global_batch: int) -> None:
        shards = data.table("shards", ["shard", "file", "rows", "bytes", "sha256"]).sort_by("shard")
        self.names: list[str] = shards["file"].to_pylist()
        self.bytes: list[int] = shards["bytes"].to_pylist()
        self.sha256: list[str] = shards["sha256"].to_pylist()
        self.shard_bounds = np.concatenate([[0], np.cumsum(shards["rows"].to_numpy())]).astype(np.int64)
        count, rows = len(self.names), int(self.shard_bounds[-1])
        self.lanes = LANES if LANES % world == 0 else world
        self.world, self.batch = world, global_batch // world
        if count % self.lanes == 0:
            self.bounds = self.shard_bounds[:: count // self.lanes]
        else:
            self.bounds = np.arange(self.lanes + 1) * rows // self.lanes
        each = self.lanes // world  # lanes of a rank
        # Item i of a rank's epoch is position i // each of its lane i % each: T steps need, of every lane j,
        # (T * batch - j) / each rows, rounded up.
        lengths = np.diff(self.bounds)  # (lanes,)
        largest = int((lengths * each + np.arange(self.lanes) % each).min())  # batch of a rank
        self.steps_per_epoch = largest // self.batch
        if self.steps_per_epoch < 1:
            raise StreamError(
                f"{data.path}: {rows} images on {world} ranks give no batch of {global_batch}: global_batch can be "
                f"{largest * world} at most"
            )

    def own_lanes(self, rank: int) -> range:
        """Returns the lanes of a rank."""
        each = self.lanes // self.world
        return range(rank * each, (rank + 1) * each)

    def span(self, rank: int) -> tuple[int, int]:
        """Returns the first row of a rank, and the row after its last."""
        lanes = self.own_lanes(rank)
        return int(self.bounds[lanes.start]), int(self.bounds[lanes.stop])

    def rows(self, rank: int) -> int:
        """Returns how many rows a rank owns."""
        start, end = self.span(rank)
        return end - start

    def edges(self, lane: int) -> np.ndarray:
        """Returns at which rows of a lane its shards begin, or its pieces of them, and its length: (pieces + 1,)."""
        start, end = self.bounds[lane : lane + 2]
        inside = self.shard_bounds[(self.shard_bounds > start) & (self.shard_bounds < end)]
        return np.unique([start, *inside, end]) - start

    def shards(self, lane: int) -> np.ndarray:
        """Returns the numbers of the shards that a lane's pieces are of, (pieces,)."""
        return np.searchsorted(self.shard_bounds, self.bounds[lane] + self.edges(lane)[:-1], side="right") - 1

    def bytes_at_once(self, ranks: Sequence[int], window: int) -> int:
        """Returns how many bytes of shards some ranks hold at once at most, if they hold what training.data.windows
        keeps ready.

        Args:
            ranks: of one host.
            window: shards of a window; 0: all of a lane.
        """
        each, total = self.lanes // self.world, 0
        for lane in (lane for rank in ranks for lane in self.own_lanes(rank)):
            sizes, rows = sorted(self.bytes[i] for i in self.shards(lane)), np.sort(np.diff(self.edges(lane)))
            taken = -(-self.batch // each)  # rows of the lane in a step, which may be those of several small windows
            windows = 2 + max(0, taken - 2) // max(1, int(rows[:window].sum()))
            total += sum(sizes[-window * windows :] if window else sizes)
        return min(total, self.bytes_read(ranks))

    def bytes_read(self, ranks: Sequence[int]) -> int:
        """Returns the bytes of all shards that some ranks read."""
        return sum(self.bytes[i] for i in {i for rank in ranks for i in self.files(rank)})

    def places(self, step: int, own_lane: int) -> range:
        """Returns which places in the order of a rank's lane (its first is 0) a step takes: those i of its items
        whose i % lanes of the rank is the lane's number, divided by the lanes."""
        each = self.lanes // self.world
        first, end = (-(-(at * self.batch - own_lane) // each) for at in (step, step + 1))
        return range(first, end)

    def files(self, rank: int) -> range:
        """Returns the numbers of the shards that a rank opens."""
        start, end = self.span(rank)
        first = int(np.searchsorted(self.shard_bounds, start, side="right")) - 1
        return range(first, int(np.searchsorted(self.shard_bounds, end, side="left")))


class LaneOrder(NamedTuple):
    """The order of a lane in an epoch, window after window; a window is a run of it with the rows of some shards.

    Attributes:
        rows: (n,) int32, rows of the lane.
        mirrored: (n,) bool.
        starts: (windows + 1,) int64, at which place of the order each window begins, and n.
        pieces: of each window, the numbers of the lane's shards (their places in Layout.edges()) that its rows are of.
    """

    rows: np.ndarray
    mirrored: np.ndarray
    starts: np.ndarray
    pieces: list[np.ndarray]


def lane_order(
    seed: int,
    epoch: int,
    lane: int,
    labels: np.ndarray,
    sampling: str = "instance",
    edges: np.ndarray | None = None,
    window: int = 0,
) -> LaneOrder:
    """Returns the order of a lane in an epoch.

    Args:
        seed: of the run.
        epoch: from 0.
        lane: its number.
        labels: (n,) int32 identities of the lane's rows.
        sampling: ``instance``: each row once. ``identity`` and ``sqrt``: n draws with replacement, in which an
            identity with m rows of the lane has weight 1 or the square root of m. In windows, as many draws as a window
            has rows are made of it, each row with the weight that it has in the lane.
        edges: see Layout.edges(); None for a lane of one shard.
        window: shards of a window, whose rows are shuffled together and come before those of the next; the shards come
            in random order. 0: one window with all rows.

    Philox (Salmon et al. 2011) keyed by (seed, epoch, lane) through NumPy's SeedSequence.
    """
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch, lane])))
    count = len(labels)
    edges = np.array([0, count]) if edges is None else edges
    order, pieces = np.arange(count, dtype=np.int32), np.arange(len(edges) - 1)
    if window:
        rng.shuffle(pieces)
        order = np.concatenate([order[edges[piece] : edges[piece + 1]] for piece in pieces])
    each = window or len(pieces)
    ends = np.cumsum(np.diff(edges)[pieces])  # (shards,)
    starts = np.array([0, *ends[each - 1 : -1 : each], count])
    if sampling != "instance":
        images = np.bincount(labels)[labels].astype(np.float64)  # (n,) of the row's identity
        weights = images ** (-1.0 if sampling == "identity" else -0.5)
    for start, end in pairwise(starts):
        rows = order[start:end]
        if sampling == "instance":
            rng.shuffle(rows)
        else:
            total = np.cumsum(weights[rows])
            drawn = np.searchsorted(total, rng.random(len(rows)) * total[-1], side="right")
            rows[:] = rows[np.minimum(drawn, len(rows) - 1)]  # a draw may round up to the total
    mirrored = rng.integers(0, 2, count, dtype=np.int8).astype(bool)
    return LaneOrder(order, mirrored, starts, [pieces[i : i + each] for i in range(0, len(pieces), each)])

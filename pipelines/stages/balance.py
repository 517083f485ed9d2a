"""Stage balance: how many images an identity keeps, its new label, and in which shard and row each image lies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from faceshards.dataset.schema import CODE
from faceshards.hashing import splitmix64
from pipelines.config import BuildConfig

_SHARD_STEP = 8  # shard counts are multiples of it, so that 2, 4 or 8 ranks get equal numbers of files
# Bytes of images that each of 8 has, or there are 4, 2 or 1: a shard costs about 26 kB of headers and half-used pages.
_WORTH_A_SHARD = 16 << 20


@dataclass(frozen=True)
class Placement:
    """Where each record of the set goes: shard and row, (N,) int32, -1 for dropped ones."""

    shard: np.ndarray
    row: np.ndarray

    def by_shard(self, values: np.ndarray) -> list[np.ndarray]:
        """Returns of (N,) values those of each shard, in order of rows."""
        kept = np.flatnonzero(self.shard >= 0)
        ends = np.cumsum(np.bincount(self.shard[kept]))
        starts = np.concatenate([[0], ends[:-1]])
        ordered = np.empty(len(kept), values.dtype)
        ordered[starts[self.shard[kept]] + self.row[kept]] = values[kept]
        return np.split(ordered, ends[:-1])


@dataclass(frozen=True)
class Balance:
    """What balance decided.

    Args:
        reason: (N,) uint8 records.CODE, min_images or max_images for the records dropped here, else 0.
        label: (N,) int32 label in 0..C-1, in order of the original labels; -1 for records that do not stay.
        seed: of the orders that `place` chooses.
    """

    reason: np.ndarray
    label: np.ndarray
    seed: int

    def place(self, shards: int) -> Placement:
        """Returns a placement over `shards` shards.

        Dealing the records out like cards, sorted by identity, gives record p to shard p mod S. Any run of n
        consecutive places meets each residue floor(n/S) or ceil(n/S) times. The whole set is such a run, so shards
        differ by at most one row; an identity is one, so each shard holds floor or ceil of its n_i/S images.
        """
        rows = np.flatnonzero(self.label >= 0)
        dealt = rows[np.lexsort((splitmix64(self.seed, 1, rows), self.label[rows]))]
        shard, row = np.full(len(self.label), -1, np.int32), np.full(len(self.label), -1, np.int32)
        for number in range(shards):
            mine = dealt[number::shards]
            shard[mine] = number
            row[mine[np.argsort(splitmix64(self.seed, 2, mine), kind="stable")]] = np.arange(len(mine), dtype=np.int32)
        return Placement(shard, row)


def balance(labels: np.ndarray, alive: np.ndarray, config: BuildConfig) -> Balance:
    """Returns who stays under max_images and min_images, with contiguous labels.

    Of an identity with more than max_images images, those with the smallest hash of (seed, sid) stay.

    Args:
        labels: (N,) int32 original identities; not looked at where not alive.
        alive: (N,) bool, the records that came through the stages before.
        config: min_images, max_images, seed.
    """
    reason = np.zeros(len(labels), np.uint8)
    label = np.full(len(labels), -1, np.int32)
    rows = np.flatnonzero(alive)
    if config.max_images:
        rows = rows[np.lexsort((splitmix64(config.seed, 0, rows), labels[rows]))]
        first = np.flatnonzero(np.diff(labels[rows], prepend=-1))
        place = np.arange(len(rows)) - np.repeat(first, np.diff(np.append(first, len(rows))))
        reason[rows[place >= config.max_images]] = CODE["max_images"]
        rows = rows[place < config.max_images]
    if len(rows):
        counts = np.bincount(labels[rows])
        fresh = np.cumsum(counts >= config.min_images, dtype=np.int64) - 1
        small = counts[labels[rows]] < config.min_images
        reason[rows[small]] = CODE["min_images"]
        label[rows[~small]] = fresh[labels[rows[~small]]]
    return Balance(reason, label, config.seed)


def shard_count(total_bytes: int, rows: int, config: BuildConfig) -> int:
    """Returns the number of shards for `rows` images of `total_bytes` together: never more than there are rows."""
    wanted = config.shards or -(-total_bytes // config.shard_bytes)
    if not config.shards:
        step = _SHARD_STEP
        while step > wanted and total_bytes < step * _WORTH_A_SHARD:
            step //= 2
        wanted = -(-wanted // step) * step
    return min(wanted, rows)

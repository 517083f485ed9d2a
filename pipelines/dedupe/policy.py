"""Which records are the same photograph: inside an identity one copy stays, across identities it is a conflict.

Three steps, each on what the one before left: equal bytes inside an identity, near hashes inside an identity, equal
bytes or near hashes across identities. Where near_mirror says so, a mirrored copy is a near one. All work on whole
columns; rows with a label below 0 take no part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from faceshards.dataset.schema import CODE
from pipelines.config import BuildConfig
from pipelines.dedupe.equal import Array, Groups, equal_groups, member_pairs
from pipelines.dedupe.hamming import hamming
from pipelines.dedupe.near import across_pairs, within_pairs

CONFLICTS = np.dtype([("row_a", "<i8"), ("row_b", "<i8"), ("distance", "<i2"), ("exact", "?")])
LINKS = np.dtype([("label_a", "<i4"), ("label_b", "<i4"), ("photographs", "<i8"), ("distance", "<i2")])


@dataclass(frozen=True)
class Dedupe:
    """What dedupe decided.

    Args:
        reason: (N,) uint8 records.CODE; 0 where the row stays or took no part.
        representative: (N,) int64 row that stands for a dropped row, -1 for the others. It may itself have been
            dropped by a later step: an exact copy's by the near step, a near copy's by a conflict.
        distance: (N,) int16 Hamming bits to the representative, -1 for the rows not dropped.
        conflicts: (E,) CONFLICTS, every pair of rows of different identities found to be one photograph, row_a < row_b
            ascending, whatever the policy; `exact` says that copies with the same bytes exist under both identities
            (then the two rows, which stand for them, may be more than near_across apart).
        mirrored_conflicts: (E,) bool, those of which one is the other mirrored; their distance is to the mirror image.
        mirrored_rows: (M,) int64, dropped rows that are mirrored copies of their representatives; distance likewise.
        identity_links: (L,) LINKS, the conflicts of two identities counted, label_a < label_b ascending, and the
            smallest distance.
        statistics: counts, how the banding searched and whether any search was cut short.
    """

    reason: Array
    representative: Array
    distance: Array
    conflicts: Array
    mirrored_conflicts: Array
    mirrored_rows: Array
    identity_links: Array
    statistics: dict[str, int | float]

    def drop(self, reason: str, rows: Array, representative: Array, distance: Array | int) -> None:
        """Books the rows under the reason."""
        self.reason[rows] = CODE[reason]
        self.representative[rows] = representative
        self.distance[rows] = distance
        self.statistics[reason] = len(rows)


def greedy(a: Array, b: Array, rank: Array) -> Array:
    """Returns which nodes stay when each, in order of rank, stays unless a neighbour already did.

    Rounds over the edges in place of a loop over the nodes: a node without an undecided or staying neighbour of better
    rank stays, its neighbours of worse rank go, and the edges so settled are done with.

    Args:
        a: (E,) nodes in 0..M-1, and `b` likewise: the edges.
        b: (E,) nodes.
        rank: (M,) distinct integers, smaller goes first.

    Returns:
        (M,) bool.
    """
    swap = rank[a] > rank[b]
    better, worse = np.where(swap, b, a), np.where(swap, a, b)
    stays = np.ones(len(rank), bool)
    while len(better):
        waits = np.zeros(len(rank), bool)
        waits[worse] = True  # has an undecided neighbour of better rank
        stays[worse[~waits[better]]] = False  # better does not wait for anyone: it stays
        settled = ~waits[better] | ~stays[better] | ~stays[worse]
        better, worse = better[~settled], worse[~settled]
    return stays


def nearest(node: Array, other: Array, distance: Array, rank: Array) -> tuple[Array, Array]:
    """Returns the distinct nodes, ascending, and the place of each one's nearest pair (tie: best-ranked other)."""
    order = np.lexsort((rank[other], distance, node))
    nodes, first = np.unique(node[order], return_index=True)
    return nodes, order[first]


class SameBytes(NamedTuple):
    """Rows of equal images, as `same_bytes` finds them."""

    within: Groups  # of one identity
    across: Groups  # of any, once only the first row of each of `within` is left


def same_bytes(labels: Array, sha: Array) -> SameBytes:
    """Returns the rows whose images are equal; found first, so that the checksums need not stay in memory.

    Args:
        labels: (N,) int32 identities; rows below 0 take no part. N < 2**32.
        sha: (N, 2) uint64, first 16 bytes of the images' SHA-256.
    """
    alive = np.flatnonzero(labels >= 0)
    within = equal_groups([labels, sha[:, 0], sha[:, 1]], alive)
    stays = np.ones(len(labels), bool)
    stays[within.rows] = False
    stays[within.rows[within.starts[:-1]]] = True
    return SameBytes(within, equal_groups([sha[:, 0], sha[:, 1]], alive[stays[alive]]))


def dedupe(labels: Array, same: SameBytes, phash: Array, size: Array, config: BuildConfig, threads: int = 1) -> Dedupe:
    """Returns which rows are copies of others.

    1. Equal bytes inside an identity: the first row stays.
    2. Near hashes inside an identity: greedily, larger files first (less recompressed), then smaller rows; a row goes
       if one that stays is within near_within of it, so in a chain every copy is near its representative itself.
    3. Across identities: the survivors that share bytes (also through a copy dropped in step 2) or are within
       near_across are in conflict, and the policy says who goes.

    In the steps 2 and 3 a row within near_mirror of another's mirror image is near it, too.

    Args:
        labels: (N,) int32 identities; rows below 0 take no part. N < 2**32.
        same: which of them have equal images.
        phash: (N, 4) uint64.
        size: (N,) int32 bytes of the encoded images.
        config: near_within, near_across, near_mirror, recall, conflict_policy.
        threads: worker threads; the result does not depend on them.
    """
    n = len(labels)
    out = Dedupe(
        np.zeros(n, np.uint8),
        np.full(n, -1, np.int64),
        np.full(n, -1, np.int16),
        np.empty(0, CONFLICTS),
        np.empty(0, bool),
        np.empty(0, np.int64),
        np.empty(0, LINKS),
        {},
    )
    rows, starts = same.within
    first = np.repeat(rows[starts[:-1]], np.diff(starts))
    copies = rows != first
    out.drop("exact_duplicate", rows[copies], first[copies], 0)
    alive = np.flatnonzero((labels >= 0) & (out.reason == 0))
    limits = ((config.near_within, False), (config.near_mirror, True))
    found = [within_pairs(labels, phash, limit, threads, alive, flip) for limit, flip in limits if limit >= 0]
    if found:
        a, b, distance = (np.concatenate(column) for column in zip(*found, strict=True))
        _drop_near(out, a, b, distance, size)
        alive = alive[out.reason[alive] == 0]
    kept = np.bincount(labels[alive]) if len(alive) else np.zeros(0, np.int64)

    def deserving(rows: Array) -> Array:
        return np.lexsort((rows, -size[rows].astype(np.int64), labels[rows], -kept[labels[rows]]))

    edges, flipped = _conflicts(out, labels, phash, same.across, alive, deserving, config, threads)
    _apply_policy(out, edges, deserving, config.conflict_policy)
    turned = _mirrored_rows(out, phash) if config.near_mirror >= 0 else out.mirrored_rows
    links = _links(edges, labels)
    return dataclasses.replace(
        out, conflicts=edges, mirrored_conflicts=flipped, mirrored_rows=turned, identity_links=links
    )


def _mirrored_rows(out: Dedupe, phash: Array) -> Array:
    """Returns the dropped rows whose distance is to a mirror image: their hash itself is at another one."""
    rows = np.flatnonzero((out.reason == CODE["near_duplicate"]) | (out.reason == CODE["label_conflict"]))
    return rows[hamming(phash, rows, out.representative[rows])[1] != out.distance[rows]]


def _drop_near(out: Dedupe, a: Array, b: Array, distance: Array, size: Array) -> None:
    """Drops near copies inside identities, given all pairs."""
    nodes = np.unique(np.concatenate([a, b]))
    rank = np.empty(len(nodes), np.int64)
    rank[np.lexsort((nodes, -size[nodes].astype(np.int64)))] = np.arange(len(nodes))
    _drop_losers(out, "near_duplicate", nodes, a, b, distance, rank, greedy(*_places(nodes, a, b), rank))


def _places(nodes: Array, a: Array, b: Array) -> tuple[Array, Array]:
    return np.searchsorted(nodes, a), np.searchsorted(nodes, b)


def _drop_losers(
    out: Dedupe, reason: str, nodes: Array, a: Array, b: Array, distance: Array, rank: Array, stays: Array | None
) -> None:
    """Drops the nodes that do not stay (None: all of them), each represented by its nearest neighbour that does."""
    one, two = _places(nodes, a, b)
    node, other, apart = np.concatenate([one, two]), np.concatenate([two, one]), np.concatenate([distance, distance])
    if stays is not None:
        lost = ~stays[node] & stays[other]
        node, other, apart = node[lost], other[lost], apart[lost]
    losers, best = nearest(node, other, apart, rank)
    out.drop(reason, nodes[losers], nodes[other[best]], apart[best])


def _conflicts(
    out: Dedupe,
    labels: Array,
    phash: Array,
    shared: Groups,
    alive: Array,
    deserving: Callable[[Array], Array],
    config: BuildConfig,
    threads: int,
) -> tuple[Array, Array]:
    """Returns the conflicts among the survivors, CONFLICTS, and which of them are of mirrored copies, bool."""
    own = np.arange(len(shared.starts) - 1)
    zero = np.zeros(len(own), np.int16)
    # Here a near-dropped row counts like its representative; it only orders the pairs of very large groups.
    codes, _, cut = member_pairs(shared, own, own, zero, labels, deserving)
    ends = np.stack([codes >> np.uint64(32), codes & np.uint64(0xFFFFFFFF)]).astype(np.int64)
    ends = np.where(out.reason[ends] == CODE["near_duplicate"], out.representative[ends], ends)
    exact = np.unique(np.min(ends, 0).astype(np.uint64) << np.uint64(32) | np.max(ends, 0).astype(np.uint64))
    near = [np.empty(0, np.uint64)] * 2  # as they are, mirrored
    for flip, limit in enumerate((config.near_across, config.near_mirror)):
        if limit >= 0:
            pairs, statistics = across_pairs(
                labels, phash, limit, config.recall, threads, alive, deserving, mirrored=bool(flip)
            )
            out.statistics.update({f"mirror_{name}" if flip else name: value for name, value in statistics.items()})
            near[flip] = pairs.a.astype(np.uint64) << np.uint64(32) | pairs.b.astype(np.uint64)
    out.statistics["cut_exact_groups"] = cut
    upright = np.union1d(exact, near[0])
    every = np.union1d(upright, near[1])
    edges = np.empty(len(every), CONFLICTS)
    edges["row_a"], edges["row_b"] = every >> np.uint64(32), every & np.uint64(0xFFFFFFFF)
    edges["exact"] = np.isin(every, exact)
    flipped = ~np.isin(every, upright)
    for flip in (False, True):
        of = flipped == flip
        edges["distance"][of] = hamming(phash, edges["row_a"][of], edges["row_b"][of], mirrored=flip)[1]
    return edges, flipped


def _apply_policy(out: Dedupe, edges: Array, deserving: Callable[[Array], Array], policy: str) -> None:
    if policy == "keep" or not len(edges):
        return
    a, b = edges["row_a"], edges["row_b"]
    nodes = np.unique(np.concatenate([a, b]))
    rank = np.arange(len(nodes))
    stays = None
    if policy == "keep-larger":
        rank = np.empty(len(nodes), np.int64)
        rank[deserving(nodes)] = np.arange(len(nodes))
        stays = greedy(*_places(nodes, a, b), rank)
    _drop_losers(out, "label_conflict", nodes, a, b, edges["distance"], rank, stays)


def _links(edges: Array, labels: Array) -> Array:
    """Returns the conflicts summed per pair of identities, LINKS."""
    one, two = labels[edges["row_a"]].astype(np.int64), labels[edges["row_b"]].astype(np.int64)
    pairs, where, counts = np.unique(
        np.minimum(one, two) << 32 | np.maximum(one, two), return_inverse=True, return_counts=True
    )
    links = np.empty(len(pairs), LINKS)
    links["label_a"], links["label_b"], links["photographs"] = pairs >> 32, pairs & 0xFFFFFFFF, counts
    links["distance"] = np.iinfo(np.int16).max
    np.minimum.at(links["distance"], where, edges["distance"])
    return links

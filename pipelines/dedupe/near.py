"""Pairs of near-equal 256-bit perceptual hashes: complete inside an identity, banded across identities.

Both searches sort one uint64 per row, what must be equal in the high bits and the row number in the low ones, and
compare each row with those that follow it while the high bits stay the same. The result depends on neither the number
of threads nor the time: tables are seeded and independent, and pairs come back sorted.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from pipelines.dedupe.equal import SPAN, Array, Groups, Order, equal_groups, low_bits, member_pairs
from pipelines.dedupe.hamming import BITS, hamming
from pipelines.dedupe.tables import keys_of, masks, plan_tables

BUCKET_CAP = 64  # rows that a row of a bucket is compared with


class Pairs(NamedTuple):
    """Pairs of rows, each once, ascending by (a, b); a < b."""

    a: Array  # (P,) int64
    b: Array  # (P,) int64
    distance: Array  # (P,) int16, Hamming bits


def _scan(
    keys: Array, bits: int, phash: Array, limit: int, cap: int, low: int, high: int, mirrored: bool
) -> tuple[Array, Array, int, int]:
    """Returns the near pairs whose earlier row sits in keys[low:high].

    Offset diagonals: every row against its o-th follower at once, o = 1, 2, ..., dropping the rows whose bucket ended.

    Args:
        keys: (n,) uint64, sorted; the row is in the low `bits`, the bucket in the rest.
        cap: largest o.
        mirrored: compares with mirror images.

    Returns:
        codes (P,) uint64 of smaller row << 32 | larger row; distances (P,) int16; pairs compared; buckets cut short.
    """
    below = np.uint64((1 << bits) - 1)
    codes, distances, compared, cut, offset = [np.empty(0, np.uint64)], [np.empty(0, np.int16)], 0, 0, 1
    high = min(high, len(keys) - 1)
    live = np.flatnonzero((keys[low:high] ^ keys[low + 1 : high + 1]) <= below) + low
    while live.size:
        first, other = keys.take(live), keys.take(live + offset)
        if offset > 1:
            same = np.flatnonzero((first ^ other) <= below)
            live, first, other = live.take(same), first.take(same), other.take(same)
        if offset > cap:  # rows are still live only where a bucket is longer than cap + 1: count those that begin one
            cut = int(np.count_nonzero((live == 0) | ((keys.take(live - 1) ^ first) > below)))
            break
        first &= below
        other &= below
        hit, distance = hamming(phash, first.view(np.int64), other.view(np.int64), limit, mirrored=mirrored)
        codes.append(first.take(hit) << np.uint64(32) | other.take(hit))
        distances.append(distance)
        compared += len(first)
        offset += 1
        live = live[: np.searchsorted(live, len(keys) - offset)]
    return np.concatenate(codes), np.concatenate(distances), compared, cut


def _rows(codes: Array) -> tuple[Array, Array]:
    """Returns the two rows of each code, (P,) int64."""
    return (codes >> np.uint64(32)).view(np.int64), (codes & np.uint64(0xFFFFFFFF)).view(np.int64)


def _unique(parts: Iterable[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Returns the codes of all parts, each once and ascending, and their distances."""
    codes, distances = (np.concatenate(column) for column in zip(*parts, strict=True))
    codes, place = np.unique(codes, return_index=True)
    return codes, distances[place]


def within_pairs(
    labels: Array, phash: Array, limit: int, threads: int = 1, rows: Array | None = None, mirrored: bool = False
) -> Pairs:
    """Returns every pair of one identity at most `limit` apart; complete.

    Work grows with the square of an identity: about 25 ns times half the sum of squares.

    Args:
        labels: (N,) int32 identities; rows below 0 take no part. N < 2**32.
        phash: (N, 4) uint64.
        limit: Hamming bits.
        threads: worker threads.
        rows: (n,) ascending rows that take part; all of them if None.
        mirrored: the pairs of which one is that near the other's mirror image, and their distances so.
    """
    bits = low_bits(len(labels))
    rows = np.flatnonzero(labels >= 0) if rows is None else rows[labels.take(rows) >= 0]
    keys = labels.take(rows).astype(np.uint64)
    keys <<= np.uint64(bits)
    keys |= rows.astype(np.uint64)
    keys.sort()
    with ThreadPoolExecutor(threads) as pool:
        spans = range(0, len(keys), SPAN)
        found = list(
            pool.map(lambda low: _scan(keys, bits, phash, limit, len(keys), low, low + SPAN, mirrored)[:2], spans)
        )
    codes, distances = _unique([(np.empty(0, np.uint64), np.empty(0, np.int16)), *found])
    return Pairs(*_rows(codes), distances)


def _table(phash: Array, rows: Array, mask: Array, limit: int, mirrored: bool) -> tuple[Array, Array, int, int]:
    """Returns what _scan returns, for the table of one mask (4,)."""
    bits = low_bits(len(phash))
    below = np.uint64((1 << bits) - 1)
    keys = np.empty(len(rows), np.uint64)
    for low in range(0, len(rows), SPAN):
        part = rows[low : low + SPAN].astype(np.int64)
        key = keys_of(phash.take(part, axis=0), mask, mirrored)
        keys[low : low + SPAN] = (key & ~below) | part.view(np.uint64)
    keys.sort()
    spans = range(0, len(keys), SPAN)
    parts = [_scan(keys, bits, phash, limit, BUCKET_CAP, low, low + SPAN, mirrored) for low in spans]
    codes, distances, compared, cut = zip(*parts, strict=True)
    return np.concatenate(codes), np.concatenate(distances), sum(compared), sum(cut)


def across_pairs(
    labels: Array,
    phash: Array,
    limit: int,
    recall: float,
    threads: int = 1,
    rows: Array | None = None,
    order: Order = np.argsort,
    mirrored: bool = False,
) -> tuple[Pairs, dict[str, int | float]]:
    """Returns pairs of different identities at most `limit` apart, and how they were found.

    Equal hashes are found completely and searched once; the rest by tables keyed by random bits. Peak memory besides
    the arguments: 8 bytes a row for each thread, and 8 more.

    Args:
        labels: (N,) int32. N < 2**32.
        phash: (N, 4) uint64.
        limit: Hamming bits, 0 or more.
        recall: least expected share found of the pairs at exactly `limit`; nearer ones are found more surely.
        threads: worker threads, each at a table of its own.
        rows: (n,) ascending rows that take part; None for those with a label of 0 or more.
        order: as for member_pairs.
        mirrored: as for within_pairs; then equal hashes are no pair.

    Returns:
        the pairs, and statistics: bits and tables, candidates (pairs compared), cut_buckets (longer than BUCKET_CAP,
        compared in part; per table), equal_groups, cut_groups.
    """
    rows = np.flatnonzero(labels >= 0) if rows is None else rows
    groups = equal_groups([phash[:, word] for word in range(4)], rows)
    heads = groups.rows[groups.starts[:-1]]
    first = np.ones(len(rows), bool)
    first[np.searchsorted(rows, np.setdiff1d(groups.rows, heads, assume_unique=True))] = False
    rows = rows[first]
    statistics: dict[str, int | float] = {"candidates": 0, "cut_buckets": 0, "tables": 0, "bits": 0}
    heads = np.sort(heads)
    codes, distances = np.empty(0, np.uint64), np.empty(0, np.int16)
    if (limit > 0 or mirrored) and len(rows) > 1:
        bits, tables = plan_tables(len(rows), max(limit, 1), recall, _sample(phash, rows))
        statistics |= {"tables": tables, "bits": bits}
        with ThreadPoolExecutor(threads) as pool:
            waiting = [(codes, distances)]
            for code, distance, compared, cut in pool.map(
                lambda mask: _table(phash, rows, mask, limit, mirrored), masks(bits, tables)
            ):
                statistics["candidates"] += compared
                statistics["cut_buckets"] += cut
                a, b = _rows(code)
                keep = (labels[a] != labels[b]) | np.isin(a, heads) | np.isin(b, heads)  # equals may bear other labels
                waiting.append((code[keep], distance[keep]))
                if sum(len(item[0]) for item in waiting[1:]) > max(SPAN, len(waiting[0][0])):
                    waiting = [_unique(waiting)]
        codes, distances = _unique(waiting)
    equal = np.arange(0 if mirrored else len(heads))
    codes, distances, statistics["cut_groups"] = _spell_out(groups, equal, codes, distances, labels, order)
    statistics["equal_groups"] = len(heads)
    return Pairs(*_rows(codes), distances), statistics


def _sample(phash: Array, rows: Array) -> Array:
    """Returns the distances of up to 2**21 pairs of rows drawn with a fixed seed."""
    rng = np.random.default_rng(BITS)
    count = min(1 << 21, 8 * len(rows))
    spans = [slice(low, min(low + SPAN, count)) for low in range(0, count, SPAN)]
    first, found = np.empty(count, np.uint32), np.empty(count, np.int16)  # places in rows; what draws is far larger
    for span in spans:
        first[span] = rng.integers(0, len(rows), span.stop - span.start)
    for span in spans:
        other = rng.integers(0, len(rows), span.stop - span.start)
        found[span] = hamming(phash, rows.take(first[span]), rows.take(other))[1]
    return found


def _spell_out(
    groups: Groups, own: Array, codes: Array, distances: Array, labels: Array, order: Order
) -> tuple[Array, Array, int]:
    """Returns the codes and distances of all pairs of different labels, given those between first rows of groups, and
    those inside the groups `own`.

    Also returns how many pairs of groups had to be cut.
    """
    a, b = _rows(codes)
    heads = groups.rows[groups.starts[:-1]]
    grouped = np.isin(a, heads) | np.isin(b, heads)
    singles = np.setdiff1d(np.concatenate([a[grouped], b[grouped]]), heads)
    ends = groups.starts[-1] + 1 + np.arange(len(singles))
    every = Groups(np.concatenate([groups.rows, singles]), np.concatenate([groups.starts, ends]))
    names = np.concatenate([heads, singles])
    sorter = np.argsort(names)
    one, two = (sorter[np.searchsorted(names, rows[grouped], sorter=sorter)] for rows in (a, b))
    apart = np.concatenate([np.zeros(len(own), np.int16), distances[grouped]])
    spelled, apart, cut = member_pairs(
        every, np.concatenate([own, one]), np.concatenate([own, two]), apart, labels, order
    )
    return *_unique([(codes[~grouped], distances[~grouped]), (spelled, apart)]), cut

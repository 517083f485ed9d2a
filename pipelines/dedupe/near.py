"""Pairs of near-equal 256-bit perceptual hashes: complete inside an identity, banded across identities.

Both searches sort one uint64 per row, what must be equal in the high bits and the row number in the low ones, and
compare each row with those that follow it while the high bits stay the same. The result depends on neither the number
of threads nor the time: tables are seeded and independent, and pairs come back sorted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from faceshards.hashing import GOLDEN
from pipelines.dedupe.equal import SPAN, Array, Groups, Order, equal_groups, low_bits, member_pairs

BITS = 256
BUCKET_CAP = 64  # rows that a row of a bucket is compared with
NEAR, NEAR_RECALL = 16, 0.99  # whatever the recall asked for, pairs this near are found this surely
ROW_COST, CANDIDATE_COST = 30.0, 45.0  # ns per row of a table and per pair compared; measured, 42.5 M rows, Xeon
LANES = np.uint64(0x0001000100010001)
MASK1, MASK2, MASK4, MASK8 = (LANES * np.uint64(mask) for mask in (0x5555, 0x3333, 0x0F0F, 0x00FF))


class Pairs(NamedTuple):
    """Pairs of rows, each once, ascending by (a, b); a < b."""

    a: Array  # (P,) int64
    b: Array  # (P,) int64
    distance: Array  # (P,) int16, Hamming bits


def _popcount(x: Array, y: Array) -> Array:
    """Returns the set bits of x and y together, (M,) uint64 in 0..128 (numpy 1.26 has no bitwise_count)."""
    one, two, four = np.uint64(1), np.uint64(2), np.uint64(4)
    total: Array = np.uint64(0)  # type: ignore[assignment]
    for word in (x, y):
        word = word - ((word >> one) & MASK1)
        total = total + (word & MASK2) + ((word >> two) & MASK2)  # nibbles of at most 8: both words fit
    total = (total & MASK4) + ((total >> four) & MASK4)
    total = (total & MASK8) + ((total >> np.uint64(8)) & MASK8)  # 16-bit lanes: 128 + 128 would wrap a byte
    return (total * LANES) >> np.uint64(48)


def hamming(phash: Array, a: Array, b: Array, limit: int = BITS) -> tuple[Array, Array]:
    """Returns which of the pairs are at most `limit` apart, and their distances.

    Args:
        phash: (N, 4) uint64.
        a: (M,) integer rows.
        b: (M,) integer rows.
        limit: Hamming bits.

    Returns:
        (K,) int64 places in `a`, ascending, and (K,) int16 distances.
    """
    places, distances = [np.empty(0, np.int64)], [np.empty(0, np.int16)]
    for low in range(0, len(a), SPAN):
        x = phash.take(a[low : low + SPAN], axis=0)  # (m, 4): whole rows, one cache line serves all four words
        x ^= phash.take(b[low : low + SPAN], axis=0)
        half = _popcount(x[:, 0], x[:, 1])
        hit = np.flatnonzero(half <= limit)  # unlike faces differ by 40 bits in half a hash: most stop here
        x = x.take(hit, axis=0)
        full = half.take(hit) + _popcount(x[:, 2], x[:, 3])
        near = np.flatnonzero(full <= limit)
        places.append(hit.take(near) + low)
        distances.append(full.take(near).astype(np.int16))
    return np.concatenate(places), np.concatenate(distances)


def _scan(
    keys: Array, bits: int, phash: Array, limit: int, cap: int, low: int, high: int
) -> tuple[Array, Array, int, int]:
    """Returns the near pairs whose earlier row sits in keys[low:high].

    Offset diagonals: every row against its o-th follower at once, o = 1, 2, ..., dropping the rows whose bucket ended.

    Args:
        keys: (n,) uint64, sorted; the row is in the low `bits`, the bucket in the rest.
        cap: largest o.

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
        hit, distance = hamming(phash, first.view(np.int64), other.view(np.int64), limit)
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


def within_pairs(labels: Array, phash: Array, limit: int, threads: int = 1, rows: Array | None = None) -> Pairs:
    """Returns every pair of one identity at most `limit` apart; complete.

    Work grows with the square of an identity: about 25 ns times half the sum of squares.

    Args:
        labels: (N,) int32 identities; rows below 0 take no part. N < 2**32.
        phash: (N, 4) uint64.
        limit: Hamming bits.
        threads: worker threads.
        rows: (n,) ascending rows that take part; all of them if None.
    """
    bits = low_bits(len(labels))
    rows = np.flatnonzero(labels >= 0) if rows is None else rows[labels.take(rows) >= 0]
    keys = labels.take(rows).astype(np.uint64)
    keys <<= np.uint64(bits)
    keys |= rows.astype(np.uint64)
    keys.sort()
    with ThreadPoolExecutor(threads) as pool:
        spans = range(0, len(keys), SPAN)
        found = list(pool.map(lambda low: _scan(keys, bits, phash, limit, len(keys), low, low + SPAN)[:2], spans))
    codes, distances = _unique([(np.empty(0, np.uint64), np.empty(0, np.int16)), *found])
    return Pairs(*_rows(codes), distances)


def plan_tables(n: int, limit: int, recall: float, similarity: Array) -> tuple[int, int]:
    """Returns (bits per key, tables): the cheapest that reach the recall.

    A table of k of the 256 bits finds a pair at distance d if none of its d differing bits is among them:
    p(d, k) = C(256 - k, d) / C(256, d), and T tables miss it with probability (1 - p)**T.

    Args:
        n: rows.
        limit: distance in bits, 1 or more.
        recall: wanted at exactly `limit`.
        similarity: (S,) distances of a random sample of pairs; tells how many candidates k bits let through.
    """
    step = np.arange(64)
    survive = np.cumprod(
        np.clip(BITS - np.arange(BITS + 1)[:, None] - step, 0, None) / (BITS - step), axis=1
    )  # (257, 64)
    share = np.bincount(similarity, minlength=BITS + 1) / max(1, len(similarity))  # (257,)
    best: tuple[float, int, int] = (math.inf, 0, 0)
    for k in range(min(48, low_bits(n) + 2), 61):  # fewer bits than log2(n) would overflow the buckets
        tables = 1
        for distance, wanted in ((limit, recall), (min(limit, NEAR), NEAR_RECALL)):
            tables = max(tables, math.ceil(math.log1p(-wanted) / math.log1p(-survive[distance, k - 1])))
        cost = tables * (n * ROW_COST + n * n / 2 * float(share @ survive[:, k - 1]) * CANDIDATE_COST)
        best = min(best, (cost, k, tables))
    return best[1], best[2]


def _masks(bits: int, tables: int) -> Array:
    """Returns (T, 4) uint64 masks of `bits` bits, no two of them at one place of their words.

    So the four masked words can be or-ed into one without losing a bit. Places, and words within a place, are taken
    least used first, ties at random: every one of the 256 bits serves in as many tables as any other, give or take one.
    """
    rng = np.random.default_rng(BITS)
    places, words, masks = np.zeros(64, np.int64), np.zeros((64, 4), np.int64), np.zeros((tables, 4), np.uint64)
    for mask in masks:
        for place in np.lexsort((rng.random(64), places))[:bits]:
            word = np.lexsort((rng.random(4), words[place]))[0]
            mask[word] |= np.uint64(1) << np.uint64(place)
            words[place, word] += 1
            places[place] += 1
    return masks


def _table(phash: Array, rows: Array, mask: Array, limit: int) -> tuple[Array, Array, int, int]:
    """Returns what _scan returns, for the table of one mask (4,)."""
    bits = low_bits(len(phash))
    below = np.uint64((1 << bits) - 1)
    keys = np.empty(len(rows), np.uint64)
    for low in range(0, len(rows), SPAN):
        part = rows[low : low + SPAN].astype(np.int64)
        words = phash.take(part, axis=0)
        key = words[:, 0] & mask[0]
        for word in (1, 2, 3):
            key |= words[:, word] & mask[word]
        key *= np.uint64(GOLDEN)  # multiply-shift: the high bits of the product are the key
        keys[low : low + SPAN] = (key & ~below) | part.view(np.uint64)
    keys.sort()
    spans = range(0, len(keys), SPAN)
    parts = [_scan(keys, bits, phash, limit, BUCKET_CAP, low, low + SPAN) for low in spans]
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
) -> tuple[Pairs, dict[str, int | float]]:
    """Returns pairs of different identities at most `limit` apart, and how they were found.

    Equal hashes are found completely and searched once; the rest by tables keyed by random bits (bit sampling: Indyk
    and Motwani, STOC 1998). Peak memory besides the arguments: 8 bytes a row for each thread, and 8 more.

    Args:
        labels: (N,) int32. N < 2**32.
        phash: (N, 4) uint64.
        limit: Hamming bits, 0 or more.
        recall: least expected share found of the pairs at exactly `limit`; nearer ones are found more surely.
        threads: worker threads, each at a table of its own.
        rows: (n,) ascending rows that take part; None for those with a label of 0 or more.
        order: as for member_pairs.

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
    if limit > 0 and len(rows) > 1:
        bits, tables = plan_tables(len(rows), limit, recall, _sample(phash, rows))
        statistics |= {"tables": tables, "bits": bits}
        with ThreadPoolExecutor(threads) as pool:
            waiting = [(codes, distances)]
            for code, distance, compared, cut in pool.map(
                lambda mask: _table(phash, rows, mask, limit), _masks(bits, tables)
            ):
                statistics["candidates"] += compared
                statistics["cut_buckets"] += cut
                a, b = _rows(code)
                keep = (labels[a] != labels[b]) | np.isin(a, heads) | np.isin(b, heads)  # equals may bear other labels
                waiting.append((code[keep], distance[keep]))
                if sum(len(item[0]) for item in waiting[1:]) > max(SPAN, len(waiting[0][0])):
                    waiting = [_unique(waiting)]
        codes, distances = _unique(waiting)
    codes, distances, statistics["cut_groups"] = _spell_out(groups, codes, distances, labels, order)
    statistics["equal_groups"] = len(heads)
    return Pairs(*_rows(codes), distances), statistics


def _sample(phash: Array, rows: Array) -> Array:
    """Returns the distances of up to 2**21 pairs of rows drawn with a fixed seed."""
    rng = np.random.default_rng(BITS)
    count = min(1 << 21, 8 * len(rows))
    a, b = (rows.take(rng.integers(0, len(rows), count)) for _ in range(2))
    return hamming(phash, a, b)[1]


def _spell_out(groups: Groups, codes: Array, distances: Array, labels: Array, order: Order) -> tuple[Array, Array, int]:
    """Returns the codes and distances of all pairs of different labels, given those between first rows of groups.

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
    own = np.arange(len(heads))
    one, two = (sorter[np.searchsorted(names, rows[grouped], sorter=sorter)] for rows in (a, b))
    apart = np.concatenate([np.zeros(len(own), np.int16), distances[grouped]])
    spelled, apart, cut = member_pairs(
        every, np.concatenate([own, one]), np.concatenate([own, two]), apart, labels, order
    )
    return *_unique([(codes[~grouped], distances[~grouped]), (spelled, apart)]), cut

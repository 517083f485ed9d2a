"""Tables keyed by random bits of a hash: how many, of how many bits, and their keys (bit sampling: Indyk and Motwani,
STOC 1998)."""

from __future__ import annotations

import math

import numpy as np

from faceshards.hashing import GOLDEN
from pipelines.dedupe.equal import Array, low_bits
from pipelines.dedupe.hamming import BITS, MIRROR

NEAR, NEAR_RECALL = 16, 0.99  # whatever the recall asked for, pairs this near are found this surely
ROW_COST, CANDIDATE_COST = 30.0, 45.0  # ns per row of a table and per pair compared; measured, 42.5 M rows, Xeon


def plan_tables(n: int, limit: int, recall: float, similarity: Array, pictures: int | None = None) -> tuple[int, int]:
    """Returns (bits per key, tables): the cheapest that reach the recall.

    A table of k of the 256 bits finds a pair at distance d if none of its d differing bits is among them:
    p(d, k) = C(256 - k, d) / C(256, d), and T tables miss it with probability (1 - p)**T.

    Args:
        n: rows.
        limit: distance in bits, 1 or more.
        recall: wanted at exactly `limit`.
        similarity: (S,) distances of a random sample of pairs; tells how many candidates k bits let through.
        pictures: compares each row with this many others, in place of the rows with each other; then 0 bits, which let
            through all pairs, may be the cheapest.
    """
    step = np.arange(64)
    survive = np.cumprod(
        np.clip(BITS - np.arange(BITS + 1)[:, None] - step, 0, None) / (BITS - step), axis=1
    )  # (257, 64)
    survive = np.concatenate([np.ones((BITS + 1, 1)), survive], axis=1)  # (257, 65): by the bits of a key
    share = np.bincount(similarity, minlength=BITS + 1) / max(1, len(similarity))  # (257,)
    # Fewer bits than log2(n) would overflow the buckets of rows among themselves.
    least, pairs = (min(48, low_bits(n) + 2), n * n / 2) if pictures is None else (0, n * pictures)
    best: tuple[float, int, int] = (math.inf, 0, 0)
    for k in range(least, 61):
        tables = 1
        for distance, wanted in ((limit, recall), (min(limit, NEAR), NEAR_RECALL)):
            if k:
                tables = max(tables, math.ceil(math.log1p(-wanted) / math.log1p(-survive[distance, k])))
        cost = tables * (n * ROW_COST + pairs * float(share @ survive[:, k]) * CANDIDATE_COST)
        best = min(best, (cost, k, tables))
    return best[1], best[2]


def masks(bits: int, tables: int) -> Array:
    """Returns (T, 4) uint64 masks of `bits` bits, no two of them at one place of their words.

    So the four masked words can be or-ed into one without losing a bit. Places, and words within a place, are taken
    least used first, ties at random: every one of the 256 bits serves in as many tables as any other, give or take one.
    """
    rng = np.random.default_rng(BITS)
    places, words, found = np.zeros(64, np.int64), np.zeros((64, 4), np.int64), np.zeros((tables, 4), np.uint64)
    for mask in found:
        for place in np.lexsort((rng.random(64), places))[:bits]:
            word = np.lexsort((rng.random(4), words[place]))[0]
            mask[word] |= np.uint64(1) << np.uint64(place)
            words[place, word] += 1
            places[place] += 1
    return found


def keys_of(hashes: Array, mask: Array, mirrored: bool = False) -> Array:
    """Returns (N,) uint64 keys, equal where the hashes agree in all bits of the mask; their high bits spread well.

    Args:
        hashes: (N, 4) uint64.
        mask: (4,) uint64 of masks().
        mirrored: the keys are equal, too, where a hash agrees with another one's mirror image: of the two, a key is
            made of the one whose first bit that mirroring turns is 0.
    """
    keys = hashes[:, 0] & mask[0]
    for word in (1, 2, 3):
        keys |= hashes[:, word] & mask[word]
    turned = np.bitwise_or.reduce(mask) & MIRROR
    if mirrored and turned:
        lowest = turned & (~turned + np.uint64(1))
        keys ^= turned * ((keys & lowest) != 0)
    keys *= np.uint64(GOLDEN)  # multiply-shift: the high bits of the product are the key
    return keys

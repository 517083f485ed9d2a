"""Compares the images of two datasets: an image is its sha256 under its label_original.

Rows go into buckets by their digests' first byte, so that threads share the work and what one sorts fits into a cache.
There the first words are sorted with the row's number in place of their last bits. A digest alike to no other is in one
set only; two that are alike, one here and one there, are compared whole; what is repeated goes a longer way. A set of n
images takes 41 n bytes.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

_BUCKETS = 256

Indices = np.ndarray[Any, np.dtype[np.int64]]
Side = tuple[np.ndarray, np.ndarray]  # of a set's images: digests, (n, 4) uint64, and numbers of identities, (n,) int32


@dataclass(frozen=True)
class Images:
    """Which images differ, by their places in the tables `images` of A and B, ascending.

    Attributes:
        lost: (L,) int64 in A: images that B has not.
        gained: (G,) int64 in B: images that A has not.
        moved_a: (M,) int64 in A: images that B has under another label_original.
        moved_b: (M,) int64 in B: the same images there.
        same: number of images that both have under one label_original.
    """

    lost: Indices
    gained: Indices
    moved_a: Indices
    moved_b: Indices
    same: int


def compare_images(a: Side, b: Side) -> Images:
    """Returns which images differ; an image that a set holds n times is n images."""
    only = [np.ones(len(codes), bool) for _, codes in (a, b)]
    moved, partner = np.zeros(len(a[1]), bool), np.zeros(len(a[1]), np.int64)

    def compare(bucket: int) -> int:
        here = [places[bounds[bucket] : bounds[bucket + 1]] for places, bounds in buckets]
        if not all(map(len, here)):
            return 0
        sides = [(digests[places], codes[places]) for (digests, codes), places in zip((a, b), here, strict=True)]
        rows = _match(*sides)
        for alone, places, matched in zip(only, here, rows, strict=True):
            alone[places[matched]] = False
        other = sides[0][1][rows[0]] != sides[1][1][rows[1]]
        before = here[0][rows[0][other]]
        moved[before], partner[before] = True, here[1][rows[1][other]]
        return len(other) - len(before)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy sorts and copies without the interpreter's lock
        buckets = list(pool.map(_by_bucket, [digests for digests, _ in (a, b)]))
        same = sum(pool.map(compare, range(_BUCKETS)))
    lost, gained, moved_a = (np.flatnonzero(rows) for rows in (*only, moved))
    return Images(lost, gained, moved_a, partner[moved_a], same)


def _by_bucket(digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the places of digests, bucket by bucket and ascending in each, and where each bucket begins."""
    bucket = digests[:, 0].astype(np.uint8)  # digests are random bits
    places = np.argsort(bucket, kind="stable").astype(np.uint32 if len(bucket) < 1 << 32 else np.int64)
    return places, np.concatenate([[0], np.cumsum(np.bincount(bucket, minlength=_BUCKETS))])


def _match(a: Side, b: Side) -> tuple[Indices, Indices]:
    """Returns rows of A and of B that are one image, no row twice, those under one identity before others."""
    left, right, others = _alike(a[0][:, 0], b[0][:, 0])
    equal = (a[0][left] == b[0][right]).all(axis=1)
    here, there = others[others < len(a[0])], others[others >= len(a[0])] - len(a[0])
    more = _match_repeated((a[0][here], a[1][here]), (b[0][there], b[1][there]))
    return np.concatenate([left[equal], here[more[0]]]), np.concatenate([right[equal], there[more[1]]])


def _alike(a: np.ndarray, b: np.ndarray) -> tuple[Indices, Indices, Indices]:
    """Finds words whose leading bits are equal: all but the few that it takes to number them.

    Returns:
        Places in `a` and in `b` of two that are alike and to which no other is; and those of all others that have one,
        ascending, where b's follow a's.
    """
    keys = np.concatenate([a, b])
    bits = np.uint64(len(keys).bit_length())
    keys >>= bits
    keys <<= bits
    keys |= np.arange(len(keys), dtype=np.uint64)
    keys.sort()
    rows = (keys & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)
    alike = np.zeros(len(keys) + 1, bool)  # each with the one before
    alike[1:-1] = (keys[1:] ^ keys[:-1]) >> bits == 0
    first = np.flatnonzero(alike[1:] & ~alike[:-1])
    first = first[~alike[first + 2]]  # of two
    left, right = rows[first], rows[first + 1]  # equal leading bits: they lie in the order of their numbers
    across = (left < len(a)) & (right >= len(a))
    others = alike[1:] | alike[:-1]
    others[first[across]] = others[first[across] + 1] = False
    return left[across], right[across] - len(a), np.sort(rows[others])


def _match_repeated(a: Side, b: Side) -> tuple[Indices, Indices]:
    """Returns what _match does, of any digests: first under one identity each with each, then what is left."""
    groups = _groups(a[0], b[0])
    rest = [np.arange(len(part)) for part in groups]
    found = []
    for with_identity in (True, False):
        keys = [part[left] for part, left in zip(groups, rest, strict=True)]
        if with_identity:
            keys = [(key << 32) | code for key, (_, code) in zip(keys, (a, b), strict=True)]
        pairs = _pairs(*keys)
        found.append([left[pair] for left, pair in zip(rest, pairs, strict=True)])
        rest = [np.delete(left, pair) for left, pair in zip(rest, pairs, strict=True)]
    left, right = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return left, right


def _groups(a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
    """Returns for digests of A and of B, (n, 4) uint64, numbers that are equal where the digests are, (n,) int64."""
    digests = np.concatenate([a, b])
    order = np.lexsort(digests.T)
    ordered = digests[order]
    numbers = np.zeros(len(digests), np.int64)
    numbers[order[1:]] = np.cumsum((ordered[1:] != ordered[:-1]).any(axis=1))
    return [numbers[: len(a)], numbers[len(a) :]]


def _pairs(a: np.ndarray, b: np.ndarray) -> tuple[Indices, Indices]:
    """Returns places in `a` and `b` of equal keys, the first with the first, the second with the second."""
    _, numbers = np.unique(np.concatenate([a, b]), return_inverse=True)
    ranked = [_ranked(part) for part in (numbers[: len(a)], numbers[len(a) :])]
    width = max((int(rank.max(initial=0)) for _, rank in ranked), default=0) + 1
    keys = [number * width + rank for number, rank in ranked]
    _, left, right = np.intersect1d(keys[0], keys[1], assume_unique=True, return_indices=True)
    return left, right


def _ranked(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns numbers, and for each how many equal ones precede it."""
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    first = np.searchsorted(ordered, ordered)
    rank = np.empty(len(numbers), np.int64)
    rank[order] = np.arange(len(numbers)) - first
    return numbers, rank

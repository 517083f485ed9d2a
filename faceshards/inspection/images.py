"""Compares the images of two datasets: an image is its sha256 under its label_original.

Digests are compared whole, in buckets by their first bits, so that what is sorted at a time fits into a processor's
cache; a set of n images takes 40 n bytes.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

_BUCKETS = 256

Indices = np.ndarray[Any, np.dtype[np.int64]]


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


def compare_images(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> Images:
    """Returns which images differ; an image that a set holds n times is n images."""
    sorted_places = [_by_bucket(digests) for digests, _ in (a, b)]

    def compare(bucket: int) -> tuple[Indices, Indices, Indices, Indices, int]:
        here = [places[bounds[bucket] : bounds[bucket + 1]] for places, bounds in sorted_places]
        groups = _groups(a[0][here[0]], b[0][here[1]])
        codes = [identities[places] for (_, identities), places in zip((a, b), here, strict=True)]
        lost, gained, moved_a, moved_b, same = _match(groups, codes)
        return here[0][lost], here[1][gained], here[0][moved_a], here[1][moved_b], same

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy sorts without the interpreter's lock
        found = list(pool.map(compare, range(_BUCKETS)))
    lost, gained, moved_a, moved_b = (np.concatenate(parts) for parts in list(zip(*found, strict=True))[:4])
    order = np.argsort(moved_a)
    return Images(np.sort(lost), np.sort(gained), moved_a[order], moved_b[order], sum(part[4] for part in found))


def _by_bucket(digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the places of digests, bucket by bucket and ascending in each, and where each bucket begins."""
    bucket = (digests[:, 0] % _BUCKETS).astype(np.uint8)  # digests are random bits
    places = np.argsort(bucket, kind="stable").astype(np.uint32 if len(bucket) < 1 << 32 else np.int64)
    return places, np.concatenate([[0], np.cumsum(np.bincount(bucket, minlength=_BUCKETS))])


def _groups(a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
    """Returns for digests of A and of B, (n, 4) uint64, numbers that are equal where the digests are, (n,) int64."""
    digests = np.concatenate([a, b])
    order = np.argsort(np.ascontiguousarray(digests[:, 0]))
    steps = _steps(digests[order])
    if (steps[1] & ~steps[0]).any():  # equal in 64 bits and not in 256: two digests could lie interleaved
        order = np.lexsort(digests.T)
        steps = _steps(digests[order])
    numbers = np.zeros(len(digests), np.int64)
    numbers[order[1:]] = np.cumsum(steps[0] | steps[1])
    return [numbers[: len(a)], numbers[len(a) :]]


def _steps(ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each digest but the first whether its first word is not the one before's, and whether others are."""
    first, *others = (ordered[1:, word] != ordered[:-1, word] for word in range(4))
    return first, np.logical_or.reduce(others)


def _match(groups: list[np.ndarray], codes: list[np.ndarray]) -> tuple[Indices, Indices, Indices, Indices, int]:
    """Returns places of rows lost (in A), gained (in B) and moved (in A, in B), and how many rows are the same.

    Args:
        groups: of A and B: number of each row's digest.
        codes: of A and B: number of each row's identity.
    """
    size = max((int(part.max(initial=-1)) for part in groups), default=-1) + 1
    counts = [np.bincount(part, minlength=size) for part in groups]
    once = (counts[0] == 1) & (counts[1] == 1)  # nearly all: one image there and there
    at = np.zeros(size, np.int64)
    single_b = np.flatnonzero(once[groups[1]])
    at[groups[1][single_b]] = single_b
    single_a = np.flatnonzero(once[groups[0]])
    partner = at[groups[0][single_a]]
    equal = codes[0][single_a] == codes[1][partner]
    same, moved = int(equal.sum()), [(single_a[~equal], partner[~equal])]

    # Of one set only, or repeated: first under one identity each with each, then what is left.
    rest = [np.flatnonzero(~once[part]) for part in groups]
    for with_identity in (True, False):
        keys = [part[left] for part, left in zip(groups, rest, strict=True)]
        if with_identity:
            keys = [(key << 32) | code[left] for key, code, left in zip(keys, codes, rest, strict=True)]
        pairs = _pairs(*keys)
        if with_identity:
            same += len(pairs[0])
        else:
            moved.append((rest[0][pairs[0]], rest[1][pairs[1]]))
        rest = [np.delete(left, pair) for left, pair in zip(rest, pairs, strict=True)]
    moved_a, moved_b = (np.concatenate(parts) for parts in zip(*moved, strict=True))
    return rest[0], rest[1], moved_a, moved_b, same


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

"""Rows that are equal in full: found exactly by sorting, and spelled out as pairs of rows.

A sort of one uint64 per row, a hash in the high bits and the row number in the low ones, costs about 15 ns a row; what
it puts side by side is then compared in full.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from faceshards.hashing import GOLDEN

Array = npt.NDArray[Any]
Order = Callable[[Array], Array]  # rows -> the permutation that puts the most deserving first

SPAN = 1 << 16  # rows per chunk: its temporaries stay within a core's second-level cache
GROUP_CAP = 32 * 32  # member pairs spelled out between two groups of equal rows


class Groups(NamedTuple):
    """Rows that are equal, group after group."""

    rows: Array  # (M,) int64, ascending inside a group as equal_groups returns it
    starts: Array  # (G + 1,) int64, group g is rows[starts[g]:starts[g + 1]], two rows or more


def low_bits(n: int) -> int:
    """Returns how many low bits of a key hold a row number below n."""
    return max(1, (n - 1).bit_length())


def equal_groups(columns: Sequence[Array], rows: Array) -> Groups:
    """Returns the rows that agree in every column with another row; complete and exact.

    A 64-bit key only gathers the suspects; the columns themselves decide.

    Args:
        columns: (N,) integer arrays.
        rows: (n,) ascending rows that take part.
    """
    below = np.uint64((1 << low_bits(len(columns[0]))) - 1)
    keys = np.empty(len(rows), np.uint64)
    for low in range(0, len(rows), SPAN):
        part = rows[low : low + SPAN].astype(np.int64)
        key = np.zeros(len(part), np.uint64)
        for column in columns:
            key ^= column[part].astype(np.uint64)  # not take: it would copy a strided column whole
            key *= np.uint64(GOLDEN)
            key ^= key >> np.uint64(32)  # else a word's high bits would reach no other bits
        key *= np.uint64(GOLDEN)
        keys[low : low + SPAN] = (key & ~below) | part.view(np.uint64)
    keys.sort()
    suspect = np.zeros(len(rows) + 1, bool)
    suspect[1:-1] = (keys[1:] ^ keys[:-1]) <= below
    found = (keys[suspect[1:] | suspect[:-1]] & below).view(np.int64)
    del keys, suspect
    found = found.take(np.lexsort((found, *(column[found] for column in columns))))
    new = np.zeros(len(found) + 1, bool)
    new[[0, -1]] = True
    for column in columns:
        value = column[found]
        new[1:-1] |= value[1:] != value[:-1]
    starts = np.flatnonzero(new)
    grouped = np.repeat(np.diff(starts) > 1, np.diff(starts))
    sizes = np.diff(starts)
    return Groups(found[grouped], np.concatenate([[0], np.cumsum(sizes[sizes > 1])]))


def member_pairs(
    groups: Groups, a: Array, b: Array, distance: Array, labels: Array, order: Order
) -> tuple[Array, Array, int]:
    """Returns the pairs of rows, of different labels, that pairs of groups stand for.

    Two groups of more than GROUP_CAP member pairs are cut: each is tied to the other's hubs only, its most deserving
    row and the most deserving row of another label. Every member that has a partner keeps one, and inside one group
    a greedy choice in this order stays the same (hub kept: the others go; hub gone: what removed it removes them).

    Args:
        groups: the groups.
        a: (P,) group numbers, and `b` likewise; a group with itself stands for the pairs inside it.
        b: (P,) group numbers.
        distance: (P,) int16.
        labels: (N,) int32.
        order: sorts rows, the most deserving first.

    Returns:
        codes (Q,) uint64 of smaller row << 32 | larger row, distances (Q,) int16, pairs of groups that were cut.
    """
    size = np.diff(groups.starts)
    product = size[a] * size[b]
    whole = np.flatnonzero(product <= GROUP_CAP)
    pair = np.repeat(whole, product[whole])
    place = np.arange(len(pair)) - np.repeat(np.cumsum(product[whole]) - product[whole], product[whole])
    left = [groups.rows[groups.starts[a[pair]] + place // size[b[pair]]]]
    right = [groups.rows[groups.starts[b[pair]] + place % size[b[pair]]]]
    apart = [distance[pair]]
    cut = np.flatnonzero(product > GROUP_CAP)
    for p in cut:
        for one, two in ((a[p], b[p]), (b[p], a[p])):
            rows = groups.rows[groups.starts[one] : groups.starts[one + 1]]
            rows = rows[order(rows)]
            others = groups.rows[groups.starts[two] : groups.starts[two + 1]]
            hubs = [rows[0], *rows[labels[rows] != labels[rows[0]]][:1]]
            left.append(np.repeat(np.array(hubs), len(others)))
            right.append(np.tile(others, len(hubs)))
            apart.append(np.full(len(left[-1]), distance[p], np.int16))
    x, y, d = np.concatenate(left), np.concatenate(right), np.concatenate(apart)
    keep = labels[x] != labels[y]
    x, y, d = x[keep].astype(np.uint64), y[keep].astype(np.uint64), d[keep]
    return np.minimum(x, y) << np.uint64(32) | np.maximum(x, y), d, len(cut)

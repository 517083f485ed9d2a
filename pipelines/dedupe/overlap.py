"""Which rows are pictures of other sets: the same bytes, a near hash, or one near the mirror image's.

Those sets are small beside a training set, so here it is they that tables are made of, each picture in them as it is
and mirrored, and a row is looked up: it costs some 100 ns a table. What is found for a row depends on it and
on the pictures alone, not on the other rows: a build, and whoever looks at its dataset later, find the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dedupe.equal import SPAN, Array, low_bits
from pipelines.dedupe.hamming import MIRROR, hamming
from pipelines.dedupe.tables import keys_of, masks, plan_tables

RECALL = 0.9999
"""Expected share found of the pairs at exactly the limit: a look-up is cheap, and a test picture that stays is not."""

_SAMPLE = 1 << 18  # pairs of pictures whose distances tell how many a table lets through
_SPARSE = 4  # a filter has 2**4 places or more for each key: so few rows pass that have no partner
_PIECE = 1 << 20  # pairs compared at a time


@dataclass(frozen=True)
class Pictures:
    """What is known of the pictures that a set may not have, whatever set they come from.

    Args:
        sets: names of their sets.
        of_set: (E,) int32 place in `sets`.
        number: (E,) int32 place of the picture in its set, from 0.
        sha: (E, 2) uint64, first 16 bytes of the SHA-256.
        phash: (E, 4) uint64.
        hashed: (E,) bool, where phash is valid.
    """

    sets: Sequence[str]
    of_set: Array
    number: Array
    sha: Array
    phash: Array
    hashed: Array

    def __len__(self) -> int:
        return len(self.number)


class Overlaps(NamedTuple):
    """Rows that are one of the pictures, each once with its nearest, ascending by row."""

    row: Array  # (M,) int64
    picture: Array  # (M,) int64 place among the pictures
    distance: Array  # (M,) int16 Hamming bits, to the mirror image where mirrored
    mirrored: Array  # (M,) bool
    exact: Array  # (M,) bool, the same bytes

    def details(self, pictures: Pictures) -> pa.Array:
        """Returns the evidence in words, a text a row."""
        more = np.where(self.exact, ", same bytes", np.where(self.mirrored, ", mirrored", ""))
        texts = (
            pa.array(pictures.sets, pa.string()).take(pa.array(pictures.of_set[self.picture])),
            pa.array(pictures.number[self.picture]).cast(pa.string()),
            pa.array(self.distance).cast(pa.string()),
            pa.array(more.astype(object), pa.string()),
        )
        return pc.binary_join_element_wise(texts[0], " picture ", texts[1], ", distance ", *texts[2:], "")

    def per_set(self, pictures: Pictures) -> dict[str, int]:
        """Returns how many rows each set accounts for."""
        counts = np.bincount(pictures.of_set[self.picture], minlength=len(pictures.sets))
        return dict(zip(pictures.sets, counts.tolist(), strict=True))


class _Table:
    """Pictures by key.

    Args:
        keys: (K,) uint64 whose high bits are spread well; equal ones may come often.
    """

    def __init__(self, keys: Array) -> None:
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]
        bits = min(low_bits(len(keys)) + _SPARSE, 24)
        self._shift = np.uint64(64 - bits)
        self._filter = np.zeros(1 << bits, bool)
        self._filter[(keys >> self._shift).view(np.int64)] = True

    def pairs(self, keys: Array) -> Iterator[tuple[Array, Array]]:
        """Yields the places of rows with one of these keys, and the pictures' places, a piece at a time."""
        rows = np.flatnonzero(self._filter.take((keys >> self._shift).view(np.int64)))
        wanted = keys.take(rows)
        first = np.searchsorted(self._keys, wanted)
        count = np.searchsorted(self._keys, wanted, "right") - first
        end = np.cumsum(count)
        total, low = int(end[-1]) if len(end) else 0, 0
        while low < total:
            start = int(np.searchsorted(end, low, "right"))
            stop = max(start + 1, int(np.searchsorted(end, low + _PIECE, "right")))
            some = count[start:stop]
            within = np.arange(some.sum()) - np.repeat(np.cumsum(some) - some, some)
            yield np.repeat(rows[start:stop], some), self._order[np.repeat(first[start:stop], some) + within]
            low = int(end[stop - 1])


class Finder:
    """Looks rows up among pictures.

    Args:
        pictures: the pictures.
        limit: Hamming bits; below 0 only the same bytes count.
    """

    def __init__(self, pictures: Pictures, limit: int) -> None:
        self._pictures, self._limit = pictures, limit
        self._by_bytes = _Table(pictures.sha[:, 0].copy())
        hashed = np.flatnonzero(pictures.hashed)
        first = np.unique(pictures.phash[hashed], axis=0, return_index=True)[1]  # a pair's picture comes in others too
        self._of = hashed[np.sort(first)]  # (H,) pictures with a hash of their own
        upright = pictures.phash[self._of]
        self._hashes = np.concatenate([upright, upright ^ MIRROR])  # (2H, 4)
        self._masks, self.bits, self.tables = np.zeros((0, 4), np.uint64), 0, 0
        if limit >= 0 and len(self._of):
            rng = np.random.default_rng(0)
            sample = hamming(self._hashes, *rng.integers(0, len(self._hashes), (2, _SAMPLE)))[1]
            # How many rows there are does not change which tables are cheapest.
            self.bits, self.tables = plan_tables(1, max(limit, 1), RECALL, sample, len(self._hashes))
            self._masks = masks(self.bits, self.tables)
        self._by_bits = [_Table(keys_of(self._hashes, mask)) for mask in self._masks]

    def find(self, sha: Array, phash: Array) -> Overlaps:
        """Returns which rows are one of the pictures.

        Args:
            sha: (N, 2) uint64.
            phash: (N, 4) uint64.
        """
        row, picture, distance = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.int16)]
        mirrored, exact = [np.empty(0, bool)], [np.empty(0, bool)]
        for rows, places in self._by_bytes.pairs(sha[:, 0]):
            same = sha[rows, 1] == self._pictures.sha[places, 1]
            row.append(rows[same])
            picture.append(places[same])
            distance.append(np.zeros(len(row[-1]), np.int16))
            mirrored.append(np.zeros(len(row[-1]), bool))
            exact.append(np.ones(len(row[-1]), bool))
        for table, mask in zip(self._by_bits, self._masks, strict=True):
            for rows, places in table.pairs(keys_of(phash, mask)):
                near, apart = hamming(phash, rows, places, self._limit, others=self._hashes)
                row.append(rows[near])
                picture.append(self._of[places[near] % len(self._of)])
                distance.append(apart)
                mirrored.append(places[near] >= len(self._of))
                exact.append(np.zeros(len(near), bool))
        found = Overlaps(*(np.concatenate(column) for column in (row, picture, distance, mirrored, exact)))
        order = np.lexsort((found.picture, found.mirrored, found.distance, ~found.exact, found.row))
        first_of_row = order[np.diff(found.row[order], prepend=-1) > 0]
        return Overlaps(*(column[first_of_row] for column in found))


def find_overlaps(finder: Finder, sha: Array, phash: Array, rows: Array, threads: int = 1) -> Overlaps:
    """Returns which of the rows are one of the pictures, in whole columns; the threads do not change it.

    Args:
        finder: of the pictures.
        sha: (N, 2) uint64.
        phash: (N, 4) uint64.
        rows: (n,) ascending rows that take part.
        threads: worker threads.
    """

    def part(low: int) -> Overlaps:
        some = rows[low : low + SPAN]
        found = finder.find(sha.take(some, axis=0), phash.take(some, axis=0))
        return found._replace(row=some[found.row])

    with ThreadPoolExecutor(threads) as pool:
        parts = [finder.find(sha[:0], phash[:0]), *pool.map(part, range(0, len(rows), SPAN))]
    return Overlaps(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

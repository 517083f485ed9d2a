"""Weighted pairs, for many weightings at a time: what the figures of a set and of its resamples are made of.

A resample of the pairs is a weight per pair: how often it was drawn. Pairs of one fold, kind and distance lie side by
side as cells, so a running sum over the cells answers how many pairs of a fold are below any threshold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

THRESHOLDS = np.arange(0, 4, 0.01)  # (400,) of the accuracy; arange's own rounding is the protocol's
FINE = np.arange(0, 4, 0.001)  # (4000,) of VAL
TARGET = 1e-3  # false accept rate of VAL
EXACT = 50_000  # pairs up to which each is a cell of its own when resampled
_BLOCK = 1 << 20  # cells times resamples worked on at a time: 8 MB an array


class Cells:
    """A set's pairs in cells, sorted by kind (one person, two), fold and distance.

    Args:
        dist: (P,) squared distances, not negative.
        same: (P,) bool.
        fold: (P,) int, below `folds`.
        folds: F, their number.
        exact: a cell for each pair; otherwise for each step of the protocol's grids, within which pairs are taken as
            spread evenly.

    Attributes:
        impostors: pairs of two persons.
        low: (cells,) the distance at which a cell begins.
        width: (cells,) how far it reaches from there; 0 if exact.
        counts: (cells,) int32, pairs in it.
        starts: (2F + 1,) the first cell of each fold of one person, then of two, and the end.
        coarse: (2F, 400) the first cell of each of these that is not below one of THRESHOLDS.
        fine: (F, 4000) likewise, of two persons and of FINE.
        sorted: cells of one person and of two, each (cells of the kind,) by distance.
        upto: (K,) each: of these, how many are not beyond each of the K distinct distances.
    """

    def __init__(self, dist: np.ndarray, same: np.ndarray, fold: np.ndarray, folds: int, *, exact: bool) -> None:
        group = np.where(same, fold, fold + folds).astype(np.int16)  # (P,)
        self.folds, self.exact, self.impostors = folds, exact, int(np.count_nonzero(~same))
        if exact:
            by_distance = np.argsort(dist, kind="stable")
            order = by_distance[np.argsort(group[by_distance], kind="stable")]
            self.low, self.counts = dist[order], np.ones(len(order), np.int32)
            self.width = np.zeros(len(order))
            group = group[order]
        else:
            edges = np.append(np.union1d(THRESHOLDS, FINE), 4.001)
            place = np.searchsorted(edges, dist, side="right") - 1
            counts = np.bincount(group.astype(np.int64) * len(edges) + place, minlength=2 * folds * len(edges))
            used = np.flatnonzero(counts)
            group, place = np.divmod(used, len(edges))
            self.low, self.counts, self.width = edges[place], counts[used].astype(np.int32), np.diff(edges)[place]
        self.starts = np.searchsorted(group, np.arange(2 * folds + 1))
        self.coarse = self._places(THRESHOLDS)
        self.fine = self._places(FINE)[folds:]
        half = self.starts[folds]
        kinds = (np.arange(half), np.arange(half, len(self.low)))
        self.sorted = [cells[np.argsort(self.low[cells], kind="stable")] for cells in kinds]
        distinct = np.unique(self.low)
        self.upto = [np.searchsorted(self.low[cells], distinct, side="right") for cells in self.sorted]

    def _places(self, thresholds: np.ndarray) -> np.ndarray:
        """Returns (2F, thresholds): the first cell of each fold and kind that is not below a threshold."""
        parts = np.split(self.low, self.starts[1:-1])
        pairs = zip(self.starts, parts, strict=False)  # starts has one more
        return np.stack([start + np.searchsorted(part, thresholds) for start, part in pairs])

    def drawings(self, samples: int, seed: int) -> Iterator[np.ndarray]:
        """Yields (block, cells) int32, `samples` rows in all: how often each cell's pairs were drawn, fold by fold."""
        rng = np.random.default_rng(seed)
        starts, folds = self.starts, self.folds
        members = [np.r_[starts[f] : starts[f + 1], starts[folds + f] : starts[folds + f + 1]] for f in range(folds)]
        block = max(1, _BLOCK // len(self.low))
        for first in range(0, samples, block):
            rows = min(block, samples - first)
            weights = np.empty((rows, len(self.low)), np.int32)
            for cells in members:
                counts = self.counts[cells]
                if self.exact:
                    drawn = rng.integers(len(cells), size=(rows, len(cells)))
                    drawn += np.arange(rows)[:, None] * len(cells)
                    weights[:, cells] = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
                else:
                    weights[:, cells] = rng.multinomial(counts.sum(), counts / counts.sum(), rows)
            yield weights


@dataclass(frozen=True)
class Judged:
    """Pairs judged at the thresholds that the protocol chooses.

    Args:
        accuracies: (R, F) of each fold at its threshold.
        chosen: (R, F) int, the folds' thresholds as places in THRESHOLDS.
        best: (R,) int, the first threshold that is best for all pairs, likewise.
        best_accuracy: (R,) of all pairs at it.
    """

    accuracies: np.ndarray
    chosen: np.ndarray
    best: np.ndarray
    best_accuracy: np.ndarray


class Weighted:
    """R weightings of a set's pairs. What several metrics need is worked out once, when the first of them asks.

    A rate of nothing is NaN.

    Args:
        cells: the set.
        weights: (R, cells) int32, pairs in each cell.
        fars: false accept rates at which figures are wanted.
    """

    def __init__(self, cells: Cells, weights: np.ndarray, fars: Sequence[float]) -> None:
        self.cells, self.weights, self.fars = cells, weights, fars

    @cached_property
    def _below(self) -> np.ndarray:
        """(R, cells + 1) int32, pairs before each cell, and all."""
        return _running(self.weights)

    @cached_property
    def _base(self) -> np.ndarray:
        """(R, 2F + 1) int32, pairs before each fold and kind, and all."""
        return self._below[:, self.cells.starts]

    @cached_property
    def _sizes(self) -> np.ndarray:
        """(R, 2F) int32, pairs of each fold and kind."""
        return np.diff(self._base, axis=1)

    @cached_property
    @np.errstate(divide="ignore", invalid="ignore")
    def judged(self) -> Judged:
        """The accuracies: a pair below a threshold is judged one person."""
        folds, below, base, sizes = self.cells.folds, self._below, self._base, self._sizes
        right = (
            below[:, self.cells.coarse[:folds]] - below[:, self.cells.coarse[folds:]]
        )  # (R, F, 400), less a constant
        right += (base[:, folds : 2 * folds] - base[:, :folds] + sizes[:, folds:])[:, :, None]
        everything = right.sum(axis=1, dtype=np.int32)  # (R, 400)
        chosen = np.stack([(everything - right[:, fold]).argmax(axis=1) for fold in range(folds)], axis=1)  # (R, F)
        return Judged(
            accuracies=np.take_along_axis(right, chosen[:, :, None], 2)[:, :, 0]
            / (sizes[:, :folds] + sizes[:, folds:]),
            chosen=chosen,
            best=everything.argmax(axis=1),
            best_accuracy=everything.max(axis=1) / sizes.sum(axis=1),
        )

    @cached_property
    @np.errstate(divide="ignore", invalid="ignore")
    def vals(self) -> tuple[np.ndarray, np.ndarray]:
        """(R, F) true and (R, F) false accept rate of each fold where the others' false accept rate is TARGET."""
        folds, threshold = self.cells.folds, self._val_thresholds()
        rates = np.array([self._share_below(group, threshold[:, group % folds]) for group in range(2 * folds)])
        return rates[:folds].T, rates[folds:].T

    def _val_thresholds(self) -> np.ndarray:
        """Returns (R, F), the thresholds of VAL: between two of FINE, by linear interpolation of the training FAR.

        It is the linear B-spline through the points (FAR, threshold), which is what interp1d(kind="slinear") was when
        this protocol was written, in its order of operations. Today's SciPy refuses a FAR that several thresholds
        share, and some always do; the spline takes the largest of them where the FAR is met exactly. No pair of two
        persons among the others, or too few below all thresholds: the threshold is 0.
        """
        folds, below, base, each = self.cells.folds, self._below, self._base, np.arange(len(self.weights))
        sizes = self._sizes[:, folds:]
        impostors = sizes.sum(axis=1, keepdims=True) - sizes  # (R, F), of the other folds

        def accepted(places: np.ndarray) -> np.ndarray:
            """Returns (R, F): of the other folds' pairs of two persons, those below FINE[places], places (R, F)."""
            counts = below[each[:, None, None], self.cells.fine[:, places].transpose(1, 0, 2)]  # (R, of fold, for fold)
            counts -= base[:, folds : 2 * folds, None]
            own = counts[:, np.arange(folds), np.arange(folds)]
            return counts.sum(axis=1) - own

        low, high = np.zeros(impostors.shape, np.int64), np.full(impostors.shape, len(FINE))
        while (high - low > 1).any():  # the last threshold whose FAR is not above the target
            middle = (low + high) // 2
            fits = accepted(middle) / impostors <= TARGET
            low, high = np.where(fits, middle, low), np.where(fits, high, middle)
        after = np.minimum(low + 1, len(FINE) - 1)
        far, above = accepted(low) / impostors, accepted(after) / impostors
        part = 1 / (above - far)
        threshold = FINE[low] * (part * (above - TARGET)) + FINE[after] * (part * (TARGET - far))
        threshold = np.where(high == len(FINE), np.where(far == TARGET, FINE[-1], 0), threshold)
        return np.where(impostors > 0, threshold, 0)

    def _share_below(self, group: int, wanted: np.ndarray) -> np.ndarray:
        """Returns (R,), the share of a fold's pairs of one kind that is below the thresholds `wanted` (R,)."""
        cells, below, each = self.cells, self._below, np.arange(len(self.weights))
        start, end = cells.starts[group : group + 2]
        place = start + np.searchsorted(cells.low[start:end], wanted)  # (R,)
        last = np.maximum(place - 1, 0)  # the cell that a threshold can be inside of
        width, outside = cells.width[last], np.zeros(len(place))  # outside: its part that is not below
        partial = (width > 0) & (place > start)
        np.divide(cells.low[last] + width - wanted, width, out=outside, where=partial)
        counts = below[each, place] - self._base[:, group]
        counts = counts - np.maximum(outside, 0) * (below[each, place] - below[each, last])
        return np.asarray(counts / self._sizes[:, group])

    @cached_property
    @np.errstate(divide="ignore", invalid="ignore")
    def roc(self) -> tuple[np.ndarray, np.ndarray]:
        """(R, K + 1) true and (R, K + 1) false accept rate of all pairs: at no distance, then at each distinct one."""
        rates = []
        for cells, upto in zip(self.cells.sorted, self.cells.upto, strict=True):
            total = _running(self.weights[:, cells])
            rates.append(np.concatenate([np.zeros((len(total), 1)), total[:, upto] / total[:, -1:]], axis=1))
        true, false = rates
        return true, false


def _running(weights: np.ndarray) -> np.ndarray:
    """Returns (R, cells + 1) int32, the sum of the weights (R, cells) before each cell, and of all."""
    sums = np.zeros((len(weights), weights.shape[1] + 1), np.int32)
    np.cumsum(weights, axis=1, dtype=np.int32, out=sums[:, 1:])
    return sums

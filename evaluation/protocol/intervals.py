"""Every figure of the protocol from weighted pairs, for many weightings at a time: the measurement and its resamples.

A resample of the pairs is a weight per pair: how often it was drawn. Pairs of one fold, kind and distance lie side by
side as cells, so a running sum over the cells answers how many pairs of a fold are below any threshold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np

THRESHOLDS = np.arange(0, 4, 0.01)  # (400,) of the accuracy; arange's own rounding is the protocol's
FINE = np.arange(0, 4, 0.001)  # (4000,) of VAL
TARGET = 1e-3  # false accept rate of VAL
EXACT = 50_000  # pairs up to which each is a cell of its own when resampled
_BLOCK = 1 << 20  # cells times resamples worked on at a time: 8 MB an array


@dataclass(frozen=True)
class Figures:
    """What R weightings of the pairs give; a rate of nothing is NaN.

    Args:
        accuracies: (R, F) of each fold at its threshold.
        chosen: (R, F) int, the folds' thresholds as places in THRESHOLDS.
        best: (R,) int, the first threshold that is best for all pairs, likewise.
        best_accuracy: (R,) of all pairs at it.
        vals: (R, F) true accept rate of each fold where the others' false accept rate is TARGET.
        met: (R, F) false accept rate of each fold there.
        tar: (R, wanted rates) true accept rate of all pairs.
        eer: (R,) equal error rate.
        auc: (R,) area under the ROC curve; a tie counts half.
    """

    accuracies: np.ndarray
    chosen: np.ndarray
    best: np.ndarray
    best_accuracy: np.ndarray
    vals: np.ndarray
    met: np.ndarray
    tar: np.ndarray
    eer: np.ndarray
    auc: np.ndarray


class Cells:
    """A set's pairs in cells, sorted by kind (one person, two), fold and distance.

    Args:
        dist: (P,) squared distances, not negative.
        same: (P,) bool.
        fold: (P,) int, below `folds`.
        folds: F, their number.
        exact: a cell for each pair; otherwise for each step of the protocol's grids, within which pairs are taken as
            spread evenly.
    """

    def __init__(self, dist: np.ndarray, same: np.ndarray, fold: np.ndarray, folds: int, *, exact: bool) -> None:
        group = np.where(same, fold, fold + folds).astype(np.int16)  # (P,)
        self.folds, self.exact = folds, exact
        if exact:
            by_distance = np.argsort(dist, kind="stable")
            order = by_distance[np.argsort(group[by_distance], kind="stable")]
            self.low, self.counts = dist[order], np.ones(len(order), np.int32)
            self._width = np.zeros(len(order))
            group = group[order]
        else:
            edges = np.append(np.union1d(THRESHOLDS, FINE), 4.001)
            place = np.searchsorted(edges, dist, side="right") - 1
            counts = np.bincount(group.astype(np.int64) * len(edges) + place, minlength=2 * folds * len(edges))
            used = np.flatnonzero(counts)
            group, place = np.divmod(used, len(edges))
            self.low, self.counts, self._width = edges[place], counts[used].astype(np.int32), np.diff(edges)[place]
        self._starts = np.searchsorted(group, np.arange(2 * folds + 1))  # (2F + 1,)
        self._coarse = self._places(THRESHOLDS)  # (2F, 400)
        self._fine = self._places(FINE)[folds:]  # (F, 4000), of two persons
        half = self._starts[folds]
        kinds = (np.arange(half), np.arange(half, len(self.low)))  # cells of one person, of two
        self._sorted = [cells[np.argsort(self.low[cells], kind="stable")] for cells in kinds]
        distinct = np.unique(self.low)  # (K,)
        self._upto = [np.searchsorted(self.low[cells], distinct, side="right") for cells in self._sorted]  # (K,) each

    def _places(self, thresholds: np.ndarray) -> np.ndarray:
        """Returns (2F, thresholds): the first cell of each fold and kind that is not below a threshold."""
        parts = np.split(self.low, self._starts[1:-1])
        pairs = zip(self._starts, parts, strict=False)  # starts has one more
        return np.stack([start + np.searchsorted(part, thresholds) for start, part in pairs])

    def measure(self, fars: Sequence[float]) -> Figures:
        """Returns the figures of the pairs as they are (R = 1)."""
        return self._figures(self.counts[None], fars)

    def resample(self, fars: Sequence[float], samples: int, seed: int) -> Figures:
        """Returns the figures of R = `samples` drawings of the pairs, with replacement and within each fold."""
        rng = np.random.default_rng(seed)
        found = [self._figures(weights, fars) for weights in self._drawings(samples, rng)]
        return Figures(*(np.concatenate([getattr(part, f.name) for part in found]) for f in fields(Figures)))

    def _drawings(self, samples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Yields (block, cells) int32: how often the pairs of each cell were drawn."""
        starts, folds = self._starts, self.folds
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

    def _figures(self, weights: np.ndarray, fars: Sequence[float]) -> Figures:
        """Returns the figures of (R, cells) int32 weights."""
        below = _running(weights)  # (R, cells + 1)
        base = below[:, self._starts]
        sizes = np.diff(base, axis=1)  # (R, 2F)
        with np.errstate(divide="ignore", invalid="ignore"):
            return Figures(
                *self._accuracy(below, base, sizes), *self._val(below, base, sizes), *self._roc(weights, fars)
            )

    def _accuracy(self, below: np.ndarray, base: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, ...]:
        """Returns accuracies, chosen, best and best_accuracy: `below` a threshold is judged one person."""
        folds = self.folds
        right = below[:, self._coarse[:folds]] - below[:, self._coarse[folds:]]  # (R, F, 400), less a constant
        right += (base[:, folds : 2 * folds] - base[:, :folds] + sizes[:, folds:])[:, :, None]
        everything = right.sum(axis=1, dtype=np.int32)  # (R, 400)
        chosen = np.stack([(everything - right[:, fold]).argmax(axis=1) for fold in range(folds)], axis=1)  # (R, F)
        accuracies = np.take_along_axis(right, chosen[:, :, None], 2)[:, :, 0] / (sizes[:, :folds] + sizes[:, folds:])
        best = everything.argmax(axis=1)
        return accuracies, chosen, best, everything.max(axis=1) / sizes.sum(axis=1)

    def _val(self, below: np.ndarray, base: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, ...]:
        """Returns vals and met; the threshold is between two of FINE, by linear interpolation of the training FAR.

        It is the linear B-spline through the points (FAR, threshold), which is what interp1d(kind="slinear") was when
        this protocol was written, in its order of operations. Today's SciPy refuses a FAR that several thresholds
        share, and some always do; the spline takes the largest of them where the FAR is met exactly. No pair of two
        persons among the others, or too few below all thresholds: the threshold is 0.
        """
        folds, each = self.folds, np.arange(len(below))
        impostors = sizes[:, folds:].sum(axis=1, keepdims=True) - sizes[:, folds:]  # (R, F), of the other folds

        def accepted(places: np.ndarray) -> np.ndarray:
            """Returns (R, F): of the other folds' pairs of two persons, those below FINE[places], places (R, F)."""
            counts = below[each[:, None, None], self._fine[:, places].transpose(1, 0, 2)]  # (R, of fold, for fold)
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
        threshold = FINE[low] * (part * (above - TARGET)) + FINE[after] * (part * (TARGET - far))  # (R, F)
        threshold = np.where(high == len(FINE), np.where(far == TARGET, FINE[-1], 0), threshold)
        threshold = np.where(impostors > 0, threshold, 0)
        rates = np.empty((2 * folds, len(below)))
        for group in range(2 * folds):
            start, end = self._starts[group : group + 2]
            wanted = threshold[:, group % folds]
            place = start + np.searchsorted(self.low[start:end], wanted)  # (R,)
            last = np.maximum(place - 1, 0)  # the cell that a threshold can be inside of
            width, outside = self._width[last], np.zeros(len(place))  # outside: its part that is not below
            partial = (width > 0) & (place > start)
            np.divide(self.low[last] + width - wanted, width, out=outside, where=partial)
            counts = below[each, place] - base[:, group]
            counts = counts - np.maximum(outside, 0) * (below[each, place] - below[each, last])
            rates[group] = counts / sizes[:, group]
        return rates[:folds].T, rates[folds:].T

    def _roc(self, weights: np.ndarray, fars: Sequence[float]) -> tuple[np.ndarray, ...]:
        """Returns tar, eer and auc, from the curve's points after each distinct distance."""
        rates = []
        for cells, upto in zip(self._sorted, self._upto, strict=True):
            total = _running(weights[:, cells])
            rates.append(np.concatenate([np.zeros((len(total), 1)), total[:, upto] / total[:, -1:]], axis=1))
        true, false = rates  # (R, K + 1)
        tar, last = np.empty((len(weights), len(fars))), true.shape[1] - 1
        for row in range(len(weights)):
            point = np.searchsorted(false[row], fars, side="right") - 1  # (fars,)
            tar[row] = true[row, point]
            if not self.exact:
                after = np.minimum(point + 1, last)
                step = np.where(after > point, (fars - false[row, point]) / (false[row, after] - false[row, point]), 0)
                tar[row] += step * (true[row, after] - true[row, point])
        auc = np.einsum("rk,rk->r", np.diff(false, axis=1), true[:, 1:] + true[:, :-1]) / 2
        gap = 1 - true - false  # (R, K + 1), falling
        each = np.arange(len(weights))
        if self.exact:
            crossing = np.abs(gap).argmin(axis=1)
            eer = (1 - true[each, crossing] + false[each, crossing]) / 2
        else:
            after = np.maximum((gap <= 0).argmax(axis=1), 1)
            step = gap[each, after - 1] / (gap[each, after - 1] - gap[each, after])
            eer = false[each, after - 1] + step * (false[each, after] - false[each, after - 1])
        return tar, np.where(np.isfinite(auc), eer, np.nan), auc


def _running(weights: np.ndarray) -> np.ndarray:
    """Returns (R, cells + 1) int32, the sum of the weights (R, cells) before each cell, and of all."""
    sums = np.zeros((len(weights), weights.shape[1] + 1), np.int32)
    np.cumsum(weights, axis=1, dtype=np.int32, out=sums[:, 1:])
    return sums

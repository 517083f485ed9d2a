"""The metrics: each makes its figures of weighted pairs, so the measurement and its resamples are one computation.

A new metric is a function here and a line in METRICS; the report writes it, and a line in report/table.py prints it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from evaluation.protocol.figures import Figure, middle, tar_name
from evaluation.protocol.intervals import Cells, Weighted
from faceshards.extensions import ExtensionError, blamed, family

# (R,) by a figure's name, or (R, F) whose mean over the folds is the figure. NaN: the weighting cannot show it.
Values = dict[str, np.ndarray]


def accuracy(pairs: Weighted) -> Values:
    """Returns the accuracy of each fold at the threshold that is best on the others."""
    return {"accuracy": pairs.judged.accuracies}


def val(pairs: Weighted) -> Values:
    """Returns the true accept rate of each fold where the others' false accept rate is 1e-3."""
    return {"val": pairs.vals[0]}


@np.errstate(divide="ignore", invalid="ignore")
def tar(pairs: Weighted) -> Values:
    """Returns the true accept rate of all pairs at each false accept rate that is wanted.

    The largest on the curve whose false accept rate is not above; between the curve's points if cells are no pairs.
    A rate that the set's pairs of two persons are too few to show is NaN.
    """
    true, false = pairs.roc
    fars, found, last = np.array(pairs.fars), np.empty((len(true), len(pairs.fars))), true.shape[1] - 1
    for row in range(len(true)):
        point = np.searchsorted(false[row], fars, side="right") - 1  # (fars,)
        found[row] = true[row, point]
        if not pairs.cells.exact:
            after = np.minimum(point + 1, last)
            step = np.where(after > point, (fars - false[row, point]) / (false[row, after] - false[row, point]), 0)
            found[row] += step * (true[row, after] - true[row, point])
    found[:, fars * pairs.cells.impostors < 1] = np.nan
    return {tar_name(far): found[:, place] for place, far in enumerate(pairs.fars)}


def auc(pairs: Weighted) -> Values:
    """Returns the area under the ROC curve; a tie counts half."""
    true, false = pairs.roc
    return {"auc": np.einsum("rk,rk->r", np.diff(false, axis=1), true[:, 1:] + true[:, :-1]) / 2}


@np.errstate(divide="ignore", invalid="ignore")
def eer(pairs: Weighted) -> Values:
    """Returns the equal error rate: where both differ least, between the curve's points if cells are no pairs."""
    true, false = pairs.roc
    gap = 1 - true - false  # (R, K + 1), falling
    each = np.arange(len(true))
    if pairs.cells.exact:
        crossing = np.abs(gap).argmin(axis=1)
        rate = (1 - true[each, crossing] + false[each, crossing]) / 2
    else:
        after = np.maximum((gap <= 0).argmax(axis=1), 1)
        step = gap[each, after - 1] / (gap[each, after - 1] - gap[each, after])
        rate = false[each, after - 1] + step * (false[each, after] - false[each, after - 1])
    return {"eer": np.where(np.isfinite(gap[:, -1]), rate, np.nan)}  # not finite: pairs of one kind only


METRICS: dict[str, Callable[[Weighted], Values]] = family(
    "metrics",
    {
        "accuracy": accuracy,
        "val": val,
        "tar": tar,
        "auc": auc,
        "eer": eer,
    },
    Callable,
)


def measure(pairs: Weighted) -> Values:
    """Returns what all metrics give.

    Raises:
        ExtensionError: one of another package gives no arrays of R rows, raises, or a figure has the name of another.
    """
    found: Values = {}
    for name, metric in METRICS.items():
        with blamed(f"metric '{name}'"):
            values = metric(pairs)
            for figure, array in values.items():
                if np.ndim(array) not in (1, 2) or len(array) != len(pairs.weights):
                    raise ExtensionError(
                        f"metric '{name}': {figure}: an array of {np.shape(array)} for {len(pairs.weights)} weightings"
                    )
                if figure in found:
                    raise ExtensionError(f"metric '{name}': {figure}: another metric has a figure of this name")
            found |= values
    return found


def resample(cells: Cells, fars: Sequence[float], samples: int, seed: int) -> Values:
    """Returns what all metrics give of R = `samples` drawings of the pairs, with replacement and within each fold."""
    parts = [measure(Weighted(cells, weights, fars)) for weights in cells.drawings(samples, seed)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def figures(measured: Values, resampled: Values | None) -> dict[str, Figure]:
    """Returns the figures by name.

    Args:
        measured: of the pairs as they are (R = 1).
        resampled: of their drawings; None for no intervals.
    """
    found = {}
    for name, values in measured.items():
        value = float(over_folds(values)[0])
        if not np.isfinite(value):
            found[name] = Figure(None)
        else:
            found[name] = Figure(value, None if resampled is None else middle(over_folds(resampled[name])))
    return found


def over_folds(values: np.ndarray) -> np.ndarray:
    """Returns (R,): of (R, F) the means over the folds that have a value, of (R,) itself."""
    if values.ndim == 1:
        return values
    known = np.isfinite(values)
    if not (there := known.any(axis=0)).all():
        values, known = values.T[there].T, known[:, there]
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values, 0).sum(axis=1) / known.sum(axis=1))

"""The metrics against the equations as loops: of the pairs as they are, of resamples, and in cells of a grid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from evaluation.protocol.figures import middle, tar_name
from evaluation.protocol.intervals import THRESHOLDS, Cells, Weighted
from evaluation.protocol.metrics import METRICS, measure, over_folds, resample
from evaluation.protocol.verification import distances, fold_of, verify, verify_distances
from tests.evaluation.protocol import oracle as protocol
from tests.evaluation.protocol.pairs import EPSILON, FARS, overlapping, values


def weighted(dist, same, fold, folds=10, exact=True):
    """Returns the pairs as they are."""
    cells = Cells(dist, same, fold, folds, exact=exact)
    return Weighted(cells, cells.counts[None], FARS)


def check(pairs, row, dist, same, fold):
    """Compares one weighting with the loops over the pairs that it stands for."""
    accuracies, thresholds = protocol.ten_fold(dist, same, fold)
    measured, judged = measure(pairs), pairs.judged
    np.testing.assert_array_equal(measured["accuracy"][row], accuracies)
    np.testing.assert_array_equal(THRESHOLDS[judged.chosen[row]], thresholds)
    everything = range(len(dist))
    assert THRESHOLDS[judged.best[row]] == protocol.best(dist, same, everything)
    assert judged.best_accuracy[row] == protocol.accuracy(dist, same, THRESHOLDS[judged.best[row]], everything)
    for found, wanted in zip(pairs.vals, protocol.val(dist, same, fold), strict=True):
        np.testing.assert_array_equal(found[row], np.array(wanted, float))  # None is NaN
    np.testing.assert_array_equal(measured["val"], pairs.vals[0])
    for far in FARS:
        wanted = protocol.tar_at(dist, same, far) if far * pairs.cells.impostors >= 1 else np.nan
        np.testing.assert_equal(measured[tar_name(far)][row], wanted)
    assert measured["eer"][row] == protocol.eer(dist, same)
    assert measured["auc"][row] == pytest.approx(protocol.auc(dist, same), abs=1e-12)


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_ties_at_thresholds_to_the_last_digit(data):
    # Distances at multiples of 0.01 and 0.001 in floating point, and a unit in the last place beside them.
    pairs = data.draw(st.integers(20, 30))
    steps = st.tuples(st.integers(1, 1200), st.sampled_from([0.001, 0.01]), st.sampled_from([-1, 0, 0, 1]))
    drawn = data.draw(st.lists(steps, min_size=3, max_size=pairs))
    values = np.array([min(k, 399) * step if step == 0.01 else k * step for k, step, _ in drawn])
    values = np.array([np.nextafter(v, v + u) if u else v for v, (_, _, u) in zip(values, drawn, strict=True)])
    dist = values[np.arange(pairs) % len(values)]
    same = np.array(data.draw(st.lists(st.booleans(), min_size=pairs, max_size=pairs)))
    same[:2], same[-2:] = [True, False], [True, False]
    fold = np.array(protocol.folds(pairs))
    check(weighted(dist, same, fold), 0, dist.tolist(), same.tolist(), fold.tolist())


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 1 << 30))
def test_a_resample_is_the_protocol_on_the_pairs_drawn(seed):
    # Weights against loops over the pairs repeated as often as they were drawn.
    dist, same = overlapping(30, seed)
    dist[::7] = dist[0]
    fold = np.array(protocol.folds(30, 3))
    cells = Cells(dist, same, fold, 3, exact=True)
    weights = next(cells.drawings(2, seed))
    order = np.lexsort((dist, fold, ~same))
    np.testing.assert_array_equal(cells.low, dist[order])
    pairs = Weighted(cells, weights, FARS)
    for row in range(2):
        drawn = np.repeat(order, weights[row])
        assert np.bincount(fold[drawn]).tolist() == [10, 10, 10]
        check(pairs, row, dist[drawn].tolist(), same[drawn].tolist(), fold[drawn].tolist())


def test_intervals_are_a_literal_bootstraps():
    # 2,000 resamples of pair numbers, each measured as a set of its own.
    dist, same = overlapping(300)
    samples = 2000
    got = verify_distances(dist, same, fars=FARS, bootstrap=samples, seed=1)
    point = verify_distances(dist, same, fars=FARS, bootstrap=0)
    assert values(got.figures) == values(point.figures)
    assert got == verify_distances(dist, same, fars=FARS, bootstrap=samples, seed=1)
    rng, drawn = np.random.default_rng(2), []
    for _ in range(samples):
        picked = np.concatenate([rng.integers(first, first + 30, 30) for first in range(0, 300, 30)])
        drawn.append([*values(verify_distances(dist[picked], same[picked], fars=FARS, bootstrap=0).figures).values()])
    ours = resample(Cells(dist, same, fold_of(300, 10), 10, exact=True), FARS, samples, 1)
    ours = {name: over_folds(found) for name, found in ours.items()}
    assert {name: middle(found) for name, found in ours.items()} == {
        name: figure.interval for name, figure in got.figures.items()
    }
    intervals, ours = [figure.interval for figure in got.figures.values()], np.column_stack([*ours.values()])
    # Two means of n draws differ by sd * sqrt(2 / n), two shares of p by sqrt(2 p (1 - p) / n); four times as much has
    # a chance below 1e-4.
    mean_error = 4 * np.std(drawn, axis=0) * np.sqrt(2 / samples)
    np.testing.assert_array_less(np.abs(np.mean(drawn, axis=0) - ours.mean(axis=0)), mean_error)
    share_error = 4 * np.sqrt(2 * 0.025 * 0.975 / samples)
    for (low, high), found in zip(intervals, np.array(drawn).T, strict=True):
        # Figures are on a lattice: a quantile has a share of the draws below it and a share not above it.
        assert np.mean(found < low) - share_error < 0.025 < np.mean(found <= low) + share_error
        assert np.mean(found > high) - share_error < 0.025 < np.mean(found >= high) + share_error


def test_cells_of_a_grid_are_near_cells_of_a_pair():
    # Large sets are resampled in cells of the grid. Accuracy is the same there; the others differ by what pairs that
    # are not evenly spread in a cell of 0.001 do.
    dist, same = overlapping(20_000)
    fold = fold_of(len(dist), 10)
    one, other = weighted(dist, same, fold), weighted(dist, same, fold, exact=False)
    for name in ("accuracies", "chosen", "best", "best_accuracy"):
        np.testing.assert_array_equal(getattr(one.judged, name), getattr(other.judged, name))
    np.testing.assert_allclose(one.vals, other.vals, rtol=0, atol=1e-3)
    tolerances = {"accuracy": 0, "val": 1e-3, **dict.fromkeys(map(tar_name, FARS), 3e-4), "auc": 1e-5, "eer": 3e-4}
    exact, grid = measure(one), measure(other)
    assert list(exact) == list(grid) == list(tolerances)
    for name, tolerance in tolerances.items():
        np.testing.assert_allclose(exact[name], grid[name], rtol=0, atol=tolerance)
    exact, grid = resample(one.cells, FARS, 300, 1), resample(other.cells, FARS, 300, 2)
    for name in tolerances:
        a, b = over_folds(exact[name]), over_folds(grid[name])
        # The deviation of n draws has a relative error of 1 / sqrt(2 n): 4 % each, and 5.8 % for a ratio.
        assert a.std() / b.std() == pytest.approx(1, abs=4 * 0.058)
        assert abs(a.mean() - b.mean()) < 4 * a.std() * np.sqrt(2 / 300) + 3e-4


def test_a_metric_is_one_function_and_one_line(monkeypatch):
    monkeypatch.setitem(METRICS, "worst fold", lambda pairs: {"worst_fold": pairs.judged.accuracies.min(axis=1)})
    got = verify_distances(*overlapping(300), bootstrap=100)
    assert got.value("worst_fold") == min(got.fold_accuracies)
    low, high = got.figures["worst_fold"].interval
    assert low < high <= got.value("accuracy")


@settings(max_examples=10, deadline=None)
@given(st.integers(20, 50), st.integers(0, 1 << 30), st.sampled_from([0.0, 0.5, 2.0]))
def test_figures_are_the_protocols(pairs, seed, signal):
    rng = np.random.default_rng(seed)
    same = rng.random(pairs) < 0.5
    same[:2], same[-2:] = [True, False], [True, False]
    rows = rng.normal(size=(2 * pairs, 6))
    rows[1::2] += signal * same[:, None] * rows[0::2]
    dist, _ = distances(rows)
    wanted = np.array([protocol.squared(rows[2 * i], rows[2 * i + 1]) for i in range(pairs)])
    # Each of 6 components is off by some roundings of a number up to 1, in each of two vectors; then it is squared.
    np.testing.assert_array_less(np.abs(dist - wanted), 32 * EPSILON * (np.sqrt(wanted) + wanted))
    fold = np.array(protocol.folds(pairs))
    check(weighted(dist, same, fold), 0, dist.tolist(), same.tolist(), fold.tolist())
    got = verify(rows, same, fars=FARS, bootstrap=0)
    assert got.value("accuracy") == np.mean(got.fold_accuracies)
    assert got.std == np.std(got.fold_accuracies)
    assert got.threshold == np.mean(got.fold_thresholds)
    assert got.threshold_cosine == 1 - got.threshold / 2
    assert got.impostors == np.count_nonzero(~same)
    vals, fars = (np.array(rates)[np.isfinite(rates)] for rates in (got.fold_vals, got.fold_fars))
    assert (got.value("val"), got.val_std, got.far) == (np.mean(vals), np.std(vals), np.mean(fars))
    assert got.value("auc") == pytest.approx(roc_auc_score(same, -dist), abs=1e-12)
    assert got.xnorm == pytest.approx(np.linalg.norm(rows, axis=1).mean())

"""The field's numbers against the equations, on random embeddings, on ties, and where there is nothing to measure."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BSpline, interp1d
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import KFold
from sklearn.preprocessing import normalize

from evaluation.protocol.figures import Figure, by_far, middle, tar_name
from evaluation.protocol.intervals import FINE, THRESHOLDS, Cells, Weighted
from evaluation.protocol.metrics import METRICS, measure, over_folds, resample
from evaluation.protocol.verification import VerificationError, distances, fold_of, mean_norm, verify, verify_distances
from tests.evaluation.protocol import oracle as protocol

FARS = (0.5, 0.1, 0.03)
EPSILON = np.finfo(np.float64).eps


def from_angles(angles):
    """Returns pairs of embeddings (2P, 2) at these angles (P,) in radians."""
    rows = np.zeros((2 * len(angles), 2))
    rows[0::2, 0] = 3
    rows[1::2] = 2 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return rows


def overlapping(pairs, seed=0):
    """Returns distances (P,) of two kinds that overlap, and the kinds, (P,) bool, alternating."""
    rng = np.random.default_rng(seed)
    same = np.arange(pairs) % 2 == 0
    return np.clip(np.where(same, rng.normal(1.2, 0.35, pairs), rng.normal(1.9, 0.2, pairs)), 0, 3.99), same


def values(figures):
    """Returns the values by name."""
    return {name: figure.value for name, figure in figures.items()}


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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_distances_are_the_references_bit_for_bit(dtype):
    # A network's float32 outputs go into float64 arrays there, and everything after is float64.
    rows = np.random.default_rng(0).normal(size=(1400, 37)).astype(dtype)
    unit = normalize(rows.astype(np.float64))
    dist, norm = distances(rows)
    assert dist.dtype == np.float64
    np.testing.assert_array_equal(dist, np.sum(np.square(np.subtract(unit[0::2], unit[1::2])), 1))
    assert norm == pytest.approx(np.linalg.norm(rows.astype(np.float64), axis=1).mean(), rel=37 * EPSILON)


def test_xnorm_is_of_both_views_before_they_are_added():
    views = np.array([[[3, 4], [0, 1]], [[0, 2], [6, 8]]], np.float32)  # norms 5, 1, 2, 10
    assert mean_norm(views) == 4.5
    same = np.array([True, False] * 10)
    rows = np.random.default_rng(0).normal(size=(40, 4))
    assert verify(rows, same, bootstrap=0, xnorm=4.5).xnorm == 4.5


def test_grids_and_folds_are_numpys_and_sklearns():
    assert THRESHOLDS.tolist() == [k * 0.01 for k in range(400)]
    assert FINE.tolist() == [k * 0.001 for k in range(4000)]
    for pairs, folds in ((6000, 10), (27, 10), (10, 10), (11, 2)):
        expected = np.empty(pairs, int)
        for number, (_, test) in enumerate(KFold(folds, shuffle=False).split(np.arange(pairs))):
            expected[test] = number
        np.testing.assert_array_equal(fold_of(pairs, folds), expected)
        assert protocol.folds(pairs, folds) == expected.tolist()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=3, max_size=60).map(sorted), st.floats(0, 0.999))
def test_interpolation_is_the_linear_spline(steps, part):
    # SciPy's own spline takes repeated rates, though its interp1d does not any more.
    rates = np.array([0, *steps, 41]) / 41
    thresholds = np.arange(len(rates)) * 0.001
    rounding = 4 * EPSILON * thresholds[-1]  # of a weighted mean of two thresholds; SciPy may fuse its operations
    for target in (part, rates[len(rates) // 2] if rates[len(rates) // 2] < 1 else 0.5):
        spline = BSpline(np.r_[rates[0], rates, rates[-1]], thresholds, 1)
        found = protocol.interpolated(rates.tolist(), thresholds.tolist(), target)
        assert found == pytest.approx(float(spline(target)), rel=0, abs=rounding)
    if len(set(rates)) < len(rates):
        with pytest.raises(ValueError, match="duplicates"):
            interp1d(rates, thresholds, kind="slinear")
    else:
        spline = BSpline(np.r_[rates[0], rates, rates[-1]], thresholds, 1)
        wanted = float(interp1d(rates, thresholds, kind="slinear")(part))
        assert wanted == pytest.approx(float(spline(part)), rel=0, abs=rounding)


def test_val_takes_the_largest_threshold_that_meets_the_rate():
    # Two folds of 1,000 impostors: one of them at 0.5005 is a rate of exactly 0.001 from 0.501 to the next, at 1.
    same = np.tile(np.r_[[True] * 4, [False] * 1000], 2)
    one = np.r_[[0.5, 0.7, 0.999, 1.0], [0.5005], [1.0], np.full(998, 2.0)]
    got = verify_distances(np.tile(one, 2), same, folds=2, bootstrap=0)
    # The largest threshold of rate 0.001 is 1.000, since nothing at 1 is below it: three of four pairs.
    assert got.fold_vals == (0.75, 0.75)
    assert got.fold_fars == (0.001, 0.001)
    assert got.val_std == 0
    # With no impostor below 2 the rate goes from 0 at the threshold 2 to 0.999 at 2.001.
    one[one < 2] = 0.1
    one[4:6] = 2.0
    got = verify_distances(np.tile(one, 2), same, folds=2, bootstrap=0)
    assert got.fold_vals == (1, 1)
    assert got.fold_fars == (1, 1)  # they are all at 2, and the threshold is 2.000001


def test_val_is_zero_where_the_rate_is_never_met():
    dist = np.where(np.arange(40) % 2 == 0, 0.5, 3.9995)  # beyond the last threshold
    got = verify_distances(dist, np.arange(40) % 2 == 0, bootstrap=0)
    assert (got.value("val"), got.far) == (0, 0)


def test_folds_that_lack_a_kind_are_left_out_of_val():
    same = np.r_[[False] * 10, [True, False] * 40, [True] * 10]  # 10 folds of 10; the first and last of one kind
    dist = np.where(same, 0.5, 1.5)
    got = verify_distances(dist, same, bootstrap=100)
    assert np.isnan(got.fold_vals[0])
    assert np.isnan(got.fold_fars[-1])
    assert got.value("val") == 1
    assert got.far == np.nanmean(got.fold_fars) == 1  # all impostors are at 1.5, and the threshold is 1.50001
    assert got.figures["val"].interval == (1, 1)
    lines = [line for line in got.warnings if "1 of 10 folds hold no pair of" in line]
    assert len(lines) == 2


def test_a_distance_at_a_threshold_is_not_below_it():
    # Orthogonal and opposite vectors: squared distances exactly 2 and 4; 2 is a threshold of the protocol.
    same = np.array([True, False] * 10)
    rows = from_angles(np.array([0, np.pi / 2] * 10))
    rows[np.abs(rows) < 1e-15] = 0
    dist, _ = distances(rows)
    assert set(dist.tolist()) == {0.0, 2.0}
    got = verify(rows, same, bootstrap=0)
    assert got.value("accuracy") == 1
    assert set(got.fold_thresholds) == {0.01}
    flipped = verify(rows, ~same, bootstrap=0)  # best: the threshold 0, at which nothing is below, or above 2
    results, thresholds = protocol.ten_fold(dist, ~same, protocol.folds(20))
    assert list(flipped.fold_accuracies) == results
    assert list(flipped.fold_thresholds) == thresholds


def test_rates_by_hand():
    # Genuine at 0.2, 0.4, ..., 2; impostors at 0.5 and nine at 2.5: twice, in 10 folds of two of each.
    dist = np.zeros(40)
    same = np.tile([True, False], 20)
    dist[same], dist[~same] = np.tile(np.arange(1, 11) * 0.2, 2), np.tile([0.5] + [2.5] * 9, 2)
    got = verify_distances(dist, same, fars=(0.2, 0.1, 0.05, 0.01), bootstrap=200)
    tars = by_far(got.figures)
    assert values(tars) == {0.2: 1, 0.1: 1, 0.05: 0.2, 0.01: None}  # 20 impostors cannot show one in a hundred
    assert tars[0.01] == Figure(None)
    assert got.value("auc") == pytest.approx(1 - 0.1 * 0.8)  # a tenth of the impostors is nearer than 8 of 10 genuine
    # No impostor rate lies between 0.1 and 1: the errors meet at 2 (0 and 0.1) or at 1.8 (0.1 and 0.1).
    assert got.value("eer") == pytest.approx(0.1)
    assert got.best_threshold == pytest.approx(2.01)
    assert got.best_accuracy == 38 / 40
    assert got.best_threshold_cosine == pytest.approx(1 - 2.01 / 2)
    low, high = got.figures["accuracy"].interval
    assert 0 <= low <= got.value("accuracy") <= high <= 1
    compared = roc_curve(same, -dist, drop_intermediate=False)
    assert tars[0.1].value == compared[1][np.searchsorted(compared[0], 0.1, side="right") - 1]


@pytest.mark.parametrize(
    ("rows", "same", "message"),
    [
        (np.ones((40, 4)), [True] * 20, "all 20 pairs are the same person"),
        (np.ones((40, 4)), [False] * 20, "all 20 pairs are two persons"),
        (np.ones((10, 4)), [True, False, True, False, True], "5 pairs do not make 10 folds"),
        (np.ones((39, 4)), [True, False] * 10, "39 embeddings for 20 pairs"),
        (np.full((40, 4), np.nan), [True, False] * 10, "embedding 0 is not finite"),
        (np.zeros((40, 4)), [True, False] * 10, "embedding 0 is zero"),
        (np.r_[np.ones((1039, 4)), np.full((1, 4), np.inf)], [True, False] * 260, "embedding 1039 is not finite"),
        (np.ones((40, 4), int), [True, False] * 10, r"embeddings are int64 \[40, 4\]"),
        (np.ones(40), [True, False] * 10, r"embeddings are float64 \[40\]"),
        (np.ones((40, 4)), [True, True] + [False] * 18, "without fold 1 all pairs are of one kind"),
        (np.ones((0, 4)), [], "0 pairs do not make 10 folds"),
    ],
)
def test_no_accuracy_without_a_meaning(rows, same, message):
    with pytest.raises(VerificationError, match=message):
        verify(rows, np.array(same))


@pytest.mark.parametrize(
    ("dist", "folds", "message"),
    [
        (np.full(20, np.nan), 10, "squared distances from nan to nan"),
        (np.full(20, -1e-9), 10, "not from 0 to 4"),
        (np.full(20, 4.5), 10, "not from 0 to 4"),
        (np.ones(19), 10, "19 distances for 20 pairs"),
        (np.ones(20), 1, "1 folds: a threshold is chosen on other folds"),
    ],
)
def test_no_distances_that_cannot_be(dist, folds, message):
    with pytest.raises(VerificationError, match=message):
        verify_distances(dist, np.array([True, False] * 10), folds=folds)


def test_unequal_folds_and_guessing_are_reported():
    rows = np.random.default_rng(0).normal(size=(50, 4))
    got = verify(rows, np.array([True, False] * 12 + [True]), bootstrap=0)
    assert any("25 pairs do not make 10 equal folds" in line for line in got.warnings)
    constant = verify(np.ones((40, 4)), np.array([True, False] * 10))
    assert constant.value("accuracy") == 0.5
    assert constant.warnings == ("all embeddings are alike: the model says nothing, and 50 % is what guessing gives",)
    for bootstrap in (0, 500):
        noise = verify(np.random.default_rng(1).normal(size=(2000, 8)), np.arange(1000) % 2 == 0, bootstrap=bootstrap)
        assert "is not told from the 50 % that guessing gives" in noise.warnings[0]
    assert verify_distances(*overlapping(1000), bootstrap=500).warnings == ()
    # Nine of ten pairs are one person: 90 % is what guessing gives.
    few = np.arange(1000) % 10 != 0
    noise = verify(np.random.default_rng(1).normal(size=(2000, 8)), few, bootstrap=0)
    assert "the 90 % that guessing gives" in noise.warnings[0]

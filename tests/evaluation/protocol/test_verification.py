"""The field's numbers of a set: distances, folds, thresholds, and where there is nothing to measure."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BSpline, interp1d
from sklearn.metrics import roc_curve
from sklearn.model_selection import KFold
from sklearn.preprocessing import normalize

from evaluation.protocol.figures import Figure, by_far
from evaluation.protocol.intervals import FINE, THRESHOLDS
from evaluation.protocol.verification import VerificationError, distances, fold_of, mean_norm, verify, verify_distances
from tests.evaluation.protocol import oracle as protocol
from tests.evaluation.protocol.pairs import EPSILON, overlapping, values

pytestmark = pytest.mark.numeric


def from_angles(angles):
    """Returns pairs of embeddings (2P, 2) at these angles (P,) in radians."""
    rows = np.zeros((2 * len(angles), 2))
    rows[0::2, 0] = 3
    rows[1::2] = 2 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return rows


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

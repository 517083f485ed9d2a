"""The field's numbers against the equations, on random embeddings, on ties, and where there is nothing to measure."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from evaluation.verification import VerificationError, distances, verify
from tests.evaluation.protocol import squared, ten_fold


def from_angles(angles):
    """Returns pairs of embeddings (2P, 2) at these angles (P,) in radians."""
    rows = np.zeros((2 * len(angles), 2))
    rows[0::2, 0] = 3
    rows[1::2] = 2 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return rows


@settings(max_examples=15, deadline=None)
@given(st.integers(20, 70), st.integers(0, 1 << 30), st.sampled_from([0.0, 0.5, 2.0]))
def test_accuracy_is_the_protocols(pairs, seed, signal):
    rng = np.random.default_rng(seed)
    same = rng.random(pairs) < 0.5
    same[:2], same[-2:] = [True, False], [True, False]
    rows = rng.normal(size=(2 * pairs, 6))
    rows[1::2] += signal * same[:, None] * rows[0::2]
    dist, _ = distances(rows)
    np.testing.assert_allclose(dist, [squared(rows[2 * i], rows[2 * i + 1]) for i in range(pairs)], rtol=1e-12)
    got = verify(rows, same, bootstrap=0)
    results, thresholds = ten_fold(dist, same)
    np.testing.assert_array_equal(got.fold_accuracies, results)
    np.testing.assert_allclose(got.fold_thresholds, thresholds, rtol=0, atol=1e-12)
    assert got.accuracy == np.mean(results)
    assert got.std == np.std(results)
    assert got.auc == pytest.approx(roc_auc_score(same, -dist), abs=1e-12)
    assert got.xnorm == pytest.approx(np.linalg.norm(rows, axis=1).mean())


def test_a_distance_at_a_threshold_is_not_below_it():
    # Orthogonal and opposite vectors: squared distances exactly 2 and 4; 2 is a threshold of the protocol.
    angles = np.array([0, np.pi / 2] * 10)
    same = np.array([True, False] * 10)
    rows = from_angles(angles)
    rows[np.abs(rows) < 1e-15] = 0
    dist, _ = distances(rows)
    assert set(dist.tolist()) == {0.0, 2.0}
    got = verify(rows, same, bootstrap=0)
    assert got.accuracy == 1
    assert set(got.fold_thresholds) == {0.01}
    flipped = verify(rows, ~same, bootstrap=0)  # best: the threshold 0, at which nothing is below, or above 2
    results, thresholds = ten_fold(dist, ~same)
    assert list(flipped.fold_accuracies) == results
    np.testing.assert_allclose(flipped.fold_thresholds, thresholds, atol=1e-12)


def test_rates_by_hand():
    # 20 pairs of one person at distance 1 and 2; 20 of two persons, one of which is at distance 1.
    near, far = 2 * np.arcsin(0.5), np.pi / 2
    same = np.tile([True, False], 20)
    angles = np.where(same, np.where(np.arange(40) % 4 == 0, near / 2, far), np.pi * 0.9)
    angles[1] = near / 4
    got = verify(from_angles(angles), same, fars=(1e-1, 1e-2), bootstrap=200)
    assert got.tar[1e-2] is None  # 20 impostor pairs cannot show one in a hundred
    assert got.tar[1e-1] == 1  # one of 20 impostors below is 5 %, and no other comes before the last genuine pair
    assert 0 <= got.interval[0] <= got.accuracy <= got.interval[1] <= 1


@pytest.mark.parametrize(
    ("rows", "same", "message"),
    [
        (np.ones((40, 4)), [True] * 20, "all 20 pairs are the same person"),
        (np.ones((40, 4)), [False] * 20, "all 20 pairs are two persons"),
        (np.ones((10, 4)), [True, False, True, False, True], "5 pairs do not make 10 folds"),
        (np.ones((39, 4)), [True, False] * 10, "39 embeddings for 20 pairs"),
        (np.full((40, 4), np.nan), [True, False] * 10, "embedding 0 is not finite"),
        (np.zeros((40, 4)), [True, False] * 10, "embedding 0 is zero"),
    ],
)
def test_no_accuracy_without_a_meaning(rows, same, message):
    with pytest.raises(VerificationError, match=message):
        verify(rows, np.array(same))


def test_unequal_folds_and_constant_embeddings_are_reported():
    got = verify(np.random.default_rng(0).normal(size=(50, 4)), np.array([True, False] * 12 + [True]), bootstrap=0)
    assert any("25 pairs do not make 10 equal folds" in line for line in got.warnings)
    constant = verify(np.ones((40, 4)), np.array([True, False] * 10), bootstrap=0)
    assert constant.accuracy == 0.5
    assert any("all embeddings are alike" in line for line in constant.warnings)

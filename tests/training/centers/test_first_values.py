"""First values of class centres: normal, a function of seed and class alone, and what they always were."""

from __future__ import annotations

import numpy as np
import pytest

from training.centers.class_centers import ClassCenters
from training.centers.first_values import initial_rows

pytestmark = pytest.mark.numeric


def test_first_values_are_normal():
    stats = pytest.importorskip("scipy.stats")
    rows = initial_rows(1, np.arange(2000), 512).astype(np.float64) / 0.01
    assert abs(rows.mean()) < 4 / np.sqrt(rows.size)
    assert abs(rows.std() - 1) < 4 / np.sqrt(2 * rows.size)
    assert abs(stats.skew(rows, axis=None)) < 4 * np.sqrt(6 / rows.size)
    assert abs(stats.kurtosis(rows, axis=None)) < 4 * np.sqrt(24 / rows.size) + 2e-3  # tails end at 4.3
    assert stats.kstest(rows.ravel()[::5], "norm").pvalue > 1e-3
    for lag in (1, 2, 4, 512):
        flat = rows.ravel()
        assert abs(np.mean(flat[:-lag] * flat[lag:])) < 4.5 / np.sqrt(rows.size)


def test_first_values_depend_on_seed_and_class_alone():
    ids = np.array([0, 7, 5_000_000, 2**40])
    rows = initial_rows(1, ids, 30)
    for i in range(4):
        np.testing.assert_array_equal(initial_rows(1, ids[i : i + 1], 30)[0], rows[i])
    assert np.abs(rows - initial_rows(2, ids, 30)).min(axis=1).max() < 0.05
    assert (rows != initial_rows(2, ids, 30)).mean() > 0.99
    assert len(np.unique(rows[:, 0])) == 4
    np.testing.assert_allclose(initial_rows(1, ids, 30, std=0.5), rows * 50, rtol=1e-6)
    slices = [ClassCenters(50, 30, rank=rank, world=3, seed=1) for rank in range(3)]
    parts = [weight for held in slices for _, weight in held.export_blocks()]
    np.testing.assert_array_equal(np.concatenate(parts), initial_rows(1, np.arange(50), 30))


def test_first_values_are_these_on_every_machine():
    """Bits written down once: a run goes on, and its unseen classes begin, where an older release had them."""
    want = [[982889024, 998897735, 1002988416], [996608297, 1004795894, 992596099]]
    np.testing.assert_array_equal(initial_rows(0, np.array([0, 1]), 3).view(np.uint32), np.array(want, np.uint32))
    got = initial_rows(2**40 + 7, np.array([2, 2**33 + 5]), 6, std=0.5)
    want = [
        [1061149932, 3209126570, 1026764302, 3184646204, 1047634222, 3184507306],
        [3196606577, 3197030975, 3196155720, 3201930448, 1034790550, 1051863472],
    ]
    np.testing.assert_array_equal(got.view(np.uint32), np.array(want, np.uint32))

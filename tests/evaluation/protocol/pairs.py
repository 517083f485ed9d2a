"""What the tests of the protocol measure."""

from __future__ import annotations

import numpy as np

FARS = (0.5, 0.1, 0.03)
EPSILON = np.finfo(np.float64).eps


def overlapping(pairs, seed=0):
    """Returns distances (P,) of two kinds that overlap, and the kinds, (P,) bool, alternating."""
    rng = np.random.default_rng(seed)
    same = np.arange(pairs) % 2 == 0
    return np.clip(np.where(same, rng.normal(1.2, 0.35, pairs), rng.normal(1.9, 0.2, pairs)), 0, 3.99), same


def values(figures):
    """Returns the values by name."""
    return {name: figure.value for name, figure in figures.items()}

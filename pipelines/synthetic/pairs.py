"""The pairs of a synthetic set's verification.bin."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.synthetic.faces import generator

POSES = 6  # photographs of each unseen identity
GENUINE = POSES * (POSES - 1) // 2  # genuine pairs of an identity, none of them twice


def pictures_of_pairs(seed: int, unseen: Sequence[int], pairs: int) -> list[tuple[int, int]]:
    """Returns identity and pose of each picture, two for each pair; in ten folds, in each the genuine pairs first.

    Args:
        seed: of the set.
        unseen: identities.
        pairs: a multiple of 20.
    """
    rng = generator(seed, 0, 0, 2)
    pictures: list[tuple[int, int]] = []
    identities = np.array(unseen)
    twins = [(a, b) for a in range(POSES) for b in range(a)]
    genuine = [(int(i), *twins[t]) for i in identities for t in range(GENUINE)]
    genuine = [genuine[i] for i in rng.permutation(len(genuine))[: pairs // 2]]
    size = pairs // 20
    for fold in range(10):
        for identity, a, b in genuine[fold * size : (fold + 1) * size]:
            pictures += [(identity, a), (identity, b)]
        for _ in range(size):
            for identity in rng.choice(identities, 2, replace=False).tolist():
                pictures.append((identity, int(rng.integers(POSES))))
    return pictures


def write_pairs(path: Path, pictures: Sequence[bytes]) -> None:
    """Writes InsightFace's .bin: a pickle of (encoded images, two for each pair; whether a pair is genuine)."""
    size = len(pictures) // 40
    path.write_bytes(pickle.dumps(([*pictures], ([True] * size + [False] * size) * 10), protocol=4))

"""The first value of a class's centre, a function of the class alone, so that untouched rows need not exist."""

from __future__ import annotations

import functools
import statistics

import numpy as np
import numpy.typing as npt

from faceshards.hashing import GOLDEN, MIX1, mix


@functools.cache
def _normal_table(std: float) -> npt.NDArray[np.float32]:
    """Returns (65536,) float32: the normal distribution's quantiles at (i + 0.5) / 65536, scaled to exactly std."""
    inverse = statistics.NormalDist().inv_cdf
    half = np.array([inverse((i + 0.5) / 65536) for i in range(32768)])
    table = np.concatenate([half, -half[::-1]])
    return (table * (std / np.sqrt(np.mean(table**2)))).astype(np.float32)


def initial_rows(seed: int, ids: npt.NDArray[np.int64], dim: int, std: float = 0.01) -> npt.NDArray[np.float32]:
    """Returns (n, D) float32, the first values of classes: N(0, std), a pure function of (seed, class, column).

    Counters (class, column) go through splitmix64; each 16 of its bits choose one of 65,536 quantiles of the normal
    distribution (the largest at 4.3 std). No transcendental function of the machine takes part, so that every machine,
    rank and partition gets the same bits.

    Args:
        seed: of the run, at least 0.
        ids: (n,) int64 classes.
        dim: D.
        std: 0.01 as the reference.
    """
    table = _normal_table(std)
    words = -(-dim // 4)
    key = mix(np.array([seed], np.uint64) * np.uint64(GOLDEN) + np.uint64(MIX1))
    columns = np.arange(words, dtype=np.uint64) * np.uint64(GOLDEN)
    out = np.empty((len(ids), dim), np.float32)
    for low in range(0, len(ids), 1024):
        first = ids[low : low + 1024].astype(np.uint64) * np.uint64(words * GOLDEN % (1 << 64)) + key
        bits = mix(first[:, None] + columns).view(np.uint16)  # (m, 4 * words)
        out[low : low + 1024] = np.take(table, bits, mode="clip")[:, :dim]
    return out

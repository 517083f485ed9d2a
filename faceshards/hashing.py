"""Hashes of integers that are the same on every machine and with every numpy: what decides orders, draws and values.

Source: splitmix64, Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

GOLDEN = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio, odd: the increment of the generator's state
MIX1, MIX2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # multipliers of its finalizer


def mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Returns splitmix64's finalizer of x, uint64 of any shape, in x itself."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(MIX1)
    x ^= x >> np.uint64(27)
    x *= np.uint64(MIX2)
    x ^= x >> np.uint64(31)
    return x


def splitmix64(seed: int, purpose: int, values: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """Returns (N,) uint64 hashes of integers.

    Args:
        seed: at least 0.
        purpose: 0 to 3; one seed gives each purpose hashes of its own.
        values: (N,) integers, at least 0.
    """
    start = np.uint64((seed * 4 + purpose) * 0xD1342543DE82EF95 % (1 << 64))
    with np.errstate(over="ignore"):
        x = values.astype(np.uint64) * np.uint64(GOLDEN) + start
        return mix(mix(x))  # twice: seed and value then mix thoroughly

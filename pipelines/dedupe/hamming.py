"""Distances between 256-bit perceptual hashes, of pictures as they are and of mirrored ones."""

from __future__ import annotations

import numpy as np

from pipelines.dedupe.equal import SPAN, Array

BITS = 256
MIRROR = np.uint64(0x5555555555555555)
"""The bits of each of a hash's words that turn when its picture is mirrored.

A mirrored picture's cosine transform has the odd horizontal frequencies negated. A row of the hash has the frequencies
1..16 (pipelines.stages.signatures), so those are the bits at its even places, and their median is near 0.
"""

LANES = np.uint64(0x0001000100010001)
MASK1, MASK2, MASK4, MASK8 = (LANES * np.uint64(mask) for mask in (0x5555, 0x3333, 0x0F0F, 0x00FF))


def _popcount(x: Array, y: Array) -> Array:
    """Returns the set bits of x and y together, (M,) uint64 in 0..128 (numpy 1.26 has no bitwise_count)."""
    one, two, four = np.uint64(1), np.uint64(2), np.uint64(4)
    total: Array = np.uint64(0)  # type: ignore[assignment]
    for word in (x, y):
        word = word - ((word >> one) & MASK1)
        total = total + (word & MASK2) + ((word >> two) & MASK2)  # nibbles of at most 8: both words fit
    total = (total & MASK4) + ((total >> four) & MASK4)
    total = (total & MASK8) + ((total >> np.uint64(8)) & MASK8)  # 16-bit lanes: 128 + 128 would wrap a byte
    return (total * LANES) >> np.uint64(48)


def hamming(
    phash: Array, a: Array, b: Array, limit: int = BITS, *, others: Array | None = None, mirrored: bool = False
) -> tuple[Array, Array]:
    """Returns which of the pairs are at most `limit` apart, and their distances.

    Args:
        phash: (N, 4) uint64.
        a: (M,) integer rows.
        b: (M,) integer rows.
        limit: Hamming bits.
        others: (K, 4) uint64 hashes that `b` counts; those of `phash` if None.
        mirrored: compares one of a pair with the other's mirror image; it does not matter whose.

    Returns:
        (K,) int64 places in `a`, ascending, and (K,) int16 distances.
    """
    others = phash if others is None else others
    places, distances = [np.empty(0, np.int64)], [np.empty(0, np.int16)]
    for low in range(0, len(a), SPAN):
        x = phash.take(a[low : low + SPAN], axis=0)  # (m, 4): whole rows, one cache line serves all four words
        x ^= others.take(b[low : low + SPAN], axis=0)
        if mirrored:
            x ^= MIRROR
        half = _popcount(x[:, 0], x[:, 1])
        hit = np.flatnonzero(half <= limit)  # unlike faces differ by 40 bits in half a hash: most stop here
        x = x.take(hit, axis=0)
        full = half.take(hit) + _popcount(x[:, 2], x[:, 3])
        near = np.flatnonzero(full <= limit)
        places.append(hit.take(near) + low)
        distances.append(full.take(near).astype(np.int16))
    return np.concatenate(places), np.concatenate(distances)

"""The template protocol at IJB-C's size: 469,375 images, 23,124 templates, 15,658,489 pairs, 512 components.

    python -m benchmarks.bench_ijb

The embeddings are noise around a centre for each person, which costs the same as faces.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from evaluation.ijb.measure import measure
from evaluation.ijb.protocol import Protocol
from faceshards.progress import peak_memory

IMAGES, TEMPLATES, PAIRS, GENUINE, PEOPLE, DIM = 469_375, 23_124, 15_658_489, 19_557, 3531, 512


def main() -> None:
    """Measures memory and time of the whole, embedding the images apart."""
    rng = np.random.default_rng(0)
    person = rng.integers(0, PEOPLE, TEMPLATES)
    template = np.concatenate([np.arange(TEMPLATES), rng.integers(0, TEMPLATES, IMAGES - TEMPLATES)])
    rows = rng.standard_normal((PEOPLE, DIM), np.float32)[person[template]]
    for low in range(0, IMAGES, 1 << 14):
        rows[low : low + (1 << 14)] += 3 * rng.standard_normal(rows[low : low + (1 << 14)].shape, np.float32)
    pairs = rng.integers(0, TEMPLATES, (PAIRS, 2))
    pairs[:GENUINE, 1] = pairs[:GENUINE, 0]
    protocol = Protocol(
        name="ijbc",
        images=Path(),
        names=[""] * IMAGES,
        template=template,
        media=rng.integers(0, 1 << 18, IMAGES),
        points=np.zeros((0, 5, 2), np.float32),
        score=rng.random(IMAGES, np.float32),
        pairs=pairs,
        same=person[pairs[:, 0]] == person[pairs[:, 1]],
    )
    before = peak_memory() / 1e9
    start = time.perf_counter()
    result = measure(protocol, rows)
    seconds = time.perf_counter() - start
    peak = peak_memory() / 1e9
    print(
        f"{PAIRS:,} pairs of {TEMPLATES:,} templates: {seconds:.1f} s; peak {before:.2f} GB before, {peak:.2f} GB in it"
    )
    print(
        "; ".join(f"{name} {figure.value:.4f}" for name, figure in result.figures.items() if figure.value is not None)
    )


if __name__ == "__main__":
    main()

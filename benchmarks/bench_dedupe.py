"""Near pairs across identities at the size of WebFace42M: time, memory and recall by distance.

Hashes come from a model of aligned faces: 32 hidden bits, each seen through noise by 8 of the 256, which gives unlike
pairs the spread measured on LFW (mean 128, standard deviation 13.2; its tail is printed beside LFW's). Copies are
planted under other identities at known distances. The model runs in a child process, so the peak memory printed is
that of the arrays and the search.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from faceshards.progress import peak_memory
from pipelines.dedupe.hamming import MIRROR, hamming
from pipelines.dedupe.near import across_pairs

LFW = {80: 8290 / 87.3e6, 72: 606 / 87.3e6, 64: 40 / 87.3e6}  # docs/deduplication.md, pairs of different identities
FLIP = (0, 0, 1, 0, 0, 1, 1)  # binary digits of 19/128 = 0.148: 8 bits of one hidden bit then correlate by 0.49
IDENTITIES_PER_IMAGE = 2_059_906 / 42_474_558  # WebFace42M (Zhu et al., CVPR 2021)
CLASSES = ((0, 0), (1, 8), (9, 16), (17, 24))


def make(folder: Path, images: int, planted: int, seed: int) -> None:
    """Writes phash.npy (N, 4) uint64, labels.npy (N,) int32 and planted.npy (P, 3): copy, original, distance."""
    rng = np.random.Generator(np.random.SFC64(seed))
    phash = np.empty((images, 4), np.uint64)
    for low in range(0, images, 1 << 18):
        block = phash[low : low + (1 << 18)]
        hidden = rng.integers(0, 1 << 32, (len(block), 1), dtype=np.uint64)
        hidden |= hidden << np.uint64(32)
        turn = np.array([0, 7, 13, 22], np.uint64)  # so that the views of a hidden bit fall on different places
        block[:] = (hidden << turn) | (hidden >> (np.uint64(64) - turn) % np.uint64(64))
        noise = np.zeros(block.shape, np.uint64)
        for digit in reversed(FLIP):
            draw = rng.integers(0, 1 << 64, block.shape, dtype=np.uint64)
            noise = noise | draw if digit else noise & draw
        block ^= noise
    labels = np.sort(rng.integers(0, max(2, round(images * IDENTITIES_PER_IMAGE)), images, dtype=np.int32))
    copy = np.sort(rng.choice(images, planted, replace=False))
    original = rng.integers(0, images, planted)
    usable = (labels[copy] != labels[original]) & ~np.isin(original, copy)
    copy, original = copy[usable], original[usable]
    distance = rng.integers(0, 25, len(copy))
    chosen = np.argsort(rng.random((len(copy), 256), dtype=np.float32), axis=1)  # a random order of the 256 bits
    flips = np.zeros((len(copy), 256), bool)
    np.put_along_axis(flips, chosen, np.arange(256) < distance[:, None], axis=1)
    phash[copy] = phash[original] ^ np.packbits(flips, axis=1).view(np.uint64)
    np.save(folder / "phash.npy", phash)
    np.save(folder / "labels.npy", labels)
    np.save(folder / "planted.npy", np.stack([copy, original, distance], axis=1))


def tail(phash: npt.NDArray[np.uint64], pairs: int = 1 << 26) -> str:
    """Returns the spread of the distances of random pairs, beside LFW's."""
    rng = np.random.default_rng(1)
    distance = np.concatenate(
        [hamming(phash, *rng.integers(0, len(phash), (2, 1 << 20)))[1] for _ in range(pairs >> 20)]
    )
    shares = ", ".join(f"P(<={d}) {np.mean(distance <= d):.1e} (LFW {share:.1e})" for d, share in LFW.items())
    return f"random pairs: mean {distance.mean():.1f}, sd {distance.std():.1f}, {shares}"


@click.command()
@click.option("--images", default=42_500_000, show_default=True, help="Hashes.")
@click.option("--planted", default=400_000, show_default=True, help="Copies under another identity.")
@click.option("--limit", default=24, show_default=True, help="Largest distance, bits.")
@click.option("--recall", default=0.95, show_default=True, help="Recall asked for at exactly the limit.")
@click.option("--mirrored", is_flag=True, help="Plants mirrored copies, and searches for those.")
@click.option("--threads", default=2, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(images: int, planted: int, limit: int, recall: float, mirrored: bool, threads: int, seed: int) -> None:
    """Times across_pairs on modelled hashes and checks what it found."""
    with tempfile.TemporaryDirectory() as name:
        child = multiprocessing.get_context("spawn").Process(target=make, args=(Path(name), images, planted, seed))
        child.start()
        child.join()
        phash, labels = np.load(Path(name) / "phash.npy"), np.load(Path(name) / "labels.npy")
        truth = np.load(Path(name) / "planted.npy")
    if mirrored:
        phash[truth[:, 0]] ^= MIRROR
    start, cpu = time.perf_counter(), time.process_time()
    pairs, statistics = across_pairs(labels, phash, limit, recall, threads, mirrored=mirrored)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = peak_memory() / (1 << 30)
    click.echo(f"images {images:,}, limit {limit}, recall asked {recall}, threads {threads}")
    click.echo(
        f"wall {wall:.1f} s, CPU {cpu:.1f} s, peak RSS {peak:.2f} GiB ({peak * (1 << 30) / images:.0f} B an image)"
    )
    click.echo(", ".join(f"{key} {value:,}" for key, value in statistics.items()))
    found = np.stack([pairs.a, pairs.b], axis=1) @ np.array([1 << 32, 1])
    sought = np.minimum(truth[:, 0], truth[:, 1]) << 32 | np.maximum(truth[:, 0], truth[:, 1])
    hit = np.isin(sought, found)
    for low, high in CLASSES:
        group = (truth[:, 2] >= low) & (truth[:, 2] <= min(high, limit))
        if group.any():
            click.echo(f"recall at {low}-{min(high, limit)}: {hit[group].mean():.5f} of {group.sum():,} planted")
    at = truth[:, 2] == limit
    if at.any():
        click.echo(f"recall at exactly {limit}: {hit[at].mean():.5f}")
    other = ~np.isin(found, sought)
    related = np.isin(pairs.a, truth) & np.isin(pairs.b, truth)  # two copies of one original lie near each other
    click.echo(f"pairs {len(found):,}; unplanted {other.sum():,}, of them {(other & ~related).sum():,} by chance")
    click.echo(tail(phash))


if __name__ == "__main__":
    main()

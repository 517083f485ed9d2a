"""The driver's memory: the global step (deduplication, balance, tables) at two sizes, and its growth per image.

Runs pipelines.stages.decide on modelled hashes (bench_dedupe.make) in a process of its own for each size, from the
columns as they are loaded to the decisions on disk; prints time, peak resident memory, and bytes per additional image.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from pathlib import Path

import click
import numpy as np

from benchmarks.bench_dedupe import make
from faceshards.progress import peak_memory
from pipelines.config import BuildConfig
from pipelines.stages.decide import Columns, decide


def side(folder: str, threads: int, result: multiprocessing.Queue) -> None:
    """Decides over the set in `folder`; reports seconds and peak bytes."""
    root = Path(folder)
    phash, label = np.load(root / "phash.npy"), np.load(root / "labels.npy")
    n = len(label)
    sha = np.random.default_rng(0).integers(0, 1 << 63, (n, 2), dtype=np.uint64)
    size = np.full(n, 7000, np.int32)
    columns = Columns(np.zeros(n, np.uint8), label, sha, phash, size)
    del phash, sha, label, size
    start = time.perf_counter()
    decide(columns, None, BuildConfig(), threads, root / "decisions")
    peak = peak_memory()
    result.put((time.perf_counter() - start, peak))


@click.command()
@click.option("--images", default=8_000_000, show_default=True, help="The larger size; the other is a quarter of it.")
@click.option("--threads", default=2, show_default=True)
def main(images: int, threads: int) -> None:
    """Print time and memory at both sizes."""
    context = multiprocessing.get_context("spawn")
    peaks = []
    for count in (images // 4, images):
        with tempfile.TemporaryDirectory() as folder:
            maker = context.Process(target=make, args=(Path(folder), count, count // 100, 0))
            maker.start()
            maker.join()
            result = context.Queue()
            child = context.Process(target=side, args=(folder, threads, result))
            child.start()
            wall, peak = result.get()
            child.join()
        peaks.append((count, peak))
        click.echo(f"{count:>11,} images: {wall:7.1f} s, peak RSS {peak / (1 << 30):.2f} GiB")
    (few, low), (many, high) = peaks
    click.echo(f"growth: {(high - low) / (many - few):.0f} bytes an image")


if __name__ == "__main__":
    main()

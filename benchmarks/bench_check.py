"""What `check_shards: background` costs: an epoch of the stream with it, beside one without.

    python -m benchmarks.bench_check [--images 8000] [--rounds 7]

The epoch is nothing but the stream: all cores decode, no step is computed, so that the check can hide behind nothing.
A training step only makes the epoch longer and the share of the check smaller. An epoch begins with opening the dataset
and ends when its last batch is there and all shards are compared. The two sides take turns; warm means that the shards
are in the page cache, cold that they were put out of it before. The ratio is the median over the rounds.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

import click

from benchmarks.bench_stream import BATCH, build_set
from faceshards.checksums import file_digest
from faceshards.dataset.manifest import Manifest
from training.data.layout import Layout
from training.data.stream import Stream


def evict(shards: list[Path]) -> None:
    """Puts files out of the page cache."""
    for path in shards:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def epoch(folder: Path, check: bool | str) -> tuple[float, float]:
    """Returns the wall and CPU seconds of an epoch."""
    before, start = time.process_time(), time.perf_counter()
    data = Manifest(folder)
    stream = Stream(data, Layout(data, 1, BATCH), check_shards=check)
    for _ in stream.batches(0):
        pass
    wall, cpu = time.perf_counter() - start, time.process_time() - before
    stream.close()
    return wall, cpu


@click.command()
@click.option("--images", default=8000, show_default=True, help="Size of the set.")
@click.option("--rounds", default=7, show_default=True, help="Epochs of each side.")
def main(images: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        build_set(Path(temporary), images)
        folder = Path(temporary) / "data"
        shards = sorted((folder / "shards").glob("*.mindrecord"))
        size = sum(path.stat().st_size for path in shards)
        epoch(folder, False)
        start = time.perf_counter()
        for path in shards:
            file_digest(path)
        alone = time.perf_counter() - start
        print(f"{images:,} images, {size / 1e6:,.0f} MB of shards, {os.cpu_count()} cores, batches of {BATCH}")
        print(f"hashing them alone: {alone:.2f} s, {size / alone / 1e6:,.0f} MB/s\n")
        print("| shards | epoch without, s | with the check, s | wall, ratio (lowest .. highest) | CPU, ratio |")
        print("|---|---|---|---|---|")
        for name in ("warm", "cold"):
            pairs = []
            for number in range(rounds):
                found = {}
                for check in (False, "background") if number % 2 else ("background", False):
                    if name == "cold":
                        evict(shards)
                    found[check] = epoch(folder, check)
                pairs.append((found[False], found["background"]))
            without, beside = (statistics.median(pair[side][0] for pair in pairs) for side in (0, 1))
            wall, cpu = (sorted(pair[1][i] / pair[0][i] for pair in pairs) for i in (0, 1))
            spread = f"{statistics.median(wall):.3f} ({wall[0]:.3f} .. {wall[-1]:.3f})"
            print(f"| {name} | {without:.2f} | {beside:.2f} | {spread} | {statistics.median(cpu):.3f} |")


if __name__ == "__main__":
    main()

"""Class centres in a sparse file: step time and memory while only the sample is touched.

A step samples, gathers and updates (momentum SGD, weight decay) without the head. The file's apparent size is that of
all classes; its real size grows with the rows touched so far. "Pages of the file" are the page cache's, which the
kernel takes back when memory is short; anonymous memory is what the process itself needs. The last line brings every
touched row to the present step, which is what a dense update does at every step.

Goal: at 2 million classes and rate 0.02, at most 1.5 GB of anonymous memory. The other side is the store in memory, in
a process of its own. With --classes 29000000 the apparent size is 119 GB; any file system with sparse files will do.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil

from training.centers.class_centers import ClassCenters
from training.head.sampling import Sampler

DIM, BATCH, LR, GOAL = 512, 512, 0.1, 1.5


def memory() -> tuple[float, float]:
    """Returns this process's anonymous memory and its pages of files, in GB."""
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return tuple(int(fields[name].split()[0]) / 1e6 for name in ("RssAnon", "RssFile"))


def run(store: str, folder: Path | None, classes: int, rate: float, steps: int) -> float:
    """Prints the table of one store; returns the most anonymous memory in GB."""
    centers = ClassCenters(classes, DIM, store=store, folder=folder)
    sampler = Sampler(0, classes, rate, 0)
    rng = np.random.default_rng(0)
    grads = rng.normal(0, 1e-3, (sampler.size, DIM)).astype(np.float32)
    print(f"\n{store}, {classes:,} classes, {sampler.size:,} rows a step, D = {DIM}:\n")
    print("| steps | rows touched | sample s | gather s | update s | anonymous GB | file pages GB | real file GB |")
    print("|---|---|---|---|---|---|---|---|")
    laps, worst = [], 0.0
    for step in range(steps):
        start = time.perf_counter()
        ids, _ = sampler.sample(rng.integers(0, classes, BATCH), step)
        sampled = time.perf_counter()
        centers.gather(ids)
        gathered = time.perf_counter()
        centers.update(ids, grads, LR)
        laps.append((sampled - start, gathered - sampled, time.perf_counter() - gathered))
        worst = max(worst, memory()[0])
        if (step + 1) % max(1, steps // 5) == 0:
            times = [f"{statistics.median(part):.3f}" for part in zip(*laps, strict=True)]
            apparent, real = centers.store.disk_bytes()
            anonymous, pages = memory()
            file = f"{apparent / 1e9:.1f}, {real / 1e9:.2f}" if apparent else ""
            row = [str(step + 1), f"{centers.touched:,}", *times, f"{anonymous:.2f}", f"{pages:.2f}", file]
            print("| " + " | ".join(row) + " |")
            laps = []
    start = time.perf_counter()
    centers.settle()
    print(f"\nEvery touched row once (a dense update's work): {time.perf_counter() - start:.1f} s")
    centers.close()
    return max(worst, memory()[0])


def apart(measure: Callable[..., Any], *arguments: Any) -> Any:
    """Returns what a function measures in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, arguments)


@click.command()
@click.option("--classes", default=2_000_000, show_default=True, help="Up to 29 million and more.")
@click.option("--rate", default=0.02, show_default=True, help="Share of the classes sampled in a step.")
@click.option("--steps", default=20, show_default=True, help="Steps measured.")
@click.option("--folder", type=click.Path(path_type=Path), help="For the file; by default a temporary one.")
def main(classes: int, rate: float, steps: int, folder: Path | None) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        worst = apart(run, "disk", folder or Path(temporary), classes, rate, steps)
    print(f"\nMost anonymous memory: {worst:.2f} GB (goal {GOAL}): {'met' if worst <= GOAL else 'missed'}")
    touched = classes * (1 - (1 - rate) ** steps)
    if touched * DIM * 8 + rate * classes * DIM * 8 > psutil.virtual_memory().available * 0.7:
        print(f"\nmemory: not run, {touched * DIM * 8 / 1e9:.0f} GB of rows would be touched")
        return
    if classes * DIM * 8 > psutil.virtual_memory().total * 0.9:
        print(f"\nmemory: not run, {classes * DIM * 8 / 1e9:.0f} GB of rows do not fit")
        return
    worst = apart(run, "memory", None, classes, rate, steps)
    print(f"\nMost anonymous memory: {worst:.2f} GB")


if __name__ == "__main__":
    main()

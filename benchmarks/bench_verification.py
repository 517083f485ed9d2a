"""How fast the verification protocol is: ours beside its equations as loops over folds and thresholds.

Both sides get the same float32 embeddings and give the same figures, which is checked. Ours alone, with and without
intervals, on a million pairs. Each side runs in a process of its own for its peak memory, and its best of three counts.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np
from sklearn.model_selection import KFold
from sklearn.preprocessing import normalize

from evaluation.protocol.verification import distances, verify, verify_distances
from faceshards.progress import peak_memory


def embeddings(pairs: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns random embeddings (2 * pairs, size) float32, alike in pairs of one person, and these pairs."""
    rng = np.random.default_rng(0)
    rows, same = np.empty((2 * pairs, size), np.float32), np.arange(pairs) % 2 == 0
    for first in range(0, pairs, 1000):  # in parts, so that their making is not the peak of memory
        part = rows[2 * first : 2 * first + 2000]
        rng.standard_normal(dtype=np.float32, out=part)
        alike = rng.uniform(0, 1.2, (len(part) // 2, 1)).astype(np.float32)
        part[1::2] += alike * same[first : first + 1000, None] * part[0::2]
    return rows, same


def counts(threshold: float, dist: np.ndarray, same: np.ndarray) -> tuple[float, float, float, float]:
    """Returns pairs of one person and of two judged one, and of two and of one judged two."""
    judged = np.less(dist, threshold)
    return (
        float(np.sum(np.logical_and(judged, same))),
        float(np.sum(np.logical_and(judged, np.logical_not(same)))),
        float(np.sum(np.logical_and(np.logical_not(judged), np.logical_not(same)))),
        float(np.sum(np.logical_and(np.logical_not(judged), same))),
    )


def rates(threshold: float, dist: np.ndarray, same: np.ndarray) -> tuple[float, float]:
    """Returns the shares of pairs of one person and of two that are judged one."""
    judged = np.less(dist, threshold)
    accepted, wrong = np.sum(np.logical_and(judged, same)), np.sum(np.logical_and(judged, np.logical_not(same)))
    return float(accepted) / float(np.sum(same)), float(wrong) / float(np.sum(np.logical_not(same)))


def loops(rows: np.ndarray, same: np.ndarray) -> list[float]:
    """Returns accuracy, deviation, VAL, its deviation and FAR: a pass over the thresholds for each fold.

    What the protocol counts at a threshold is counted at each, the ROC curve of the fold's own pairs included.
    """
    rows = normalize(rows.astype(np.float64))
    accuracies, vals, fars = [], [], []
    thresholds, fine = np.arange(0, 4, 0.01), np.arange(0, 4, 0.001)
    dist = np.sum(np.square(np.subtract(rows[0::2], rows[1::2])), 1)
    for train, test in KFold(10, shuffle=False).split(dist):
        right = []
        for threshold in thresholds:
            table = counts(threshold, dist[train], same[train])
            right.append((table[0] + table[2]) / len(train))
        best = thresholds[int(np.argmax(right))]
        for threshold in thresholds:
            counts(threshold, dist[test], same[test])
        table = counts(best, dist[test], same[test])
        accuracies.append((table[0] + table[2]) / len(test))
        met = [rates(threshold, dist[train], same[train])[1] for threshold in fine]
        wanted = float(np.interp(1e-3, met, fine)) if max(met) >= 1e-3 else 0.0
        found = rates(wanted, dist[test], same[test])
        vals.append(found[0])
        fars.append(found[1])
    return [float(x) for x in (np.mean(accuracies), np.std(accuracies), np.mean(vals), np.std(vals), np.mean(fars))]


def ours(rows: np.ndarray, same: np.ndarray, bootstrap: int = 0) -> list[float]:
    """Returns the same figures."""
    got = verify(rows, same, bootstrap=bootstrap)
    return [got.value("accuracy"), got.std, got.value("val"), got.val_std, got.far]


SIDES: dict[str, Callable[[np.ndarray, np.ndarray], object]] = {
    "loops": loops,
    "verify": ours,
    "verify, 1,000 resamples": lambda rows, same: ours(rows, same, 1000),
    "distances": lambda rows, same: distances(rows)[0].sum(),
}


def run(side: str, pairs: int, size: int) -> dict[str, Any]:
    """Returns seconds and peak memory of one side, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bench_verification", "--side", side, "--pairs", str(pairs)]
    done = subprocess.run([*command, "--size", str(size)], check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


@click.command()
@click.option("--side", hidden=True)
@click.option("--pairs", default=0, hidden=True)
@click.option("--size", default=0, hidden=True)
def main(side: str | None, pairs: int, size: int) -> None:
    """Print the tables."""
    if side:
        rows, same = embeddings(pairs, size)
        before, seconds, figures = peak_memory(), [], None
        if side.startswith("of distances"):
            dist, bootstrap = distances(rows)[0], 1000 if "1,000" in side else 0
            del rows
        for _ in range(3):
            start = time.perf_counter()
            if side.startswith("of distances"):
                verify_distances(dist, same, bootstrap=bootstrap)
            else:
                figures = SIDES[side](rows, same)
            seconds.append(time.perf_counter() - start)
        peak = peak_memory()
        print(
            json.dumps({"seconds": min(seconds), "mb": peak / 1e6, "more": (peak - before) / 1e6, "figures": figures})
        )
        return
    print(f"{'pairs':>9} {'D':>4} {'side':<36} {'ms':>9} {'ratio':>6} {'peak MB':>8} {'above its input':>16}")
    for count in (6000, 7000):
        slow, fast = run("loops", count, 512), run("verify", count, 512)
        if slow["figures"] != fast["figures"]:
            raise click.ClickException(f"the sides differ: {slow['figures']} and {fast['figures']}")
        drawn = run("verify, 1,000 resamples", count, 512)
        for name, got in (("loops", slow), ("verify", fast), ("verify, 1,000 resamples", drawn)):
            print(line(name, count, 512, got, f"{slow['seconds'] / got['seconds']:.1f}"))
    print("both sides gave the same figures to the last digit")
    for name in ("distances", "verify", "verify, 1,000 resamples", "of distances", "of distances, 1,000 resamples"):
        print(line(name, 1_000_000, 128, run(name, 1_000_000, 128)))


def line(side: str, pairs: int, size: int, got: dict[str, Any], ratio: str = "") -> str:
    """Returns a line of the table."""
    times, peak = f"{1e3 * got['seconds']:>9,.1f} {ratio:>6}", f"{got['mb']:>8,.0f} {got['more']:>16,.0f}"
    return f"{pairs:>9,} {size:>4} {side:<36} {times} {peak}"


if __name__ == "__main__":
    main()

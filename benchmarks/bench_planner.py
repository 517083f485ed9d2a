"""The balance stage at the size of WebFace42M: time, memory, and whether every promise of the plan holds.

Identities are long-tailed (log-normal sizes around WebFace42M's mean of 20.6 images); they are made in a child process,
so the peak memory printed is that of the columns and the planner.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from pathlib import Path

import click
import numpy as np

from faceshards.dataset.schema import CODE
from faceshards.progress import peak_memory
from pipelines.config import BuildConfig
from pipelines.stages.balance import balance, shard_count

IDENTITIES_PER_IMAGE = 2_059_906 / 42_474_558  # WebFace42M (Zhu et al., CVPR 2021)
BYTES_PER_IMAGE = 4500  # 112x112 JPEG


def make(folder: Path, images: int, seed: int) -> None:
    """Writes labels.npy (N,) int32, sorted as in a RecordIO set, and alive.npy (N,) bool, 3 % of it False."""
    rng = np.random.default_rng(seed)
    identities = max(1, round(images * IDENTITIES_PER_IMAGE))
    weights = rng.lognormal(0.0, 1.0, identities)
    sizes = 1 + rng.multinomial(images - identities, weights / weights.sum())
    np.save(folder / "labels.npy", np.repeat(np.arange(identities, dtype=np.int32), sizes))
    np.save(folder / "alive.npy", rng.random(images, dtype=np.float32) > 0.03)


@click.command()
@click.option("--images", default=42_500_000, show_default=True, help="Records.")
@click.option("--max-images", default=0, show_default=True, help="Per identity; 0 is no limit.")
@click.option("--seed", default=0, show_default=True)
def main(images: int, max_images: int, seed: int) -> None:
    """Times balance and the placement, then checks them."""
    with tempfile.TemporaryDirectory() as name:
        child = multiprocessing.get_context("spawn").Process(target=make, args=(Path(name), images, seed))
        child.start()
        child.join()
        labels, alive = np.load(Path(name) / "labels.npy"), np.load(Path(name) / "alive.npy")
    config = BuildConfig(max_images=max_images, seed=seed)
    start, cpu = time.perf_counter(), time.process_time()
    plan = balance(labels, alive, config)
    middle = time.perf_counter()
    kept = int(np.count_nonzero(plan.label >= 0))
    shards = shard_count(kept * BYTES_PER_IMAGE, kept, config)
    placed = plan.place(shards)
    end, cpu = time.perf_counter(), time.process_time() - cpu
    peak = peak_memory() / (1 << 30)
    identities = int(plan.label.max(initial=-1)) + 1
    click.echo(
        f"images {images:,}, max_images {max_images}: kept {kept:,} of {identities:,} identities, shards {shards}"
    )
    click.echo(f"balance {middle - start:.1f} s, placement {end - middle:.1f} s, CPU {cpu:.1f} s")
    click.echo(f"peak RSS {peak:.2f} GiB ({peak * (1 << 30) / images:.0f} B an image)")

    stays = np.flatnonzero(plan.label >= 0)
    shard, row, label = placed.shard[stays], placed.row[stays], plan.label[stays]
    sizes = np.bincount(shard, minlength=shards)
    click.echo(f"rows per shard {sizes.min():,}-{sizes.max():,}: {'ok' if np.ptp(sizes) <= 1 else 'FAILED'}")
    firsts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    places = np.bincount(firsts[shard] + row, minlength=kept)
    click.echo(f"each place taken once: {'ok' if len(places) == kept and np.all(places == 1) else 'FAILED'}")
    both = label.astype(np.int64) * shards + shard
    both.sort()
    starts = np.flatnonzero(np.diff(both, prepend=-1))
    share = np.diff(np.append(starts, kept))  # images of one identity in one shard that holds any
    count = np.bincount(label)
    own = count[both[starts] // shards]
    whole = np.all((share == own // shards) | (share == -(-own // shards)))
    reached = np.bincount(both[starts] // shards) == np.minimum(count, shards)  # a share of 0 only where n < shards
    click.echo(f"identities spread evenly: {'ok' if whole and np.all(reached) else 'FAILED'}")
    smallest, largest = int(count.min()), int(count.max())
    fits = smallest >= config.min_images and (not max_images or largest <= max_images)
    click.echo(f"images per identity {smallest}-{largest}: {'ok' if fits else 'FAILED'}")
    lost = {reason: int(np.count_nonzero(plan.reason == CODE[reason])) for reason in ("min_images", "max_images")}
    adds_up = kept + sum(lost.values()) == np.count_nonzero(alive)
    click.echo(f"dropped {lost}: {'ok' if adds_up else 'FAILED'}")


if __name__ == "__main__":
    main()

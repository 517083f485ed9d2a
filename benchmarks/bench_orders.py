"""What order window loses against global: `faceshards train synthetic` in both, on several seeds, measured on people it
never saw, and how many people meet in a batch.

    python -m benchmarks.bench_orders [--epochs 3] [--seeds 3] [--images 7200] [--folder DIR]

The set lies in 64 shards, eight a lane, so that a window of two is a quarter of the set. Runs, intervals and --folder
are those of bench_margins. The people in a batch are counted in the order of the images, over all batches and seeds.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import click
import numpy as np

from benchmarks.bench_margins import made_set, run
from faceshards.dataset.manifest import Manifest
from training.data.layout import Layout, lane_order

SHARDS, WINDOW = 64, 2
BATCH = 64  # of the recipe
SIDES: dict[str, dict[str, Any]] = {"global": {"order": "global"}, "window": {"order": "window", "window": WINDOW}}


def identities(data: Manifest, window: int, epochs: int, seeds: int) -> float:
    """Returns how many identities a batch has on average; window 0 is order global."""
    layout = Layout(data, 1, BATCH)
    labels = data.table("images", ["shard", "row", "label"]).sort_by([("shard", "ascending"), ("row", "ascending")])
    lanes = np.split(labels["label"].to_numpy(), layout.bounds[1:-1])
    found = []
    for seed, epoch in np.ndindex(seeds, epochs):
        orders = [
            own[lane_order(seed, epoch, lane, own, edges=layout.edges(lane), window=window).rows]
            for lane, own in enumerate(lanes)
        ]
        for step in range(layout.steps_per_epoch):
            places = (layout.places(step, lane) for lane in range(layout.lanes))
            batch = np.concatenate([own[at.start : at.stop] for own, at in zip(orders, places, strict=True)])
            assert len(batch) == BATCH
            found.append(len(np.unique(batch)))
    return mean(found)


@click.command()
@click.option("--images", default=7200, show_default=True, help="Size of the set.")
@click.option("--epochs", default=3, show_default=True, help="Of each run; the first is warm-up.")
@click.option("--seeds", default=3, show_default=True, help="Runs of each order.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keeps set and runs; a temporary folder without it.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of all runs.")
def main(images: int, epochs: int, seeds: int, folder: Path | None, settings: tuple[str, ...]) -> None:
    with made_set(folder, images, SHARDS) as (place, spec):
        data = Manifest(place / "shards")
        for name, own in SIDES.items():
            met = identities(data, own.get("window", 0), epochs, seeds)
            print(f"order {name}: {met:.2f} identities in a batch of {BATCH}")
        print()
        run(place, spec, "order", SIDES, epochs, seeds, settings)


if __name__ == "__main__":
    main()

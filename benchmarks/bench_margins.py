"""What margins give on the synthetic set: `faceshards train synthetic` with each, on several seeds, measured on people
it never saw.

    python -m benchmarks.bench_margins [--epochs 3] [--seeds 3] [--images 7200] [--folder DIR]

All else is the recipe's, the number of epochs apart. A seed decides first values, order of images and mirroring, so
margins are compared seed by seed. Each figure is a last checkpoint's, so that no set chose it. The interval of a run is
that of its pairs (evaluation.protocol.intervals), the interval of a mean and of a difference Student's, over the seeds.
With --folder what was trained before is kept there, and a run that was interrupted goes on.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click
from scipy.stats import t as student

from pipelines.synthetic.write import SyntheticSpec, write_set

SIDES = {
    "CosFace 0.35": {"margin": [1.0, 0.0, 0.35]},
    "AdaFace": {"margin": "adaface"},
}


def faceshards(*arguments: object) -> Any:
    """Returns what a command of faceshards prints as JSON."""
    command = [sys.executable, "-m", "faceshards", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(done.stderr.strip().splitlines()[-1].removeprefix("Error: "))
    return json.loads(done.stdout)


def measure(folder: Path, name: str, settings: dict[str, Any], more: tuple[str, ...]) -> tuple[float, float, float]:
    """Returns the accuracy of a run and its interval's ends."""
    out, pairs = folder / name, folder / "raw" / "verification.bin"
    values = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    options = [part for value in (*values, "verify=[]", "keep=1", *more) for part in ("--set", value)]
    faceshards("train", "synthetic", "--data", folder / "shards", "--out", out, "--resume", "--json", *options)
    (found,) = faceshards("eval", "--model", out, "--set", pairs, "--json")["sets"]
    return found["accuracy"], *found["interval"]


def over_seeds(values: list[float]) -> str:
    """Returns a mean with its 95 % interval, in %."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{100 * mean:.2f}"
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{100 * mean:.2f} ({100 * (mean - half):.2f} .. {100 * (mean + half):.2f})"


@contextmanager
def made_set(folder: Path | None, images: int, shards: int) -> Iterator[tuple[Path, SyntheticSpec]]:
    """Yields where a set lies, and its runs, and what it is: below a folder, if it is not there yet rendered and built.

    Without a folder it is a temporary one.
    """
    with tempfile.TemporaryDirectory() if folder is None else nullcontext(folder) as parent:
        place = Path(parent) / f"images-{images}-shards-{shards}"
        place.mkdir(parents=True, exist_ok=True)
        spec = SyntheticSpec(identities=max(2, images // 20), images=images, defects=0)
        if not (place / "shards").exists():
            write_set(place / "raw", spec)
            options = ("--set", f"shards={shards}", "--json")
            faceshards("build", "--source", place / "raw", "--out", place / "shards", *options)
        yield place, spec


def run(
    folder: Path,
    spec: SyntheticSpec,
    title: str,
    sides: dict[str, dict[str, Any]],
    epochs: int,
    seeds: int,
    more: tuple[str, ...],
) -> None:
    """Trains each side on a set of made_set(), and prints the table.

    Args:
        folder: of the set; the runs lie beside it.
        spec: of the set.
        title: of the first column.
        sides: their names, and the settings in which they differ.
        epochs: of each run.
        seeds: runs of each side, numbered from 0 on.
        more: settings of all, KEY=VALUE.
    """
    print(
        f"{spec.images:,} images of {spec.identities:,} identities, {epochs} epochs, "
        f"{spec.pairs:,} pairs of other people\n"
    )
    print(f"| {title} | {' | '.join(f'seed {seed}' for seed in range(seeds))} | mean | against the first | minutes |")
    print(f"|---|{'---|' * seeds}---|---|---|")
    first: list[float] = []
    for name, settings in sides.items():
        start = time.perf_counter()
        runs = [
            measure(folder, f"{name}-{seed}", {**settings, "seed": seed, "epochs": epochs}, more)
            for seed in range(seeds)
        ]
        minutes = (time.perf_counter() - start) / 60
        cells = [f"{100 * value:.2f} ({100 * low:.2f} .. {100 * high:.2f})" for value, low, high in runs]
        values = [value for value, _, _ in runs]
        first = first or values
        against = over_seeds([value - base for value, base in zip(values, first, strict=True)])
        print(f"| {name} | {' | '.join(cells)} | {over_seeds(values)} | {against} | {minutes:.1f} |", flush=True)


@click.command()
@click.option("--images", default=7200, show_default=True, help="Size of the set.")
@click.option("--epochs", default=3, show_default=True, help="Of each run; the first is warm-up.")
@click.option("--seeds", default=3, show_default=True, help="Runs of each margin.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keeps set and runs; a temporary folder without it.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of all runs.")
def main(images: int, epochs: int, seeds: int, folder: Path | None, settings: tuple[str, ...]) -> None:
    with made_set(folder, images, 8) as (place, spec):
        run(place, spec, "margin", SIDES, epochs, seeds, settings)


if __name__ == "__main__":
    main()

"""The command ``faceshards split``."""

from __future__ import annotations

from pathlib import Path

import click
from tqdm.contrib.logging import logging_redirect_tqdm

from faceshards.cli.command import Command, goes_on
from faceshards.cli.options import (
    LOCATION,
    check_work,
    cluster_options,
    dashboard_option,
    dataset_argument,
    json_option,
    quiet_option,
    show,
    work_option,
)
from faceshards.storage.location import Location


@click.command("split", cls=Command, go_on=goes_on)
@dataset_argument
@click.option("--out", type=LOCATION, required=True, help="Folder, or prefix in a bucket, to publish.")
@work_option
@click.option(
    "--unseen",
    default="5%",
    show_default=True,
    metavar="SHARE%|COUNT",
    help="Identities to hold out: a share of them, or a number.",
)
@click.option(
    "--pairs",
    type=click.IntRange(max=100_000),
    default=6000,
    show_default=True,
    help="Of the verification set, a multiple of 20.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, (1 << 63) - 1),
    default=0,
    show_default=True,
    help="Decides which identities and pictures.",
)
@cluster_options
@dashboard_option
@click.option("--restart", is_flag=True, help="Throw away an interrupted split instead of going on with it.")
@quiet_option
@json_option
def split(
    path: Location,
    out: Location,
    work: Path | None,
    unseen: str,
    pairs: int,
    seed: int,
    workers: int,
    scheduler: str | None,
    tls: dict[str, Path] | None,
    dashboard: bool,
    restart: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Hold identities of the dataset PATH out, to measure on.

    OUT is a dataset as any: the images of the other identities, byte for byte, under labels 0..C-1; every image held
    out is in its table `dropped` with the reason held_out. OUT/unseen.bin is the verification set: ten folds, each
    with persons of its own, genuine pairs first and as many impostors; OUT/unseen.parquet says who is in which pair.
    Identities that share photographs are perhaps one person: they are held out together. Interrupted at any moment,
    the same command goes on.

    \b
    Examples:
      faceshards split data/shards/casia --out data/shards/casia_train
      faceshards split data/shards/mine --unseen 200 --pairs 3000 --out data/shards/mine_train --seed 1
      faceshards split s3://faces/sets/mine --out s3://faces/sets/mine_train --work /scratch/mine
      faceshards train casia --data data/shards/casia_train --out data/runs/casia
      faceshards eval --model data/runs/casia --set data/shards/casia_train/unseen.bin
    """
    check_work(out, work)
    from pipelines.cluster import Tls  # Dask takes a second to import
    from pipelines.derived import split_at
    from pipelines.runner import Execution
    from pipelines.split.plan import Request, SplitError

    try:
        request = Request(unseen, pairs, seed)
    except SplitError as error:
        raise click.UsageError(str(error)) from None
    execution = Execution(workers, scheduler, 0, dashboard, quiet, Tls(**tls) if tls else None)
    with logging_redirect_tqdm():
        found = split_at(path, out, request, execution, work=work, restart=restart)
    totals, about = found.totals, found.info["unseen"]
    result = {
        "path": str(out),
        "fingerprint": found.fingerprint,
        "parent": found.info["split"]["parent"]["fingerprint"],
        "images": totals["kept"],
        "identities": totals["identities"],
        "unseen": {**about, "file": str(out / about["file"])},
        "warnings": found.info["warnings"],
    }
    lines = [
        f"{out}: {totals['kept']:,} images of {totals['identities']:,} identities",
        f"{out / about['file']}: {about['pairs']:,} pairs of {about['identities']:,} others, of at most "
        f"{about['possible']:,}",
    ]
    show(result, lines, as_json)

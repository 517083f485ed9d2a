"""The command ``faceshards export-data``."""

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
    partition_bytes_option,
    quiet_option,
    show,
    work_option,
)
from faceshards.storage.location import Location
from pipelines.exports.base import Request
from pipelines.exports.registry import EXPORTS


@click.command("export-data", cls=Command, go_on=goes_on)
@dataset_argument
@click.argument("out", type=LOCATION)
@work_option
@click.option("--to", type=click.Choice(list(EXPORTS)), required=True, help="Format to write.")
@click.option(
    "--labels",
    type=click.Choice(["new", "old"]),
    default="new",
    show_default=True,
    help="0..C-1 as in the dataset, or as the source said them.",
)
@click.option(
    "--shard-bytes",
    type=click.IntRange(min=0),
    default=0,
    help="Of webdataset: aimed size of a .tar; 0: one for each shard.",
)
@cluster_options
@partition_bytes_option
@dashboard_option
@click.option("--restart", is_flag=True, help="Throw away an interrupted export instead of going on with it.")
@quiet_option
@json_option
def export_data(
    path: Location,
    out: Location,
    work: Path | None,
    to: str,
    labels: str,
    shard_bytes: int,
    workers: int,
    scheduler: str | None,
    tls: dict[str, Path] | None,
    partition_bytes: int,
    dashboard: bool,
    restart: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Write the dataset PATH as files of another format into OUT.

    \b
    recordio    InsightFace: train.rec with header and identity records, .idx, .lst, property
    im2rec      train.rec with one number a record, .idx, .lst
    folder      one folder for each identity, SID.jpg or SID.png in it
    webdataset  shard-000000.tar and so on, with SID.jpg, SID.cls and SID.json

    Every image is compared with its checksum while it is read. OUT/export.json says where the export came from, and
    OUT/identities.parquet which label is whose. Interrupted at any moment, the same command goes on. OUT may be a
    prefix in a bucket, where export.json comes last.

    \b
    Examples:
      faceshards export-data data/shards/synthetic data/exports/synthetic --to recordio
      faceshards export-data data/shards/casia /mnt/casia --to im2rec --labels old
      faceshards export-data data/shards/lfw lfw_again --to folder --labels old
      faceshards export-data data/shards/wf42m /mnt/tars --to webdataset --shard-bytes 1000000000
      faceshards export-data s3://faces/sets/mine s3://faces/tars/mine --to webdataset --work /scratch/mine
    """
    check_work(out, work)
    if shard_bytes and to != "webdataset":
        raise click.UsageError(f"--shard-bytes belongs to --to webdataset; {to} has no shards")
    from pipelines.cluster import Tls
    from pipelines.derived import export_at  # Dask takes a second to import
    from pipelines.runner import Execution

    execution = Execution(workers, scheduler, partition_bytes, dashboard, quiet, Tls(**tls) if tls else None)
    with logging_redirect_tqdm():
        about = export_at(path, out, Request(to, labels, shard_bytes), execution, work=work, restart=restart)
    totals = about["totals"]
    counts = f"{totals['images']:,} images of {totals['identities']:,} identities"
    show(about, [f"{out}: {counts} as {about['format']}, {about['labels']} labels"], as_json)

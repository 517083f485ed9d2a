"""The command ``faceshards build``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from tqdm.contrib.logging import logging_redirect_tqdm

from faceshards.cli.command import Command, Interrupted, goes_on
from faceshards.cli.manifest.report import check_report, report_line, write_report
from faceshards.cli.manifest.summary import print_summary
from faceshards.cli.options import (
    FETCHED,
    LOCATION,
    SHARE,
    check_work,
    cluster_options,
    dashboard_option,
    data_root_option,
    json_option,
    partition_bytes_option,
    quiet_option,
    settings_option,
)
from faceshards.cli.paths import OUT_PAGE
from faceshards.cli.plan import print_plan
from faceshards.cli.terminal import echo
from faceshards.settings import load_yaml, make_config
from faceshards.storage.location import Location, StoredPath
from pipelines.config import BuildConfig
from pipelines.shuffle import FORMS
from pipelines.sources.catalog import dataset_folder


def _go_on(params: Mapping[str, Any]) -> str:
    """Returns how to go on when interrupted: what was rendered of a synthetic set is not kept until it is whole."""
    name = params["name"]
    if name is not None and not dataset_folder(name, params["data_root"])[1].exists():
        return f"the same command renders {name} again from the beginning"
    return goes_on(params)


@click.command(cls=Command, go_on=_go_on)
@click.argument("name", required=False)
@click.option("--out", required=True, type=LOCATION, help="Folder, or prefix in a bucket, to publish the dataset in.")
@click.option(
    "--work",
    type=LOCATION,
    help="With --out in a bucket: folder on a disk to build in, as large as the dataset, or a prefix in a bucket.",
)
@click.option(
    "--source",
    "sources",
    type=LOCATION,
    multiple=True,
    help="A .rec, a WebDataset .tar, a folder of either, or an image folder; or an address of one; may be repeated.",
)
@data_root_option
@click.option("--config", "config_file", type=FETCHED, help="YAML file of settings.")
@settings_option
@cluster_options
@partition_bytes_option
@dashboard_option
@click.option(
    "--shuffle",
    type=click.Choice(FORMS),
    default=FORMS[0],
    show_default=True,
    help="Fetch each image where it lies (direct), or read sources in order and keep all images a while (spill).",
)
@click.option(
    "--exclude",
    type=FETCHED,
    multiple=True,
    metavar="SET.bin",
    help="Drop what is a picture of this verification set; may be repeated.",
)
@click.option("--strict", is_flag=True, help="Publish nothing if records are broken or counts disagree.")
@click.option("--overwrite", is_flag=True, help="Replace the dataset that is published at --out.")
@click.option("--restart", is_flag=True, help="Throw away an interrupted build instead of going on with it.")
@click.option(
    "--report", "page", type=OUT_PAGE, metavar="PAGE", help="In the end, write a page that shows the dataset."
)
@click.option("--plan", is_flag=True, help="Say what would be kept and dropped, its disk and time; publish nothing.")
@click.option("--sample", type=SHARE, metavar="5%", help="With --plan: look at so many of the identities only.")
@quiet_option
@json_option
def build(
    name: str | None,
    out: Location,
    work: Location | None,
    sources: tuple[Location, ...],
    data_root: Path,
    config_file: Path | None,
    settings: dict[str, Any],
    workers: int,
    scheduler: str | None,
    tls: dict[str, Path] | None,
    partition_bytes: int,
    dashboard: bool,
    shuffle: str,
    exclude: tuple[Path, ...],
    strict: bool,
    overwrite: bool,
    restart: bool,
    page: Location | None,
    plan: bool,
    sample: float | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Build the known set NAME, or any set by --source, into --out.

    What is published at --out appears whole or not at all. Interrupted at any moment, the same command goes on where it
    stopped. With --plan it stops before anything is written, and the same command without it goes on from there.

    \b
    Examples:
      faceshards build glint360k --out data/shards/glint360k
      faceshards build --source faces/ --out data/shards/mine --set image_size=[0,0] --set near_within=40
      faceshards build --source tars/ --out data/shards/tars
      faceshards build --source a.rec --source b.rec --out data/shards/both --set labels=separate
      faceshards build casia --out data/shards/clean --set filters=[blur,exposure]
      faceshards build casia --out data/shards/casia --exclude lfw.bin --exclude cfp_fp.bin
      faceshards build synthetic --out data/shards/synthetic --report synthetic.html
      faceshards build webface42m --out /mnt/shards/wf42m --scheduler tcp://head:8786
      faceshards build --source s3://faces/raw/train.rec --out s3://faces/shards/mine --work /scratch/mine
      faceshards build glint360k --out data/shards/glint360k --plan --sample 5%
    """
    if (name is None) == (not sources):
        raise click.UsageError("give either the NAME of a known set or --source PATH")
    if sample is not None and not plan:
        raise click.UsageError("--sample belongs to --plan: a dataset of a part of the identities is not made")
    if page is not None and plan:
        raise click.UsageError("--report shows a dataset, and --plan publishes none")
    check_work(out, work, "a folder on a disk or a prefix in a bucket")
    from pipelines.build import Execution  # Dask takes a second to import: not for every command
    from pipelines.cluster import Tls
    from pipelines.plan import plan as foresee
    from pipelines.stages.decide import give_back
    from pipelines.upload import build_at, in_the_way, made_in
    from pipelines.wanted import find_wanted

    if page is not None:
        check_report(page, out)  # before hours of building
    give_back()
    execution = Execution(workers, scheduler, partition_bytes, dashboard, quiet, Tls(**tls) if tls else None, shuffle)
    config = make_config(load_yaml(config_file) if config_file else {}, str(config_file), BuildConfig())
    config = make_config(settings, "--set", config)
    wanted = find_wanted(name, sources, data_root, exclude, quiet, workers)
    options: dict[str, Any] = {
        **{"expected": wanted.expected, "warnings": wanted.warnings, "exclude": exclude},
        **{"strict": strict, "overwrite": overwrite, "restart": restart},
    }
    if plan:
        place = made_in(work) if isinstance(out, StoredPath) and isinstance(work, Path) else out
        prefix = work if isinstance(work, StoredPath) else None
        with logging_redirect_tqdm():
            foreseen = foresee(
                *(wanted.title, wanted.files, place, config, execution), **options, share=sample or 1.0, work=prefix
            )
        if isinstance(out, StoredPath) and work is not None:
            there = in_the_way(wanted.title, wanted.files, out, work, config, options)
            foreseen = {**foreseen, "out": str(out), "refused": [*foreseen["refused"], *there]}
        print_plan(foreseen, as_json)
        if strict and foreseen["refused"]:
            raise click.ClickException("a build would be refused")
        return
    with logging_redirect_tqdm():
        found = build_at(wanted.title, wanted.files, out, config, execution, work=work, **options)
    print_summary(found, as_json)
    if page is not None:
        try:
            written = write_report(page, found)
        except KeyboardInterrupt:
            raise Interrupted(f"the dataset is published; faceshards manifest report {out} --out {page}") from None
        if not as_json:
            echo(report_line(page, written))

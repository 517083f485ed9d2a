"""The command ``faceshards build``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from tqdm.contrib.logging import logging_redirect_tqdm

from faceshards.cli.manifest.report import check_report, report_line, write_report
from faceshards.cli.manifest.summary import print_summary
from faceshards.cli.options import (
    PATH,
    SHARE,
    Command,
    Interrupted,
    dashboard_option,
    data_root_option,
    goes_on,
    json_option,
    partition_bytes_option,
    quiet_option,
    scheduler_option,
    settings_option,
    workers_option,
)
from faceshards.cli.plan import print_plan
from faceshards.errors import FaceshardsError
from faceshards.progress import bar
from faceshards.settings import load_yaml, make_config
from pipelines.config import BuildConfig
from pipelines.sources.catalog import dataset_folder
from pipelines.sources.find import find_files


@click.command(cls=Command, go_on=goes_on)
@click.argument("name", required=False)
@click.option("--out", required=True, type=PATH, help="Folder to publish the dataset in.")
@click.option(
    "--source",
    "sources",
    type=PATH,
    multiple=True,
    help="A .rec, a WebDataset .tar, a folder of either, or an image folder; may be repeated.",
)
@data_root_option
@click.option("--config", "config_file", type=PATH, help="YAML file of settings.")
@settings_option
@workers_option
@scheduler_option
@partition_bytes_option
@dashboard_option
@click.option(
    "--exclude",
    type=PATH,
    multiple=True,
    metavar="SET.bin",
    help="Drop what is a picture of this verification set; may be repeated.",
)
@click.option("--strict", is_flag=True, help="Publish nothing if records are broken or counts disagree.")
@click.option("--overwrite", is_flag=True, help="Replace the dataset that is published at --out.")
@click.option("--restart", is_flag=True, help="Throw away an interrupted build instead of going on with it.")
@click.option("--report", "page", type=PATH, metavar="PAGE", help="In the end, write a page that shows the dataset.")
@click.option("--plan", is_flag=True, help="Say what would be kept and dropped, its disk and time; publish nothing.")
@click.option("--sample", type=SHARE, metavar="5%", help="With --plan: look at so many of the identities only.")
@quiet_option
@json_option
def build(
    name: str | None,
    out: Path,
    sources: tuple[Path, ...],
    data_root: Path,
    config_file: Path | None,
    settings: dict[str, Any],
    workers: int,
    scheduler: str | None,
    partition_bytes: int,
    dashboard: bool,
    exclude: tuple[Path, ...],
    strict: bool,
    overwrite: bool,
    restart: bool,
    page: Path | None,
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
      faceshards build glint360k --out data/shards/glint360k --plan --sample 5%
    """
    if (name is None) == (not sources):
        raise click.UsageError("give either the NAME of a known set or --source PATH")
    if sample is not None and not plan:
        raise click.UsageError("--sample belongs to --plan: a dataset of a part of the identities is not made")
    if page is not None and plan:
        raise click.UsageError("--report shows a dataset, and --plan publishes none")
    from pipelines.build import Execution  # Dask takes a second to import: not for every command
    from pipelines.build import build as make
    from pipelines.plan import plan as foresee

    if page is not None:
        check_report(page, out)  # before hours of building
    execution = Execution(workers, scheduler, partition_bytes, dashboard, quiet)
    config = make_config(load_yaml(config_file) if config_file else {}, str(config_file), BuildConfig())
    config = make_config(settings, "--set", config)
    expected = None
    if name is not None:
        expected, source = dataset_folder(name, data_root)
        sources = (source,)
        if expected.rendered:
            _render(name, source, exclude, quiet, workers)
        elif not source.exists():
            raise FaceshardsError(f"{name} is not at {source}; it is to be had from {expected.where}; put it there")
    files, warnings = find_files(*sources)
    title = name or "+".join(source.resolve().name for source in sources)
    options: dict[str, Any] = {
        **{"expected": expected, "warnings": warnings, "exclude": exclude},
        **{"strict": strict, "overwrite": overwrite, "restart": restart},
    }
    if plan:
        with logging_redirect_tqdm():
            foreseen = foresee(title, files, out, config, execution, **options, share=sample or 1.0)
        print_plan(foreseen, as_json)
        if strict and foreseen["refused"]:
            raise click.ClickException("a build would be refused")
        return
    with logging_redirect_tqdm():
        found = make(title, files, out, config, execution, **options)
    print_summary(found, as_json)
    if page is not None:
        try:
            written = write_report(page, found)
        except KeyboardInterrupt:
            raise Interrupted(f"the dataset is published; faceshards manifest report {out} --out {page}") from None
        if not as_json:
            click.echo(report_line(page, written))


def _render(name: str, folder: Path, exclude: Sequence[Path], quiet: bool, workers: int) -> None:
    """Renders a synthetic set, unless it is there; not if a set to exclude is unusable that is no part of it."""
    if folder.exists():
        return
    from faceshards.formats.verification_bin import read_bin
    from pipelines.synthetic.spec import SETS
    from pipelines.synthetic.write import write_set

    for path in exclude:
        if not path.absolute().is_relative_to(folder.absolute()):
            read_bin(path)
    spec = SETS[name]
    try:
        with bar("render  ", spec.records, quiet) as shown:

            def progress(count: int) -> None:
                shown.update(count)

            write_set(folder, spec, progress, workers or len(os.sched_getaffinity(0)))
    except KeyboardInterrupt:
        raise Interrupted(f"the same command renders {name} again from the beginning") from None

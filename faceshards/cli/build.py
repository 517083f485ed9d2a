"""The command ``faceshards build``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from tqdm.contrib.logging import logging_redirect_tqdm

from faceshards.cli.manifest.summary import print_summary
from faceshards.cli.options import (
    PATH,
    Command,
    dashboard_option,
    data_root_option,
    json_option,
    partition_bytes_option,
    quiet_option,
    scheduler_option,
    settings_option,
    workers_option,
)
from faceshards.errors import FaceshardsError
from faceshards.settings import load_yaml, make_config
from pipelines.config import BuildConfig
from pipelines.sources.catalog import dataset_folder
from pipelines.sources.find import find_files


@click.command(cls=Command, go_on="; the same command goes on where it stopped")
@click.argument("name", required=False)
@click.option("--out", required=True, type=PATH, help="Folder to publish the dataset in.")
@click.option(
    "--source",
    "sources",
    type=PATH,
    multiple=True,
    help="A .rec, a folder with one, or an image folder; may be repeated.",
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
    quiet: bool,
    as_json: bool,
) -> None:
    """Build the known set NAME, or any set by --source, and publish it at --out.

    Interrupted at any moment, the same command goes on where it stopped.

    \b
    Examples:
      faceshards build glint360k --out data/shards/glint360k
      faceshards build --source faces/ --out data/shards/mine --set image_size=[0,0] --set near_within=40
      faceshards build --source a.rec --source b.rec --out data/shards/both --set labels=separate
      faceshards build casia --out data/shards/clean --set filters=[blur,exposure]
      faceshards build casia --out data/shards/casia --exclude lfw.bin --exclude cfp_fp.bin
      faceshards build webface42m --out /mnt/shards/wf42m --scheduler tcp://head:8786
    """
    if (name is None) == (not sources):
        raise click.UsageError("give either the NAME of a known set or --source PATH")
    from pipelines.build import Execution
    from pipelines.build import build as run  # Dask takes a second to import: not for every command

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
    with logging_redirect_tqdm():
        found = run(
            name or "+".join(source.resolve().name for source in sources),
            files,
            out,
            config,
            execution,
            expected=expected,
            warnings=warnings,
            strict=strict,
            overwrite=overwrite,
            restart=restart,
            exclude=exclude,
        )
    print_summary(found, as_json)


def _render(name: str, folder: Path, exclude: Sequence[Path], quiet: bool, workers: int) -> None:
    """Renders a synthetic set, unless it is there; not if a set to exclude is unusable that is no part of it."""
    if folder.exists():
        return
    from tqdm import tqdm

    from faceshards.formats.verification_bin import read_bin
    from pipelines.synthetic.spec import SETS
    from pipelines.synthetic.write import write_set

    for path in exclude:
        if not path.absolute().is_relative_to(folder.absolute()):
            read_bin(path)
    spec = SETS[name]
    with tqdm(desc="render  ", total=spec.records, unit=" images", disable=quiet, mininterval=0.5) as bar:

        def progress(count: int) -> None:
            bar.update(count)

        write_set(folder, spec, progress, workers or len(os.sched_getaffinity(0)))

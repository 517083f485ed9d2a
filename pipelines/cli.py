"""The command faceshards: build datasets, and look into them. Results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click
from tqdm.contrib.logging import logging_redirect_tqdm

from pipelines.cli_common import Group, settings_option
from pipelines.cli_manifest import manifest, print_summary
from pipelines.config import BuildConfig, load_yaml, make_config
from pipelines.errors import FaceshardsError
from pipelines.sources import dataset_folder, find_files, known_datasets

COMMANDS = "faceshards.commands"  # the entry points' group, in setup.cfg


class Main(Group):
    """The commands of this package, and those that training and evaluation register as `faceshards.commands`.

    These are imported only when they are called for: MindSpore takes seconds.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names of all commands, sorted."""
        return sorted({*self.commands, *(entry.name for entry in entry_points(group=COMMANDS))})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Returns a command, or None."""
        found = super().get_command(ctx, cmd_name)
        for entry in () if found else entry_points(group=COMMANDS, name=cmd_name):
            found = entry.load()
        return found


@click.group(cls=Main, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Face-recognition sets as deduplicated, identity-balanced MindRecord shards.

    \b
    Examples:
      faceshards datasets
      faceshards build synthetic --out data/shards/synthetic
      faceshards build --source /data/faces_emore --out data/shards/emore --set max_images=200
      faceshards manifest summary data/shards/synthetic
      faceshards train synthetic --data data/shards/synthetic --out data/runs/synthetic
    """
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(message)s")


@main.command()
@click.argument("name", required=False)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to publish the dataset in.")
@click.option("--source", type=click.Path(path_type=Path), help="A .rec, a folder with one, or an image folder.")
@click.option("--data-root", type=click.Path(path_type=Path), default=Path("data/raw"), envvar="DATA_ROOT",
              show_default=True, help="Where the known sets lie, each in DATA_ROOT/NAME.")  # fmt: skip
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="YAML file of settings.")
@settings_option
@click.option("--workers", type=click.IntRange(min=0), default=0, help="Local worker processes; 0: one per core.")
@click.option("--scheduler", metavar="tcp://HOST:PORT", help="Use this Dask cluster, which shares the file system.")
@click.option("--partition-bytes", type=click.IntRange(min=0), default=0, help="Aimed size of a task's input.")
@click.option("--dashboard", is_flag=True, help="Serve Dask's dashboard and print its address.")
@click.option("--overwrite", is_flag=True, help="Replace the dataset that is published at --out.")
@click.option("--restart", is_flag=True, help="Throw away an interrupted build instead of going on with it.")
@click.option("--quiet", is_flag=True, help="No progress bars.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def build(
    name: str | None,
    out: Path,
    source: Path | None,
    data_root: Path,
    config_file: Path | None,
    settings: dict[str, Any],
    workers: int,
    scheduler: str | None,
    partition_bytes: int,
    dashboard: bool,
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
      faceshards build webface42m --out /mnt/shards/wf42m --scheduler tcp://head:8786
    """
    if (name is None) == (source is None):
        raise click.UsageError("give either the NAME of a known set or --source PATH")
    from pipelines.build import Execution
    from pipelines.build import build as run  # Dask takes a second to import: not for every command

    config = make_config(load_yaml(config_file) if config_file else {}, str(config_file), BuildConfig())
    config = make_config(settings, "--set", config)
    expected = None
    if name is not None:
        expected, source = dataset_folder(name, data_root)
        if name == "synthetic":
            _render_synthetic(source, quiet, workers)
        elif not source.exists():
            raise FaceshardsError(f"{name} is not at {source}; it is to be had from {expected.where}; put it there")
    assert source is not None
    files, warnings = find_files(source)
    for warning in warnings:
        logging.getLogger(__name__).warning("%s", warning)
    execution = Execution(workers, scheduler, partition_bytes, dashboard, quiet)
    with logging_redirect_tqdm():
        found = run(name or source.resolve().name, files, out, config, execution, expected=expected,
                    overwrite=overwrite, restart=restart)  # fmt: skip
    print_summary(found, as_json)


def _render_synthetic(folder: Path, quiet: bool, workers: int) -> None:
    """Renders the synthetic set, unless it is there."""
    if folder.exists():
        return
    from tqdm import tqdm

    from pipelines.synthetic import SyntheticSpec, write_set

    with tqdm(desc="render  ", unit=" images", disable=quiet, mininterval=0.5) as bar:

        def progress(count: int) -> None:
            bar.update(count)

        write_set(folder, SyntheticSpec(), progress, workers or len(os.sched_getaffinity(0)))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def settings(as_json: bool) -> None:
    """List the settings that --set and --config take, with their defaults."""
    import dataclasses

    values = {field.name: getattr(BuildConfig(), field.name) for field in dataclasses.fields(BuildConfig)}
    if as_json:
        click.echo(json.dumps(values, indent=2))
        return
    for key, value in values.items():
        click.echo(f"{key:<16} {list(value) if isinstance(value, tuple) else value}")


@main.command()
@click.option("--data-root", type=click.Path(path_type=Path), default=Path("data/raw"), envvar="DATA_ROOT",
              show_default=True, help="Where the known sets lie, each in DATA_ROOT/NAME.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def datasets(data_root: Path, as_json: bool) -> None:
    """List the sets known by name, and whether they are present."""
    known = known_datasets()
    rows = [{**vars(entry), "path": str(data_root / name), "present": (data_root / name).exists()}
            for name, entry in known.items()]  # fmt: skip
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    click.echo(f"{'name':<12} {'identities':>10} {'images':>11}  {'present':<8} terms")
    for row in rows:
        numbers = [f"{row[key]:,}" if row[key] else "any" for key in ("identities", "images")]
        present = "yes" if row["present"] else "no"
        click.echo(f"{row['name']:<12} {numbers[0]:>10} {numbers[1]:>11}  {present:<8} {row['terms']}")


main.add_command(manifest)

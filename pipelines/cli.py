"""The command faceshards: build datasets, and look into them. Results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import yaml
from tqdm.contrib.logging import logging_redirect_tqdm

from pipelines.config import BuildConfig, load_yaml, make_config
from pipelines.errors import FaceshardsError
from pipelines.manifest import DROP_REASONS, Manifest
from pipelines.mindrecord import Shard
from pipelines.sources import dataset_folder, find_files, known_datasets


class _Group(click.Group):
    """Turns the errors a user can meet into one line on stderr and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FaceshardsError as error:
            raise click.ClickException(" ".join(str(error).split())) from None
        except KeyboardInterrupt:
            raise click.ClickException("interrupted; the same command goes on where it stopped") from None


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Face-recognition sets as deduplicated, identity-balanced MindRecord shards.

    \b
    Examples:
      faceshards datasets
      faceshards build synthetic --out data/shards/synthetic
      faceshards build --source /data/faces_emore --out data/shards/emore --set max_images=200
      faceshards manifest summary data/shards/synthetic
    """
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(message)s")


@main.command()
@click.argument("name", required=False)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to publish the dataset in.")
@click.option("--source", type=click.Path(path_type=Path), help="A .rec, a folder with one, or an image folder.")
@click.option("--data-root", type=click.Path(path_type=Path), default=Path("data/raw"), envvar="DATA_ROOT",
              show_default=True, help="Where the known sets lie, each in DATA_ROOT/NAME.")  # fmt: skip
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="YAML file of settings.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="One setting; see `faceshards settings`.")
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
    settings: tuple[str, ...],
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

    config = make_config(load_yaml(config_file), str(config_file)) if config_file else BuildConfig()
    config = make_config(dict(_setting(text) for text in settings), "--set", config)
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
    _print_summary(found, as_json)


def _setting(text: str) -> tuple[str, Any]:
    """Returns key and value of KEY=VALUE, the value read as YAML."""
    key, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"--set {text}: not KEY=VALUE")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        raise click.UsageError(f"--set {text}: the value is not YAML") from None


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


@main.group(cls=_Group)
def manifest() -> None:
    """Look into a published dataset.

    \b
    Examples:
      faceshards manifest summary data/shards/synthetic
      faceshards manifest drops data/shards/synthetic --reason near_duplicate
      faceshards manifest image data/shards/synthetic 42 --out 42.jpg
      faceshards manifest verify data/shards/synthetic
    """


_PATH = click.argument("path", type=click.Path(path_type=Path))
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_LIMIT = click.option("--limit", type=click.IntRange(min=0), default=20, show_default=True, help="Rows; 0: all.")


@manifest.command()
@_PATH
@_JSON
def summary(path: Path, as_json: bool) -> None:
    """What was scanned, kept and dropped, and why."""
    _print_summary(Manifest(path), as_json)


def _print_summary(found: Manifest, as_json: bool) -> None:
    totals = found.totals
    if as_json:
        click.echo(json.dumps({"path": str(found.path), "name": found.info["name"], "fingerprint": found.fingerprint,
                               **totals, "warnings": found.info["warnings"]}, indent=2))  # fmt: skip
        return
    click.echo(f"{found.info['name']} at {found.path}")
    click.echo(f"  scanned     {totals['scanned']:>12,}")
    click.echo(f"  kept        {totals['kept']:>12,}  of {totals['identities']:,} identities")
    for reason, count in totals["dropped"].items():
        click.echo(f"  dropped     {count:>12,}  {reason}")
    click.echo(f"  conflicts   {totals['conflicts']:>12,}  between {totals['identity_links']:,} pairs of identities")
    click.echo(f"  shards      {totals['shards']:>12,}  {totals['image_bytes'] / 1e6:,.1f} MB of images")
    click.echo(f"  fingerprint {found.fingerprint}")


def _print_table(table: pa.Table, limit: int, as_json: bool) -> None:
    """Prints rows as aligned columns, or as JSON; bytes as hex."""
    total = len(table)
    rows = table.slice(0, limit or total).to_pylist()
    for row in rows:
        for key, value in row.items():
            if isinstance(value, bytes):
                row[key] = value.hex()
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    cells = [table.column_names, *[["-" if value is None else str(value) for value in row.values()] for row in rows]]
    widths = [max(len(line[i]) for line in cells) for i in range(table.num_columns)]
    for line in cells:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    if len(rows) < total:
        click.echo(f"({len(rows)} of {total} rows; --limit 0 for all)", err=True)


@manifest.command()
@_PATH
@click.option("--label", help="Only this identity, by its label in the source.")
@_LIMIT
@_JSON
def identities(path: Path, label: str | None, limit: int, as_json: bool) -> None:
    """Images scanned, kept and dropped of each identity."""
    where = ds.field("label_original") == label if label is not None else None
    table = Manifest(path).table("identities", where=where)
    # Columns of reasons that never occurred only take room.
    empty = [name for name in DROP_REASONS if not as_json and not pc.any(pc.not_equal(table[name], 0)).as_py()]
    _print_table(table.drop_columns(empty), limit, as_json)


@manifest.command()
@_PATH
@click.option("--reason", type=click.Choice(DROP_REASONS), help="Only this reason.")
@_LIMIT
@_JSON
def drops(path: Path, reason: str | None, limit: int, as_json: bool) -> None:
    """Every record that was dropped, with its reason and what stands for it."""
    where = ds.field("reason") == reason if reason else None
    _print_table(Manifest(path).table("dropped", where=where), limit, as_json)


@manifest.command()
@_PATH
@click.option("--pairs", is_flag=True, help="Each pair of photographs, instead of pairs of identities.")
@_LIMIT
@_JSON
def conflicts(path: Path, pairs: bool, limit: int, as_json: bool) -> None:
    """Identities that share photographs: perhaps the same person, perhaps wrong labels."""
    found = Manifest(path)
    if pairs:
        _print_table(found.table("conflicts"), limit, as_json)
        return
    order = [("photographs", "descending"), ("label_original_a", "ascending"), ("label_original_b", "ascending")]
    _print_table(found.table("identity_links").sort_by(order), limit, as_json)


@manifest.command()
@_PATH
@click.argument("sid", type=int)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the encoded image to this file.")
@_JSON
def image(path: Path, sid: int, out: Path | None, as_json: bool) -> None:
    """One photograph's provenance, by its sid; --out writes its bytes as they were in the source."""
    found = Manifest(path)
    for table in ("images", "dropped"):
        rows = found.table(table, where=ds.field("sid") == sid)
        if len(rows):
            break
    else:
        raise FaceshardsError(f"{path}: no sid {sid}; they go from 0 to {found.totals['scanned'] - 1}")
    if out is not None:
        if table == "dropped":
            raise FaceshardsError(
                f"{path}: sid {sid} was dropped ({rows['reason'][0]}); its bytes are in the source only"
            )
        number = rows["shard"][0].as_py()
        file = found.table("shards", ["file"], ds.field("shard") == number)["file"][0].as_py()
        with Shard(found.shard_path(file)) as shard:
            data = shard.image(rows["row"][0].as_py())
        try:
            out.write_bytes(data)
        except OSError as error:
            raise FaceshardsError(f"{out}: {error.strerror}") from None
    if as_json:
        _print_table(rows, 1, True)
        return
    for key, value in rows.to_pylist()[0].items():
        click.echo(f"{key:<15} {value.hex() if isinstance(value, bytes) else '-' if value is None else value}")


@manifest.command()
@_PATH
def verify(path: Path) -> None:
    """Recompute every checksum, and every row's sha256 from the shards; list each mismatch."""
    from pipelines.verify import verify as mismatches

    found = Manifest(path)
    count = 0
    for line in mismatches(found):
        click.echo(line)
        count += 1
    if count:
        raise click.ClickException(f"{path}: {count} mismatches")
    click.echo(f"{path}: {found.totals['kept']} images in {found.totals['shards']} shards are as the manifest says")

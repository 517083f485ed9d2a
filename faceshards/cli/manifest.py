"""The commands ``faceshards manifest …``, which look into a published dataset."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pyarrow.dataset as ds

from faceshards.cli.options import PATH, Commands, json_option, show
from faceshards.cli.rows import BATCH, limit_option, print_rows
from faceshards.dataset.manifest import Manifest, check_image
from faceshards.dataset.schema import DROP_REASONS, SCHEMA_VERSION, SCHEMAS
from faceshards.errors import FaceshardsError
from faceshards.formats.mindrecord.reader import Shard


@click.group(cls=Commands)
def manifest() -> None:
    """Look into a published dataset.

    \b
    Examples:
      faceshards manifest summary data/shards/synthetic
      faceshards manifest drops data/shards/synthetic --reason near_duplicate
      faceshards manifest image data/shards/synthetic 42 --out 42.jpg
      faceshards manifest verify data/shards/synthetic
      faceshards manifest upgrade data/shards/older
    """


_PATH = click.argument("path", type=PATH)


@manifest.command()
@_PATH
@json_option
def summary(path: Path, as_json: bool) -> None:
    """What was scanned, kept and dropped, and why."""
    print_summary(Manifest(path), as_json)


def print_summary(found: Manifest, as_json: bool) -> None:
    """Prints what was scanned, kept and dropped."""
    totals = found.totals
    if as_json:
        about = {"path": str(found.path), "name": found.info["name"], "fingerprint": found.fingerprint}
        click.echo(json.dumps({**about, **totals, "warnings": found.info["warnings"]}, indent=2))
        return
    click.echo(f"{found.info['name']} at {found.path}")
    click.echo(f"  scanned     {totals['scanned']:>12,}")
    click.echo(f"  kept        {totals['kept']:>12,}  of {totals['identities']:,} identities")
    for reason, count in totals["dropped"].items():
        click.echo(f"  dropped     {count:>12,}  {reason}")
    click.echo(f"  conflicts   {totals['conflicts']:>12,}  between {totals['identity_links']:,} pairs of identities")
    click.echo(f"  shards      {totals['shards']:>12,}  {totals['image_bytes'] / 1e6:,.1f} MB of images")
    click.echo(f"  fingerprint {found.fingerprint}")


def _print_table(
    found: Manifest,
    table: str,
    limit: int | None,
    as_json: bool,
    where: ds.Expression | None = None,
    columns: list[str] | None = None,
) -> None:
    """Prints rows of a table, as they are read."""
    names = columns or SCHEMAS[table].names
    print_rows(names, lambda: found.batches(table, names, where), found.count(table, where), limit, as_json)


@manifest.command()
@_PATH
@click.option("--label", help="Only this identity, by its label in the source.")
@limit_option
@json_option
def identities(path: Path, label: str | None, limit: int | None, as_json: bool) -> None:
    """Images scanned, kept and dropped of each identity."""
    where = ds.field("label_original") == label if label is not None else None
    found = Manifest(path)
    # Columns of reasons that never occurred only take room.
    empty = [name for name in DROP_REASONS if not as_json and not found.totals["dropped"].get(name)]
    columns = [name for name in SCHEMAS["identities"].names if name not in empty]
    _print_table(found, "identities", limit, as_json, where, columns)


@manifest.command()
@_PATH
@click.option("--reason", type=click.Choice(DROP_REASONS), help="Only this reason.")
@limit_option
@json_option
def drops(path: Path, reason: str | None, limit: int | None, as_json: bool) -> None:
    """Every record that was dropped, with its reason and what stands for it."""
    where = ds.field("reason") == reason if reason else None
    _print_table(Manifest(path), "dropped", limit, as_json, where)


@manifest.command()
@_PATH
@click.option("--pairs", is_flag=True, help="Each pair of photographs, instead of pairs of identities.")
@limit_option
@json_option
def conflicts(path: Path, pairs: bool, limit: int | None, as_json: bool) -> None:
    """Identities that share photographs: perhaps the same person, perhaps wrong labels."""
    found = Manifest(path)
    if pairs:
        _print_table(found, "conflicts", limit, as_json)
        return
    # To be sorted they have to be held, as columns; the build held them likewise.
    order = [("photographs", "descending"), ("label_original_a", "ascending"), ("label_original_b", "ascending")]
    links = found.table("identity_links").sort_by(order)
    print_rows(links.column_names, lambda: iter(links.to_batches(max_chunksize=BATCH)), len(links), limit, as_json)


@manifest.command()
@_PATH
@click.argument("sid", type=int)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the encoded image to this file.")
@json_option
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
            row = rows["row"][0].as_py()
            data = shard.image(row)
            check_image(shard.path, row, data, rows["sha256"][0].as_py())
        try:
            out.write_bytes(data)
        except OSError as error:
            raise FaceshardsError(f"{out}: {error.strerror}") from None
    if as_json:
        print_rows(rows.column_names, lambda: iter(rows.to_batches()), 1, 1, True)
        return
    for key, value in rows.to_pylist()[0].items():
        click.echo(f"{key:<15} {value.hex() if isinstance(value, bytes) else '-' if value is None else value}")


@manifest.command()
@_PATH
def verify(path: Path) -> None:
    """Recompute every checksum, and every row's sha256 from the shards; list each mismatch."""
    from faceshards.dataset.verify import verify as mismatches

    found = Manifest(path)
    count = 0
    for line in mismatches(found):
        click.echo(line)
        count += 1
    if count:
        raise click.ClickException(f"{path}: {count} mismatches")
    click.echo(f"{path}: {found.totals['kept']} images in {found.totals['shards']} shards are as the manifest says")


@manifest.command()
@_PATH
@json_option
def upgrade(path: Path, as_json: bool) -> None:
    """Bring a dataset of an older schema to this release's; its tables are compared first, its shards left alone."""
    from faceshards.dataset.upgrade import upgrade as bring

    changed = bring(path)
    found = Manifest(path)
    facts = {"path": str(found.path), "schema_version": SCHEMA_VERSION, "upgraded": changed}
    said = "of schema {0} now, with the same tables, shards and fingerprint" if changed else "of schema {0} already"
    show({**facts, "fingerprint": found.fingerprint}, [f"{found.path}: {said.format(SCHEMA_VERSION)}"], as_json)

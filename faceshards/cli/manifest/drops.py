"""The command ``faceshards manifest drops``."""

from __future__ import annotations

import click
import pyarrow.compute as pc

from faceshards.cli.command import Command
from faceshards.cli.options import dataset_argument, json_option
from faceshards.cli.rows import check_identity, limit_option, print_table
from faceshards.dataset.manifest import Manifest
from faceshards.errors import FaceshardsError
from faceshards.storage.location import Location


@click.command(cls=Command)
@dataset_argument
@click.option("--reason", "reasons", multiple=True, metavar="REASON", help="Only this; may be repeated.")
@click.option("--label", help="Only those of this identity, by its label in the source.")
@click.option("--source", help="Only those of this source, by its name in the manifest.")
@limit_option
@json_option
def drops(
    path: Location, reasons: tuple[str, ...], label: str | None, source: str | None, limit: int | None, as_json: bool
) -> None:
    """Every record that was dropped, why, and what stands for it.

    \b
    Examples:
      faceshards manifest drops data/shards/synthetic --reason near_duplicate
      faceshards manifest drops data/shards/synthetic --label 17 --limit 0
      faceshards manifest drops data/shards/synthetic --json > drops.json
    """
    found = Manifest(path)
    if strange := [reason for reason in reasons if reason not in found.reasons]:
        raise click.UsageError(f"--reason: '{strange[0]}' is not one of {', '.join(found.reasons)}")
    check_identity(found, label)
    known = [entry["name"] for entry in found.info.get("sources", [])]
    if source is not None and source not in known:
        raise FaceshardsError(f"{path}: no source '{source}'; it was built from {', '.join(known)}")
    wanted = {"reason": list(reasons), "label_original": [label], "source": [source]}
    where = None
    for column, values in wanted.items():
        if values and values != [None]:
            only = pc.field(column).isin(values)
            where = only if where is None else where & only
    print_table(found, "dropped", limit, as_json, where)

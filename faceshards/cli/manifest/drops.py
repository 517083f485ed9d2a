"""The command ``faceshards manifest drops``."""

from __future__ import annotations

import click
import pyarrow.dataset as ds

from faceshards.cli.options import Command, dataset_argument, json_option
from faceshards.cli.rows import limit_option, print_table
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
    """Every record that was dropped, with its reason and what stands for it."""
    found = Manifest(path)
    if strange := [reason for reason in reasons if reason not in found.reasons]:
        raise click.UsageError(f"--reason: '{strange[0]}' is not one of {', '.join(found.reasons)}")
    known = [entry["name"] for entry in found.info.get("sources", [])]
    if source is not None and source not in known:
        raise FaceshardsError(f"{path}: no source '{source}'; it was built from {', '.join(known)}")
    wanted = {"reason": list(reasons), "label_original": [label], "source": [source]}
    where = None
    for column, values in wanted.items():
        if values and values != [None]:
            only = ds.field(column).isin(values)
            where = only if where is None else where & only
    print_table(found, "dropped", limit, as_json, where)

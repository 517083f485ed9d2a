"""The command ``faceshards manifest conflicts``."""

from __future__ import annotations

import click

from faceshards.cli.manifest.links import of_identity, print_links
from faceshards.cli.options import Command, dataset_argument, json_option
from faceshards.cli.rows import limit_option, print_table
from faceshards.dataset.manifest import Manifest
from faceshards.storage.location import Location


@click.command(cls=Command)
@dataset_argument
@click.option("--pairs", is_flag=True, help="Each pair of photographs, instead of pairs of identities.")
@click.option("--label", help="Only those of this identity, by its label in the source.")
@limit_option
@json_option
def conflicts(path: Location, pairs: bool, label: str | None, limit: int | None, as_json: bool) -> None:
    """Photographs under two identities: perhaps the same person, perhaps wrong labels. Without --pairs as `links`."""
    found = Manifest(path)
    if pairs:
        print_table(found, "conflicts", limit, as_json, None if label is None else of_identity(label))
    else:
        print_links(found, label, None, limit, as_json)

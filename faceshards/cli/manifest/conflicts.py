"""The command ``faceshards manifest conflicts``."""

from __future__ import annotations

import click

from faceshards.cli.command import Command
from faceshards.cli.manifest.links import of_identity, print_links
from faceshards.cli.options import dataset_argument, json_option
from faceshards.cli.rows import check_identity, limit_option, print_table
from faceshards.dataset.manifest import Manifest
from faceshards.storage.location import Location


@click.command(cls=Command)
@dataset_argument
@click.option("--pairs", is_flag=True, help="Each pair of photographs, instead of pairs of identities.")
@click.option("--label", help="Only those of this identity, by its label in the source.")
@limit_option
@json_option
def conflicts(path: Location, pairs: bool, label: str | None, limit: int | None, as_json: bool) -> None:
    """Photographs under two identities: perhaps wrong labels.

    Or perhaps the two are one person. Without --pairs it is the list of `links`.

    \b
    Examples:
      faceshards manifest conflicts data/shards/synthetic --pairs
      faceshards manifest conflicts data/shards/synthetic --pairs --label 17 --json
    """
    found = Manifest(path)
    check_identity(found, label)
    if pairs:
        print_table(found, "conflicts", limit, as_json, None if label is None else of_identity(label))
    else:
        print_links(found, label, None, limit, as_json)

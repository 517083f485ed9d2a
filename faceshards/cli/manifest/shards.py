"""The command ``faceshards manifest shards``."""

from __future__ import annotations

import click

from faceshards.cli.command import Command
from faceshards.cli.options import dataset_argument, json_option
from faceshards.cli.rows import limit_option, print_table
from faceshards.dataset.manifest import Manifest
from faceshards.dataset.schema import SCHEMAS
from faceshards.storage.location import Location


@click.command(cls=Command)
@dataset_argument
@limit_option
@json_option
def shards(path: Location, limit: int | None, as_json: bool) -> None:
    """The files of the images: rows, identities, bytes, checksums.

    With --json those of their indexes too.

    \b
    Examples:
      faceshards manifest shards data/shards/synthetic
      faceshards manifest shards data/shards/synthetic --json
    """
    names = [name for name in SCHEMAS["shards"].names if as_json or not name.startswith("db_")]
    print_table(Manifest(path), "shards", limit, as_json, columns=names)

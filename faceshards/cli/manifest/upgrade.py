"""The command ``faceshards manifest upgrade``."""

from __future__ import annotations

import click

from faceshards.cli.command import Command
from faceshards.cli.options import dataset_argument, json_option, show
from faceshards.dataset.manifest import Manifest
from faceshards.dataset.schema import SCHEMA_VERSION
from faceshards.storage.location import Location


@click.command(cls=Command)
@dataset_argument
@json_option
def upgrade(path: Location, as_json: bool) -> None:
    """Bring a dataset of an older schema to this release's.

    Its tables are compared first, its shards left alone.

    \b
    Example:
      faceshards manifest upgrade data/shards/older
    """
    from faceshards.dataset.upgrade import upgrade as bring

    changed = bring(path)
    found = Manifest(path)
    facts = {"path": str(found.path), "schema_version": SCHEMA_VERSION, "upgraded": changed}
    said = "of schema {0} now, with the same tables, shards and fingerprint" if changed else "of schema {0} already"
    show({**facts, "fingerprint": found.fingerprint}, [f"{found.path}: {said.format(SCHEMA_VERSION)}"], as_json)

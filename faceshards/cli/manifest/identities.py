"""The command ``faceshards manifest identities``."""

from __future__ import annotations

from pathlib import Path

import click
import pyarrow.dataset as ds

from faceshards.cli.options import Command, dataset_argument, json_option
from faceshards.cli.rows import limit_option, print_table
from faceshards.dataset.manifest import Manifest
from faceshards.dataset.schema import DROP_REASONS, SCHEMAS


@click.command(cls=Command)
@dataset_argument
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
    print_table(found, "identities", limit, as_json, where, columns)

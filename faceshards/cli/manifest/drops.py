"""The command ``faceshards manifest drops``."""

from __future__ import annotations

from pathlib import Path

import click
import pyarrow.dataset as ds

from faceshards.cli.options import Command, dataset_argument, json_option
from faceshards.cli.rows import limit_option, print_table
from faceshards.dataset.manifest import Manifest
from faceshards.dataset.schema import DROP_REASONS


@click.command(cls=Command)
@dataset_argument
@click.option("--reason", type=click.Choice(DROP_REASONS), help="Only this reason.")
@limit_option
@json_option
def drops(path: Path, reason: str | None, limit: int | None, as_json: bool) -> None:
    """Every record that was dropped, with its reason and what stands for it."""
    where = ds.field("reason") == reason if reason else None
    print_table(Manifest(path), "dropped", limit, as_json, where)

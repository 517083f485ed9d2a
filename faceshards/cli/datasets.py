"""The command ``faceshards datasets``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from faceshards.cli.command import Command
from faceshards.cli.options import data_root_option, json_option
from faceshards.cli.terminal import echo
from pipelines.sources.catalog import known_datasets


@click.command(cls=Command)
@data_root_option
@json_option
def datasets(data_root: Path, as_json: bool) -> None:
    """List the sets known by name, and whether they are present.

    \b
    Examples:
      faceshards datasets
      faceshards datasets --data-root /mnt/faces --json
    """
    known = known_datasets()
    rows = [
        {**vars(entry), "path": str(data_root / name), "present": (data_root / name).exists()}
        for name, entry in known.items()
    ]
    if as_json:
        echo(json.dumps(rows, indent=2))
        return
    echo(f"{'name':<12} {'identities':>10} {'images':>11}  {'present':<8} terms")
    for row in rows:
        numbers = [f"{row[key]:,}" if row[key] else "any" for key in ("identities", "images")]
        present = "yes" if row["present"] else "no"
        echo(f"{row['name']:<12} {numbers[0]:>10} {numbers[1]:>11}  {present:<8} {row['terms']}")

"""The command ``faceshards manifest verify``."""

from __future__ import annotations

from pathlib import Path

import click

from faceshards.cli.options import Command, dataset_argument
from faceshards.dataset.manifest import Manifest


@click.command(cls=Command)
@dataset_argument
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

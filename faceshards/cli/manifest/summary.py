"""The command ``faceshards manifest summary``; a build ends with what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import click

from faceshards.cli.options import Command, dataset_argument, json_option
from faceshards.dataset.manifest import Manifest


@click.command(cls=Command)
@dataset_argument
@json_option
def summary(path: Path, as_json: bool) -> None:
    """What was scanned, kept and dropped, and why."""
    print_summary(Manifest(path), as_json)


def print_summary(found: Manifest, as_json: bool) -> None:
    """Prints what was scanned, kept and dropped."""
    totals = found.totals
    sets = found.info.get("dedupe", {}).get("test_overlap", {})  # of a build with --exclude
    if as_json:
        about = {"path": str(found.path), "name": found.info["name"], "fingerprint": found.fingerprint}
        click.echo(
            json.dumps(
                {**about, **totals, **({"kept_out": sets} if sets else {}), "warnings": found.info["warnings"]},
                indent=2,
            )
        )
        return
    click.echo(f"{found.info['name']} at {found.path}")
    click.echo(f"  scanned     {totals['scanned']:>12,}")
    click.echo(f"  kept        {totals['kept']:>12,}  of {totals['identities']:,} identities")
    for reason, count in totals["dropped"].items():
        click.echo(f"  dropped     {count:>12,}  {reason}")
    for name, count in sets.items():
        click.echo(f"  kept out    {count:>12,}  of {name}")
    click.echo(f"  conflicts   {totals['conflicts']:>12,}  between {totals['identity_links']:,} pairs of identities")
    click.echo(f"  shards      {totals['shards']:>12,}  {totals['image_bytes'] / 1e6:,.1f} MB of images")
    click.echo(f"  fingerprint {found.fingerprint}")

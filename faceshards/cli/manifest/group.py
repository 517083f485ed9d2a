"""The group ``faceshards manifest``: where each of its commands is."""

from __future__ import annotations

import click

from faceshards.cli.options import LazyCommands

COMMANDS = {
    "conflicts": "faceshards.cli.manifest.conflicts:conflicts",
    "diff": "faceshards.cli.manifest.diff:diff",
    "drops": "faceshards.cli.manifest.drops:drops",
    "identities": "faceshards.cli.manifest.identities:identities",
    "image": "faceshards.cli.manifest.image:image",
    "links": "faceshards.cli.manifest.links:links",
    "overlap": "faceshards.cli.manifest.overlap:overlap",
    "query": "faceshards.cli.manifest.query:query",
    "report": "faceshards.cli.manifest.report:report",
    "shards": "faceshards.cli.manifest.shards:shards",
    "summary": "faceshards.cli.manifest.summary:summary",
    "upgrade": "faceshards.cli.manifest.upgrade:upgrade",
    "verify": "faceshards.cli.manifest.verify:verify",
}


@click.group(cls=LazyCommands, places=COMMANDS)
def manifest() -> None:
    """Look into a published dataset.

    \b
    Examples:
      faceshards manifest summary data/shards/synthetic
      faceshards manifest drops data/shards/synthetic --reason near_duplicate
      faceshards manifest image data/shards/synthetic 42 --out 42.jpg
      faceshards manifest overlap data/shards/synthetic --set lfw.bin
      faceshards manifest query data/shards/synthetic "SELECT count(DISTINCT label) FROM images"
      faceshards manifest report data/shards/synthetic --out synthetic.html
      faceshards manifest diff data/shards/before data/shards/after
      faceshards manifest verify data/shards/synthetic
      faceshards manifest upgrade data/shards/older
    """

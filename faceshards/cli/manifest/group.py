"""The group ``faceshards manifest``: where each of its commands is."""

from __future__ import annotations

import click

from faceshards.cli.groups import LazyCommands

COMMANDS = {
    "conflicts": (
        "faceshards.cli.manifest.conflicts:conflicts",
        "Photographs under two identities: perhaps wrong labels.",
    ),
    "diff": ("faceshards.cli.manifest.diff:diff", "What differs from dataset A to dataset B."),
    "drops": ("faceshards.cli.manifest.drops:drops", "Every record that was dropped, why, and what stands for it."),
    "identities": (
        "faceshards.cli.manifest.identities:identities",
        "Images scanned, kept and dropped of each identity.",
    ),
    "image": ("faceshards.cli.manifest.image:image", "One photograph: where it came from, and what became of it."),
    "links": ("faceshards.cli.manifest.links:links", "Pairs of identities that share photographs."),
    "overlap": ("faceshards.cli.manifest.overlap:overlap", "Images that are pictures of verification sets."),
    "query": ("faceshards.cli.manifest.query:query", "Ask the manifest's tables in SQL (DuckDB's)."),
    "report": ("faceshards.cli.manifest.report:report", "A page that shows the dataset PATH in figures and pictures."),
    "shards": ("faceshards.cli.manifest.shards:shards", "The files of the images: rows, identities, bytes, checksums."),
    "summary": ("faceshards.cli.manifest.summary:summary", "What was scanned, kept and dropped, and why."),
    "upgrade": ("faceshards.cli.manifest.upgrade:upgrade", "Bring a dataset of an older schema to this release's."),
    "verify": ("faceshards.cli.manifest.verify:verify", "Recompute every checksum, and list each mismatch."),
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

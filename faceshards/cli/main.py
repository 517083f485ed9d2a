"""The command faceshards: its name, its commands, and what holds for all of them.

Results go to stdout, everything else to stderr; exit codes are 0 for done, 1 for failed, 2 for wrong usage.
"""

from __future__ import annotations

import logging
import sys

import click

from faceshards import __version__
from faceshards.cli.options import LazyCommands
from faceshards.cli.terminal import LogFormatter

# Where each command is; imported when it is called for. Packages that take seconds, or that an extra brings, are
# imported inside the commands, so that `faceshards --help` needs none of them.
COMMANDS = {
    "build": "faceshards.cli.build:build",
    "compare": "faceshards.cli.compare:compare",
    "datasets": "faceshards.cli.datasets:datasets",
    "embed": "faceshards.cli.embed:embed",
    "eval": "faceshards.cli.evaluate:evaluate",
    "export": "faceshards.cli.export:export",
    "export-data": "faceshards.cli.export_data:export_data",
    "ijb": "faceshards.cli.ijb:ijb",
    "make-bin": "faceshards.cli.make_bin:make_bin",
    "manifest": "faceshards.cli.manifest.group:manifest",
    "settings": "faceshards.cli.settings:settings",
    "split": "faceshards.cli.split:split",
    "train": "faceshards.cli.train:train",
}


@click.group(
    cls=LazyCommands, places=COMMANDS, family="commands", context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, prog_name="faceshards")
def main() -> None:
    """Face-recognition sets as deduplicated, identity-balanced MindRecord shards, and models trained on them.

    \b
    Examples:
      faceshards datasets
      faceshards build synthetic --out data/shards/synthetic
      faceshards build --source /data/faces_emore --out data/shards/emore --set max_images=200
      faceshards manifest summary data/shards/synthetic
      faceshards train synthetic --data data/shards/synthetic --out data/runs/synthetic
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter("%(levelname)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)

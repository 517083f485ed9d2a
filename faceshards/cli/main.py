"""The command faceshards: its name, its commands, and what holds for all of them.

Results go to stdout, everything else to stderr; exit codes are 0 for done, 1 for failed, 2 for wrong usage, 130 for
interrupted.
"""

from __future__ import annotations

import logging
import sys

import click

from faceshards import __version__
from faceshards.cli.groups import LazyCommands
from faceshards.cli.terminal import LogFormatter

# Where each command is, and the first sentence of its help, so that `faceshards --help` imports none; one is imported
# when it is called for. Packages that take seconds, or that an extra brings, are imported inside the commands.
COMMANDS = {
    "build": ("faceshards.cli.build:build", "Build the known set NAME, or any set by --source, into --out."),
    "compare": ("faceshards.cli.compare:compare", "Compare two aligned faces (112 x 112): cosine and verdict."),
    "datasets": ("faceshards.cli.datasets:datasets", "List the sets known by name, and whether they are present."),
    "embed": ("faceshards.cli.embed:embed", "Write the embeddings of all images of SOURCE into OUT."),
    "eval": ("faceshards.cli.evaluate:evaluate", "Measure a model on verification sets: accuracy, TAR at FAR."),
    "export": ("faceshards.cli.export:export", "Write MODEL as OUT: .onnx, .mindir or .safetensors."),
    "export-data": (
        "faceshards.cli.export_data:export_data",
        "Write the dataset PATH as files of another format into OUT.",
    ),
    "ijb": ("faceshards.cli.ijb:ijb", "Measure a model on IJB-B or IJB-C by pairs of templates."),
    "make-bin": ("faceshards.cli.make_bin:make_bin", "Make a verification set OUT (.bin) of ROOT's images by PAIRS."),
    "manifest": ("faceshards.cli.manifest.group:manifest", "Look into a published dataset."),
    "settings": ("faceshards.cli.settings:settings", "List the settings that --set and --config take."),
    "split": ("faceshards.cli.split:split", "Hold identities of the dataset PATH out, to measure on."),
    "train": ("faceshards.cli.train:train", "Train by RECIPE on the dataset at --data."),
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

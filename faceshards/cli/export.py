"""The command ``faceshards export``."""

from __future__ import annotations

from pathlib import Path

import click

from faceshards.cli.command import ModelCommand
from faceshards.cli.options import backbone_option, json_option, show
from faceshards.cli.paths import MODEL, OUT_FILE
from faceshards.storage.location import Location


@click.command(cls=ModelCommand)
@click.argument("model", type=MODEL)
@click.argument("out", type=OUT_FILE)
@backbone_option
@click.option("--licence", default="", help="Of the model; without it the card gives the terms of its data.")
@json_option
def export(model: Path, out: Location, backbone: str, licence: str, as_json: bool) -> None:
    """Write MODEL as OUT: .onnx, .mindir or .safetensors.

    What was written is compared with the model, and gets a card beside it. A .safetensors has the names of PyTorch. OUT
    may be in a bucket.

    \b
    Examples:
      faceshards export data/runs/synthetic mbf.onnx
      faceshards export backbone.pth r50.mindir --backbone r50
    """
    from evaluation.models.export import export as run

    card = run(model, out, backbone, licence)
    show(card, [f"{out}: {card['parameters']:,} parameters, {out.stat().st_size:,} bytes"], as_json)

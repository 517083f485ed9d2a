"""The command ``faceshards embed``."""

from __future__ import annotations

from pathlib import Path

import click

from faceshards.cli.options import (
    PATH,
    Command,
    backbone_option,
    channels_option,
    colours,
    json_option,
    quiet_option,
    required_model_option,
    show,
)


@click.command(cls=Command, go_on="; the same command goes on where it stopped")
@click.argument("source", type=PATH)
@click.argument("out", type=PATH)
@required_model_option
@backbone_option
@channels_option
@quiet_option
@json_option
def embed(source: Path, out: Path, model: Path, backbone: str, channels: str, quiet: bool, as_json: bool) -> None:
    """Write the embeddings of all images of SOURCE (a dataset, .bin, .rec or image folder) into the folder OUT.

    Interrupted, the same command goes on where it stopped.

    \b
    Examples:
      faceshards embed data/shards/synthetic data/embeddings --model data/runs/synthetic
      faceshards embed lfw.bin lfw_embeddings --model r50.onnx
      faceshards embed photographs/ out --model backbone.pth --backbone r100
    """
    from evaluation.embed_source import embed as run
    from evaluation.models.load import load_model  # MindSpore: only for this command

    loaded = load_model(model, backbone, channels)
    counts = run(source, out, loaded, quiet)
    line = f"{out}: {counts['embedded']:,} embeddings of {counts['images']:,} images"
    show(counts, [line, *colours(loaded)], as_json)
    if counts["left_out"] and not as_json:
        click.echo(f"{counts['left_out']:,} images have none: column cause says why", err=True)

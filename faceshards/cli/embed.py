"""The command ``faceshards embed``."""

from __future__ import annotations

from pathlib import Path

import click

from faceshards.cli.command import ModelCommand, goes_on
from faceshards.cli.options import (
    LOCATION,
    backbone_option,
    channels_option,
    colours,
    input_range_option,
    json_option,
    quiet_option,
    required_model_option,
    show,
)
from faceshards.cli.paths import OUT_FOLDER
from faceshards.storage.location import Location


@click.command(cls=ModelCommand, go_on=goes_on)
@click.argument("source", type=LOCATION, nargs=-1, required=True)
@click.argument("out", type=OUT_FOLDER)
@required_model_option
@backbone_option
@channels_option
@input_range_option
@quiet_option
@json_option
def embed(
    source: tuple[Location, ...],
    out: Location,
    model: Path,
    backbone: str,
    channels: str,
    input_range: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Write the embeddings of all images of SOURCE into OUT.

    OUT is a folder, or a prefix in a bucket. SOURCE is a dataset, a .bin, a .rec, all of which may be there too, or a
    folder with a sub-folder per identity; or, without identities, a flat folder of pictures, pictures, or a list of
    them (.txt: a path on each line; .lst: index, label and path).

    Interrupted, the same command goes on where it stopped.

    \b
    Examples:
      faceshards embed data/shards/synthetic data/embeddings --model data/runs/synthetic
      faceshards embed lfw.bin lfw_embeddings --model r50.onnx
      faceshards embed photographs/ out --model backbone.pth --backbone r100
      faceshards embed ann.jpg bob.jpg out --model r50.onnx
      faceshards embed s3://faces/sets/mine s3://faces/embeddings/mine --model s3://faces/models/r50.onnx
    """
    from evaluation.embed_source import embed as run
    from evaluation.models.load import load_model  # MindSpore: only for this command

    loaded = load_model(model, backbone, channels, input_range)
    counts = run(source, out, loaded, quiet)
    line = f"{out}: {counts['embedded']:,} embeddings of {counts['images']:,} images"
    show(counts, [line, *colours(loaded)], as_json)

"""The commands ``faceshards embed``, ``export`` and ``compare``: what one does with a trained model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import click
import numpy as np

from evaluation.embeddings import Embedder
from pipelines.errors import FaceshardsError

_PATH = click.Path(path_type=Path)
_BACKBONE = click.option("--backbone", default="", help="Of a file of weights: r50, mbf, vit_b, ...")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@click.argument("source", type=_PATH)
@click.argument("out", type=_PATH)
@click.option("--model", type=_PATH, required=True, help="A checkpoint, a run's folder, weights, .onnx or .mindir.")
@_BACKBONE
@click.option("--quiet", is_flag=True, help="No progress bar.")
@_JSON
def embed(source: Path, out: Path, model: Path, backbone: str, quiet: bool, as_json: bool) -> None:
    """Write the embeddings of all images of SOURCE (a dataset, .bin, .rec or image folder) into the folder OUT.

    Interrupted, the same command goes on where it stopped.

    \b
    Examples:
      faceshards embed data/shards/synthetic data/embeddings --model data/runs/synthetic
      faceshards embed lfw.bin lfw_embeddings --model r50.onnx
      faceshards embed photographs/ out --model backbone.pth --backbone r100
    """
    from evaluation.embed import embed as run
    from evaluation.models import load_model  # MindSpore: only for this command

    counts = run(source, out, load_model(model, backbone), quiet)
    if as_json:
        click.echo(json.dumps(counts))
        return
    click.echo(f"{out}: {counts['embedded']:,} embeddings of {counts['images']:,} images")
    if counts["left_out"]:
        click.echo(f"{counts['left_out']:,} images have none: column cause says why", err=True)


@click.command()
@click.argument("model", type=_PATH)
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@_BACKBONE
@click.option("--licence", default="", help="Of the model; without it the card gives the terms of its data.")
@_JSON
def export(model: Path, out: Path, backbone: str, licence: str, as_json: bool) -> None:
    """Write MODEL as OUT: .onnx, .mindir or .safetensors (names of PyTorch), compared with the model, with a card.

    \b
    Examples:
      faceshards export data/runs/synthetic mbf.onnx
      faceshards export backbone.pth r50.mindir --backbone r50
    """
    from evaluation.export import export as run

    card = run(model, out, backbone, licence)
    click.echo(
        json.dumps(card) if as_json else f"{out}: {card['parameters']:,} parameters, {out.stat().st_size:,} bytes"
    )


@click.command()
@click.argument("first", type=_PATH)
@click.argument("second", type=_PATH)
@click.option("--model", type=_PATH, required=True, help="A checkpoint, a run's folder, weights, .onnx or .mindir.")
@_BACKBONE
@click.option("--threshold", type=click.FloatRange(-1, 1), help="Cosine above which two faces are one person's.")
@_JSON
def compare(first: Path, second: Path, model: Path, backbone: str, threshold: float | None, as_json: bool) -> None:
    """Compare two aligned faces (112 x 112): cosine, threshold, verdict.

    Without --threshold it is the mean of those that the model had on its verification sets.

    \b
    Example:
      faceshards compare ann_1.jpg ann_2.jpg --model data/runs/synthetic
    """
    from evaluation.models import load_model

    if threshold is not None and math.isnan(threshold):
        raise click.BadParameter("not a number", param_hint="--threshold")
    loaded = load_model(model, backbone)
    known = loaded.card.get("thresholds") or {}
    if threshold is None and not known:
        raise FaceshardsError(f"{model}: no verification set has given it a threshold; choose one with --threshold")
    limit = float(np.mean(list(known.values()))) if threshold is None else threshold
    try:
        images = [path.read_bytes() for path in (first, second)]
    except OSError as error:
        raise FaceshardsError(f"{error.filename}: {error.strerror}") from None
    views, problems = Embedder(loaded.forward, batch=2).views(images)
    for place, cause in problems.items():
        raise FaceshardsError(f"{(first, second)[place]}: {cause}")
    a, b = np.add(views[0], views[1], dtype=np.float64)  # (D,) each
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    if not lengths:
        raise FaceshardsError(f"{model}: gives an embedding of length 0")
    cosine = float(a @ b) / lengths
    result = {"cosine": cosine, "threshold": limit, "same": cosine > limit}
    if as_json:
        click.echo(json.dumps(result))
        return
    click.echo(f"cosine {cosine:.4f}, threshold {limit:.4f}: {'the same person' if result['same'] else 'two persons'}")

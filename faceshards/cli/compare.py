"""The command ``faceshards compare``."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import click

from faceshards.cli.command import ModelCommand
from faceshards.cli.options import (
    FETCHED,
    backbone_option,
    channels_option,
    input_range_option,
    json_option,
    required_model_option,
    show,
)


@click.command(cls=ModelCommand)
@click.argument("first", type=FETCHED)
@click.argument("second", type=FETCHED)
@required_model_option
@backbone_option
@channels_option
@input_range_option
@click.option("--threshold", type=click.FloatRange(-1, 1), help="Cosine above which two faces are one person's.")
@json_option
def compare(
    first: Path,
    second: Path,
    model: Path,
    backbone: str,
    channels: str,
    input_range: str,
    threshold: float | None,
    as_json: bool,
) -> None:
    """Compare two aligned faces (112 x 112): cosine and verdict.

    Without --threshold the threshold is the mean of those that the model had on its verification sets.

    \b
    Example:
      faceshards compare ann_1.jpg ann_2.jpg --model data/runs/synthetic
    """
    if threshold is not None and math.isnan(threshold):
        raise click.BadParameter("not a number", param_hint="--threshold")
    from evaluation.measure import compare as measured
    from evaluation.models.load import load_model
    from evaluation.origin import MARK, NOTE

    loaded = load_model(model, backbone, channels, input_range)
    result, origin = measured(first, second, loaded, threshold), loaded.origin()
    verdict = "the same person" if result.same else "two persons"
    lines = [f"cosine {result.cosine:.4f}, threshold {result.threshold:.4f}: {verdict}"]
    if result.sets:
        chose = [name in origin.chosen_on for name in result.sets]
        names = [name + MARK * mark for name, mark in zip(result.sets, chose, strict=True)]
        lines += [f"threshold: mean of the model's on {', '.join(names)}", *([NOTE] if any(chose) else [])]
    show({**dataclasses.asdict(result), **origin.facts()}, [*lines, *origin.lines()], as_json)

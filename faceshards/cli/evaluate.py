"""The command ``faceshards eval``."""

from __future__ import annotations

from pathlib import Path

import click

from faceshards.cli.command import ModelCommand
from faceshards.cli.options import (
    FETCHED,
    backbone_option,
    channels_option,
    embeddings_option,
    far_option,
    input_range_option,
    json_option,
    loaded,
    model_option,
    one_of_model_and_embeddings,
    quiet_option,
    show,
    trained_on_option,
)
from faceshards.cli.paths import OUT_FOLDER
from faceshards.cli.terminal import echo
from faceshards.storage.location import Location


@click.command("eval", cls=ModelCommand)
@model_option
@backbone_option
@channels_option
@input_range_option
@embeddings_option
@click.option(
    "--set", "sets", type=FETCHED, multiple=True, required=True, help="A verification set (.bin); repeatable."
)
@far_option
@click.option("--out", type=OUT_FOLDER, help="Folder, or prefix in a bucket, for report.json and report.html.")
@trained_on_option
@quiet_option
@json_option
def evaluate(
    model: Path | None,
    backbone: str,
    channels: str,
    input_range: str,
    embeddings: Path | None,
    sets: tuple[Path, ...],
    fars: tuple[float, ...],
    out: Location | None,
    trained_on: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure a model on verification sets: accuracy, TAR at FAR.

    By 10 folds, as the field does; with VAL, equal error rate and area under the curve, and intervals of 95 %.

    \b
    Examples:
      faceshards eval --model data/runs/synthetic --set data/raw/synthetic/verification.bin --out data/eval
      faceshards eval --embeddings lfw.npy --set lfw.bin
      faceshards eval --model r50.onnx --set lfw.bin --far 1e-2 --far 1e-5
      faceshards eval --model s3://faces/r50.onnx --set s3://faces/lfw.bin --out s3://faces/eval/r50
    """
    one_of_model_and_embeddings(model, embeddings, channels, input_range)
    if embeddings is not None and len(sets) != 1:
        raise click.UsageError("--embeddings belongs to one --set")
    from evaluation.measure import measure_embeddings, measure_model, origin_of_embeddings, read_sets
    from evaluation.report.table import table
    from evaluation.report.write import content, write

    found = [source for source, _ in read_sets(sets, decoded=model is not None)]
    if model is not None:
        source, trained_on = loaded(model, backbone, trained_on, channels, input_range)
        origin = source.origin(trained_on)
        entries = measure_model(source, found, quiet, fars)
    else:
        assert embeddings is not None
        entries = [measure_embeddings(embeddings, found[0], fars)]
        origin = origin_of_embeddings(embeddings, backbone, trained_on)
    if out is not None:
        write(out, entries, origin)
    for measured in entries:
        for line in (*measured.result.warnings, *measured.problems):
            echo(f"{measured.name}: {line}", err=True)
    report = [] if out is None else [f"report {out / 'report.html'}"]
    show(content(entries, origin), [*table(entries, origin), *report], as_json)

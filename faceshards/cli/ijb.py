"""The command ``faceshards ijb``: templates of IJB-B and IJB-C."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from faceshards.cli.command import ModelCommand, goes_on
from faceshards.cli.options import (
    PATH,
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


def _go_on(params: Mapping[str, Any]) -> str:
    """Returns how to go on when interrupted: without --out nothing is kept."""
    return goes_on(params) if params.get("out") else ""


@click.command(cls=ModelCommand, go_on=_go_on)
@click.argument("root", type=PATH)
@model_option
@backbone_option
@channels_option
@input_range_option
@embeddings_option
@far_option
@trained_on_option
@click.option(
    "--out",
    type=OUT_FOLDER,
    help="Folder, or prefix in a bucket, for ijb.json, and for embeddings: kept, no image is embedded twice.",
)
@quiet_option
@json_option
def ijb(
    root: Path,
    model: Path | None,
    backbone: str,
    channels: str,
    input_range: str,
    embeddings: Path | None,
    fars: tuple[float, ...],
    trained_on: str,
    out: Location | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure a model on IJB-B or IJB-C by pairs of templates.

    ROOT, a folder on a disk, holds meta/ and loose_crop/.

    \b
    Examples:
      faceshards ijb /data/IJBC --model r100.onnx --out data/eval/ijbc
      faceshards ijb /data/IJBC --embeddings ijbc.npy
    """
    one_of_model_and_embeddings(model, embeddings, channels, input_range)
    from evaluation.ijb.embeddings import embed_protocol
    from evaluation.ijb.measure import FARS, measure
    from evaluation.ijb.protocol import read_protocol
    from evaluation.ijb.report import facts, left_out, table, write
    from evaluation.measure import origin_of_embeddings, read_array
    from evaluation.report.published import published_ijbc
    from faceshards.locks import exclusive
    from faceshards.progress import logging_at

    protocol = read_protocol(root)
    with exclusive(out) if out is not None else nullcontext(), logging_at("evaluation.ijb", logging.INFO):
        problems: dict[int, str] = {}
        if model is not None:
            source, trained_on = loaded(model, backbone, trained_on, channels, input_range)
            origin, kept = source.origin(trained_on), None if out is None else out / "embeddings"
            if kept is None:
                echo(f"{protocol.name}: without --out the embeddings are not kept", err=True)
            found = embed_protocol(protocol, source.forward, kept, source.identity, quiet)
            rows, problems = found.rows, found.problems
        else:
            assert embeddings is not None
            rows = read_array(embeddings, len(protocol.names), protocol.name)
            origin = origin_of_embeddings(embeddings, backbone, trained_on)
        result = measure(protocol, rows, tuple(sorted({*fars})) or FARS)
        known = published_ijbc(origin.backbone, origin.trained_on) if protocol.name == "ijbc" else None
        content = facts(protocol.name, result, known, origin)
        if out is not None:
            write(out, content, list(problems.values()))
    for line in left_out(result):
        first = f"; the first image: {next(iter(problems.values()))}" if problems else ""
        echo(f"{protocol.name}: {line}{first}", err=True)
    show(content, table(result, known, origin), as_json)

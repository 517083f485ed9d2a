"""The command ``faceshards ijb``: templates of IJB-B and IJB-C."""

from __future__ import annotations

from pathlib import Path

import click

from faceshards.cli.options import (
    PATH,
    Command,
    backbone_option,
    channels_option,
    colours,
    embeddings_option,
    json_option,
    loaded,
    model_option,
    one_of_model_and_embeddings,
    quiet_option,
    show,
    trained_on_option,
)


@click.command(cls=Command)
@click.argument("root", type=PATH)
@model_option
@backbone_option
@channels_option
@embeddings_option
@trained_on_option
@click.option("--out", type=PATH, help="Folder for ijb.json and the list of images left out.")
@quiet_option
@json_option
def ijb(
    root: Path,
    model: Path | None,
    backbone: str,
    channels: str,
    embeddings: Path | None,
    trained_on: str,
    out: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure a model on IJB-B or IJB-C at ROOT (meta/ and loose_crop/): TAR at FAR of pairs of templates.

    \b
    Examples:
      faceshards ijb /data/IJBC --model r100.onnx --out data/eval/ijbc
      faceshards ijb /data/IJBC --embeddings ijbc.npy
    """
    one_of_model_and_embeddings(model, embeddings, channels)
    from tqdm import tqdm

    from evaluation.ijb.measure import embed_protocol, measure
    from evaluation.ijb.protocol import read_protocol
    from evaluation.ijb.report import facts, table, write
    from evaluation.measure import read_array
    from evaluation.report.published import published_ijbc

    protocol = read_protocol(root)
    problems: dict[int, str] = {}
    if model is not None:
        source, trained_on = loaded(model, backbone, trained_on, channels)
        backbone = source.backbone
        places = tqdm(range(len(protocol.names)), protocol.name, unit=" images", disable=quiet, mininterval=0.5)
        rows, problems = embed_protocol(protocol, source.forward, places)
    else:
        assert embeddings is not None
        rows = read_array(embeddings, len(protocol.names), protocol.name)
    result = measure(protocol, rows)
    known = published_ijbc(backbone, trained_on) if protocol.name == "ijbc" else None
    found = {**facts(protocol.name, result, known), **({"channels": channels} if model else {})}
    if out is not None:
        write(out, found, list(problems.values()))
    for cause in problems.values():
        click.echo(f"left out: {cause}", err=True)
    show(found, [*table(result, known), *(colours(source) if model else [])], as_json)

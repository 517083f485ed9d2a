"""The command ``faceshards ijb``: templates of IJB-B and IJB-C."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from faceshards.cli.options import (
    PATH,
    Command,
    backbone_option,
    embeddings_option,
    json_option,
    model_option,
    one_of_model_and_embeddings,
    quiet_option,
    trained_on_option,
)
from faceshards.errors import FaceshardsError
from faceshards.files import write_json

if TYPE_CHECKING:
    from evaluation.ijb.measure import IjbResult


@click.command(cls=Command)
@click.argument("root", type=PATH)
@model_option
@backbone_option
@embeddings_option
@trained_on_option
@click.option("--out", type=PATH, help="Folder for ijb.json and the list of images left out.")
@quiet_option
@json_option
def ijb(
    root: Path,
    model: Path | None,
    backbone: str,
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
    one_of_model_and_embeddings(model, embeddings)
    from tqdm import tqdm

    from evaluation.ijb.measure import embed_protocol, measure
    from evaluation.ijb.protocol import read_protocol
    from evaluation.measure import read_array
    from evaluation.report.published import published_ijbc

    protocol = read_protocol(root)
    problems: dict[int, str] = {}
    if model is not None:
        from evaluation.models.load import load_model  # MindSpore: only for models

        source = load_model(model, backbone)
        backbone, trained_on = source.backbone, trained_on or str(source.card.get("dataset", ""))
        places = tqdm(range(len(protocol.names)), protocol.name, unit=" images", disable=quiet, mininterval=0.5)
        rows, problems = embed_protocol(protocol, source.forward, places)
    else:
        assert embeddings is not None
        rows = read_array(embeddings, len(protocol.names), protocol.name)
    result = measure(protocol, rows)
    known = published_ijbc(backbone, trained_on) if protocol.name == "ijbc" else None
    facts = {"benchmark": protocol.name, **dataclasses.asdict(result), "published_tar_1e-4": known}
    if out is not None:
        _write(out, facts, problems)
    for cause in problems.values():
        click.echo(f"left out: {cause}", err=True)
    if as_json:
        click.echo(json.dumps(facts))
        return
    for line in _table(result, known):
        click.echo(line)


def _table(result: IjbResult, known: float | None) -> list[str]:
    """Returns what is printed."""
    lines = [f"{'FAR':>6}  {'TAR %':>6}  {'95 %':>12}" + ("  arcface_torch" if known else "")]
    for far, tar in result.tar.items():
        interval = result.intervals[far]
        cells = ["n/m", ""] if tar is None or interval is None else [
            f"{100 * tar:.2f}", f"{100 * interval[0]:.2f}-{100 * interval[1]:.2f}"]  # fmt: skip
        beside = f"  {known:.2f} {100 * tar - known:+.2f}" if known and tar is not None and far == 1e-4 else ""
        lines.append(f"{far:>6g}  {cells[0]:>6}  {cells[1]:>12}{beside}")
    lines.append(f"{result.pairs:,} pairs, {result.impostors:,} of them two persons; AUC {100 * result.auc:.2f} %")
    if result.dropped_images:
        lines.append(f"left out: {result.dropped_images:,} images, and {result.dropped_pairs:,} pairs without any")
    return lines


def _write(out: Path, facts: dict[str, object], problems: dict[int, str]) -> None:
    """Writes ijb.json, each file whole or not at all."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json({**facts, "left_out": list(problems.values())}, out / "ijb.json")
    except OSError as error:
        raise FaceshardsError(f"{out}: the result cannot be written: {error.strerror}") from None

"""The commands ``faceshards eval`` and ``faceshards make-bin``."""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np

from evaluation.report import Entry, table, write
from evaluation.sets import VerificationSet, make_set, read_bin, write_bin
from evaluation.verification import distances, verify
from pipelines.errors import FaceshardsError

_PATH = click.Path(path_type=Path)
FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


@click.command("eval")
@click.option("--model", type=_PATH, help="A checkpoint, or a run's folder (its best checkpoint).")
@click.option("--embeddings", type=_PATH, help="In place of --model: an .npy of (images, D), for one --set.")
@click.option("--set", "sets", type=_PATH, multiple=True, required=True, help="A verification set (.bin); repeatable.")
@click.option("--out", type=_PATH, help="Folder for report.json and report.html.")
@click.option("--trained-on", default="", help="Dataset of the model, for published figures: casia or ms1mv2.")
def evaluate(
    model: Path | None, embeddings: Path | None, sets: tuple[Path, ...], out: Path | None, trained_on: str
) -> None:
    """Measure a model on verification sets: 10-fold accuracy, VAL, TAR@FAR, EER, AUC.

    \b
    Examples:
      faceshards eval --model data/runs/synthetic --set data/raw/synthetic/verification.bin --out data/eval
      faceshards eval --embeddings lfw.npy --set lfw.bin
    """
    if (model is None) == (embeddings is None):
        raise click.UsageError("one of --model and --embeddings")
    if embeddings is not None and len(sets) != 1:
        raise click.UsageError("--embeddings belongs to one --set")
    loaded = [read_bin(path) for path in sets]
    backbone = ""
    if embeddings is not None:
        entries = [_entry(loaded[0], _read_embeddings(embeddings, loaded[0]), None, np.arange(len(loaded[0].same)), ())]
    else:
        from evaluation.embeddings import Embedder, usable  # MindSpore: only for models
        from evaluation.models import load_backbone

        assert model is not None
        cell, backbone = load_backbone(model)
        embedder = Embedder(cell)
        entries = []
        for entry in loaded:
            pairs, problems = usable(entry.images)
            images = [entry.images[i] for pair in pairs for i in (2 * pair, 2 * pair + 1)]
            views = embedder.views(images)
            entries.append(_entry(entry, views[0] + views[1], views[0], pairs, problems))
    for line in table(entries, backbone, trained_on):
        click.echo(line)
    for measured in entries:
        for line in (*measured.result.warnings, *measured.problems):
            click.echo(f"{measured.name}: {line}", err=True)
    if out is not None:
        write(out, entries, backbone, trained_on)
        click.echo(f"report {out / 'report.html'}")


def _entry(
    entry: VerificationSet, both: np.ndarray, plain: np.ndarray | None, pairs: np.ndarray, problems: tuple[str, ...]
) -> Entry:
    """Returns what the embeddings of some pairs of a set give."""
    same = entry.same[pairs]
    try:
        result = verify(both, same, fars=FARS)
        accuracy = None if plain is None else verify(plain, same, bootstrap=0).accuracy
        dist, _ = distances(both)
    except FaceshardsError as error:
        raise FaceshardsError(f"{entry.name}: {error}") from None
    pictures = [entry.images[i] for pair in pairs for i in (2 * pair, 2 * pair + 1)]
    return Entry(entry.name, result, accuracy, dist, same, pictures, problems)


def _read_embeddings(path: Path, entry: VerificationSet) -> np.ndarray:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise FaceshardsError(f"{path}: no array in NumPy's format: {error}") from None
    if found.ndim != 2 or len(found) != len(entry.images) or found.dtype.kind != "f":
        raise FaceshardsError(
            f"{path}: {found.dtype} {list(found.shape)}; {entry.name} needs floats [{len(entry.images)}, D]"
        )
    return np.asarray(found, np.float32 if found.dtype.itemsize < 4 else found.dtype)


@click.command("make-bin")
@click.argument("root", type=_PATH)
@click.argument("pairs", type=_PATH)
@click.argument("out", type=_PATH)
@click.option("--json", "as_json", is_flag=True, help="Print counts as JSON.")
def make_bin(root: Path, pairs: Path, out: Path, as_json: bool) -> None:
    """Make a verification set OUT (.bin) of images below ROOT and a list of PAIRS (LFW's pairs.txt, or path path 0|1).

    \b
    Example:
      faceshards make-bin lfw_112x112 pairs.txt lfw.bin
    """
    found = make_set(root, pairs)
    write_bin(out, found.images, found.same)
    counts = {"pairs": len(found.same), "same": int(found.same.sum()), "bytes": out.stat().st_size}
    click.echo(json.dumps(counts) if as_json else f"{out}: {counts['pairs']:,} pairs, {counts['same']:,} of one person")

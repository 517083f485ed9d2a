"""The commands ``faceshards eval`` and ``faceshards make-bin``."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np
from tqdm import tqdm

from evaluation.embeddings import Embedder, left_out, usable_pairs
from evaluation.pair_lists import make_set
from evaluation.report import Entry, table, write
from evaluation.sets import VerificationSet, read_bin, write_bin
from evaluation.verification import check_pairs, distances, mean_norm, verify
from pipelines.errors import FaceshardsError

_PATH = click.Path(path_type=Path)
FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


@click.command("eval")
@click.option("--model", type=_PATH, help="A checkpoint, a run's folder (its best one), weights, .onnx or .mindir.")
@click.option("--backbone", default="", help="Of weights or embeddings: r50, mbf, vit_b, ...")
@click.option("--embeddings", type=_PATH, help="In place of --model: an .npy of (images, D), for one --set.")
@click.option("--set", "sets", type=_PATH, multiple=True, required=True, help="A verification set (.bin); repeatable.")
@click.option("--out", type=_PATH, help="Folder for report.json and report.html.")
@click.option("--trained-on", default="", help="Dataset of the model, for published figures; a checkpoint knows it.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def evaluate(
    model: Path | None,
    backbone: str,
    embeddings: Path | None,
    sets: tuple[Path, ...],
    out: Path | None,
    trained_on: str,
    quiet: bool,
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
    for entry in loaded:  # before hours of embedding
        with _named(entry):
            check_pairs(entry.same)
    if embeddings is not None:
        rows = read_array(embeddings, len(loaded[0].images), loaded[0].name)
        entries = [_entry(loaded[0], rows, None, np.arange(len(loaded[0].same)), ())]
    else:
        from evaluation.models import load_model  # MindSpore: only for models

        assert model is not None
        source = load_model(model, backbone)
        backbone, trained_on = source.backbone, trained_on or str(source.card.get("dataset", ""))
        embedder = Embedder(source.forward)
        entries = [_measured(entry, embedder, quiet) for entry in loaded]
    for line in table(entries, backbone, trained_on):
        click.echo(line)
    for measured in entries:
        for line in (*measured.result.warnings, *measured.problems):
            click.echo(f"{measured.name}: {line}", err=True)
    if out is not None:
        write(out, entries, backbone, trained_on)
        click.echo(f"report {out / 'report.html'}")


def _measured(entry: VerificationSet, embedder: Embedder, quiet: bool) -> Entry:
    """Returns what a model gives on a set; pairs whose images do not decode are left out, and listed."""
    images = tqdm(entry.images, desc=entry.name, unit=" images", disable=quiet, mininterval=0.5)
    views, problems = embedder.views(images)  # (2, 2P, D)
    both, views, pairs, lost = usable_pairs(views, problems)
    return _entry(entry, both, views, pairs, lost)


def _entry(
    entry: VerificationSet, both: np.ndarray, views: np.ndarray | None, pairs: np.ndarray, problems: tuple[str, ...]
) -> Entry:
    """Returns what the embeddings of some pairs of a set give."""
    same = entry.same[pairs]
    with _named(entry, left_out(problems, len(entry.same))):
        check_pairs(same)
        result = verify(both, same, fars=FARS, xnorm=None if views is None else mean_norm(views))
        plain = None if views is None else verify(views[0], same)
        dist, _ = distances(both)
    pictures = [entry.images[i] for pair in pairs for i in (2 * pair, 2 * pair + 1)]
    return Entry(entry.name, result, plain, dist, same, pictures, problems, pairs.tolist())


@contextmanager
def _named(entry: VerificationSet, more: str = "") -> Iterator[None]:
    """Puts the name of a set before an error, and `more` behind it."""
    try:
        yield
    except FaceshardsError as error:
        raise FaceshardsError(f"{entry.name}: {error}{more}") from None


def read_array(path: Path, count: int, name: str) -> np.ndarray:
    """Returns embeddings (count, D), float32 or float64, from an .npy.

    Args:
        path: the file.
        count: of the images.
        name: of what they belong to, for messages.

    Raises:
        FaceshardsError: no such array.
    """
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise FaceshardsError(f"{path}: no array in NumPy's format: {error}") from None
    if not isinstance(found, np.ndarray) or found.ndim != 2 or len(found) != count or found.dtype.kind != "f":
        shape = f"{found.dtype} {list(found.shape)}" if isinstance(found, np.ndarray) else "no single array"
        raise FaceshardsError(f"{path}: {shape}; {name} needs floats [{count}, D]")
    return np.asarray(found, np.float32 if found.dtype.itemsize < 4 else found.dtype)


@click.command("make-bin")
@click.argument("root", type=_PATH)
@click.argument("pairs", type=_PATH)
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print counts as JSON.")
def make_bin(root: Path, pairs: Path, out: Path, as_json: bool) -> None:
    """Make a verification set OUT (.bin) of images below ROOT and a list of PAIRS.

    \b
    PAIRS is one of
      LFW's pairs.txt         name 1 2   or   name 1 other 2
      a folder                CFP's Protocol (its Split/FP)
      lines of two images     a/1.jpg b/2.jpg 0   (1: one person), or without the flag: one folder is one person
      CALFW's, CPLFW's lists  a line an image, two lines a pair: ann_0001.jpg 0   (0: two persons)
    \b
    Example:
      faceshards make-bin lfw_112x112 pairs.txt lfw.bin
    """
    found = make_set(root, pairs)
    write_bin(out, found.images, found.same)
    counts = {"pairs": len(found.same), "same": int(found.same.sum()), "bytes": out.stat().st_size}
    click.echo(json.dumps(counts) if as_json else f"{out}: {counts['pairs']:,} pairs, {counts['same']:,} of one person")

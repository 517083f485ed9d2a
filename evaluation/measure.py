"""What a model, or embeddings from elsewhere, give: on verification sets, and on a pair of faces."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from evaluation.embedder import Embedder, left_out, usable_pairs
from evaluation.models.model import Model
from evaluation.protocol.verification import check_pairs, distances, mean_norm, verify
from evaluation.report.table import Entry
from faceshards.errors import FaceshardsError
from faceshards.formats.verification_bin import VerificationSet, read_bin

FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


def read_sets(paths: Sequence[Path]) -> list[VerificationSet]:
    """Returns verification sets, each of which can measure something.

    Raises:
        FaceshardsError: a file is no verification set, or its pairs measure nothing.
    """
    found = [read_bin(path) for path in paths]
    for entry in found:  # before hours of embedding
        with _named(entry):
            check_pairs(entry.same)
    return found


def measure_model(model: Model, sets: Sequence[VerificationSet], quiet: bool = False) -> list[Entry]:
    """Returns what a model gives on sets; pairs whose images do not decode are left out, and listed.

    Args:
        model: embeds the images.
        sets: to measure on.
        quiet: no progress bar.

    Raises:
        FaceshardsError: what is left of a set measures nothing, or an embedding is not finite.
    """
    embedder = Embedder(model.forward)
    entries = []
    for entry in sets:
        images = tqdm(entry.images, desc=entry.name, unit=" images", disable=quiet, mininterval=0.5)
        views, problems = embedder.views(images)  # (2, 2P, D)
        both, views, pairs, lost = usable_pairs(views, problems)
        entries.append(_entry(entry, both, views, pairs, lost))
    return entries


def measure_embeddings(path: Path, entry: VerificationSet) -> Entry:
    """Returns what the embeddings of an .npy (2P, D) give on a set.

    Raises:
        FaceshardsError: they are not its images', or not finite.
    """
    rows = read_array(path, len(entry.images), entry.name)
    return _entry(entry, rows, None, np.arange(len(entry.same)), ())


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


@dataclass(frozen=True)
class Comparison:
    """Of two faces: the cosine of their embeddings, the threshold, and whether the cosine is above it."""

    cosine: float
    threshold: float
    same: bool


def compare(first: Path, second: Path, model: Model, threshold: float | None = None) -> Comparison:
    """Returns whether two aligned faces (112 x 112) are one person's.

    Args:
        first: an encoded image.
        second: likewise.
        model: embeds them, and knows the thresholds of its verification sets.
        threshold: cosine above which they are; None takes the mean of those that the model knows.

    Raises:
        FaceshardsError: an image cannot be read or decoded, the model knows no threshold, or it gives an embedding of
            length 0.
    """
    known = model.card.get("thresholds") or {}
    if threshold is None and not known:
        raise FaceshardsError(
            f"{model.path}: no verification set has given it a threshold; choose one with --threshold"
        )
    limit = float(np.mean(list(known.values()))) if threshold is None else threshold
    try:
        images = [path.read_bytes() for path in (first, second)]
    except OSError as error:
        raise FaceshardsError(f"{error.filename}: {error.strerror}") from None
    views, problems = Embedder(model.forward, batch=2).views(images)
    for place, cause in problems.items():
        raise FaceshardsError(f"{(first, second)[place]}: {cause}")
    a, b = np.add(views[0], views[1], dtype=np.float64)  # (D,) each
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    if not lengths:
        raise FaceshardsError(f"{model.path}: gives an embedding of length 0")
    cosine = float(a @ b) / lengths
    return Comparison(cosine, limit, cosine > limit)

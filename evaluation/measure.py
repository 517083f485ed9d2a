"""What a model, or embeddings from elsewhere, give: on verification sets, and on a pair of faces."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.embedder import Embedder, left_out, lost_lines, usable_pairs
from evaluation.models.model import Model
from evaluation.origin import Origin
from evaluation.protocol.verification import Verification, check_pairs, distances, mean_norm, verify
from evaluation.report.table import Entry
from faceshards.checksums import file_digest
from faceshards.errors import FaceshardsError, as_typed
from faceshards.formats.verification_bin import VerificationSet, printable, read_bin, set_names
from faceshards.progress import bar, counted
from training.data.transforms import SIZE, ImageError, decode

FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


def read_sets(paths: Sequence[Path], decoded: bool = True) -> list[tuple[VerificationSet, tuple[str, ...]]]:
    """Returns verification sets that can measure something, each with a line for every pair that will be left out.

    It costs the decoding of all images, a tenth of a millisecond each, and is known before hours of embedding. Two
    files of one name are told apart by their paths.

    Args:
        paths: .bin files.
        decoded: their images are what is embedded; without this they may be anything.

    Raises:
        FaceshardsError: a file is no verification set or is named twice, or its pairs measure nothing: too few, all
            alike, or without images that decode at the size that models take.
    """
    return [_read_set(path, name, decoded) for path, name in zip(paths, set_names(paths), strict=True)]


def _read_set(path: Path, name: str, decoded: bool) -> tuple[VerificationSet, tuple[str, ...]]:
    """Returns one of the sets of read_sets(), by the name that it has among them."""
    source = dataclasses.replace(read_bin(path), name=name)
    lost = _lost_pairs(source) if decoded else {}
    lines = tuple(lost.values())
    try:
        check_pairs(np.delete(source.same, list(lost)))
    except FaceshardsError as error:
        more = f"{left_out(lines, len(source.same))}; models take pictures of {SIZE[0]} x {SIZE[1]}" if lost else ""
        raise FaceshardsError(f"{path}: {error}{more}") from None
    return source, lines


def _lost_pairs(source: VerificationSet) -> dict[int, str]:
    """Returns, by its place, a line for each pair with an image that does not decode or has another size."""

    def cause(image: bytes) -> str:
        try:
            decode(image, SIZE)
        except ImageError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(thread_name_prefix="decode") as pool:
        causes = pool.map(cause, source.images, chunksize=256)
        return lost_lines({place: text for place, text in enumerate(causes) if text})


@dataclass(frozen=True)
class EmbeddedSet:
    """The embeddings of a set's pairs, those apart whose images do not decode.

    Args:
        source: the set.
        both: (2Q, D) float, of image and mirror image together.
        views: (2, 2Q, D) float32, of the images and of the mirror images; None for embeddings from elsewhere.
        places: (Q,) int64, the places of these pairs in the set.
        lost: a line for each of the others.
    """

    source: VerificationSet
    both: np.ndarray
    views: np.ndarray | None
    places: np.ndarray
    lost: tuple[str, ...] = ()

    @property
    def same(self) -> np.ndarray:
        """(Q,) bool, whether a pair shows one person."""
        return self.source.same[self.places]

    def named(self) -> AbstractContextManager[None]:
        """Puts the set's name before an error, and what was left out behind it."""
        return _named(self.source, left_out(self.lost, len(self.source.same)))

    def verify(self, **options: Any) -> Verification:
        """Returns what the pairs give; `options` are verify()'s, and its errors name the set."""
        with self.named():
            return verify(self.both, self.same, **options)

    def entry(self, fars: Sequence[float] = ()) -> Entry:
        """Returns all that a report has of the set; raises as verify().

        Args:
            fars: false accept rates that the table is to show; FARS are measured in any case.
        """
        views = self.views
        result = self.verify(
            fars=sorted({*FARS, *fars}, reverse=True), xnorm=None if views is None else mean_norm(views)
        )
        return Entry(
            name=self.source.name,
            result=result,
            plain=None if views is None else dataclasses.replace(self, both=views[0]).verify(),
            distances=distances(self.both)[0],
            same=self.same,
            pictures=[self.source.images[i] for pair in self.places for i in (2 * pair, 2 * pair + 1)],
            problems=self.lost,
            numbers=self.places.tolist(),
            digest=self.source.digest(),
            fars=tuple(sorted({*fars}, reverse=True)),
        )


def embed_set(source: VerificationSet, embedder: Embedder, quiet: bool = True) -> EmbeddedSet:
    """Returns the embeddings of a set's pairs; those whose images do not decode are left out, and listed.

    Raises:
        FaceshardsError: what is left of the set measures nothing, or the model gives a value that is not finite.
    """
    with bar(source.name, len(source.images), quiet) as shown:
        views, problems = embedder.views(counted(source.images, shown))  # (2, 2P, D)
    found = EmbeddedSet(source, *usable_pairs(views, problems))
    with found.named():
        check_pairs(found.same)
    return found


def measure_model(
    model: Model, sets: Sequence[VerificationSet], quiet: bool = False, fars: Sequence[float] = ()
) -> list[Entry]:
    """Returns what a model gives on sets.

    Args:
        model: embeds the images.
        sets: to measure on.
        quiet: no progress bar.
        fars: see EmbeddedSet.entry.

    Raises:
        FaceshardsError: what is left of a set measures nothing, or an embedding is not finite.
    """
    embedder = Embedder(model.forward)
    return [embed_set(source, embedder, quiet).entry(fars) for source in sets]


def measure_embeddings(path: Path, source: VerificationSet, fars: Sequence[float] = ()) -> Entry:
    """Returns what the embeddings of an .npy (2P, D) give on a set; `fars` as EmbeddedSet.entry has it.

    Raises:
        FaceshardsError: they are not its images', or not finite.
    """
    rows = read_array(path, len(source.images), source.name)
    return EmbeddedSet(source, both=rows, views=None, places=np.arange(len(source.same))).entry(fars)


def origin_of_embeddings(path: Path, backbone: str = "", trained_on: str = "") -> Origin:
    """Returns what figures of embeddings from elsewhere are of.

    Args:
        path: the .npy, which was read already.
        backbone: of the model that made them, for published figures; "" for none.
        trained_on: its dataset, likewise.
    """
    return Origin(printable(as_typed(path)), file_digest(path)[1], backbone, trained_on=trained_on, kind="embeddings")


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
    except OSError as error:
        raise FaceshardsError(f"{path}: {error.strerror or error}") from None
    except (ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise FaceshardsError(f"{path}: no array in NumPy's format: {error}") from None
    if not isinstance(found, np.ndarray) or found.ndim != 2 or len(found) != count or found.dtype.kind != "f":
        shape = f"{found.dtype} {list(found.shape)}" if isinstance(found, np.ndarray) else "no single array"
        raise FaceshardsError(f"{path}: {shape}; {name} needs floats [{count}, D]")
    return np.asarray(found, np.float32 if found.dtype.itemsize < 4 else found.dtype)


@dataclass(frozen=True)
class Comparison:
    """Of two faces.

    Args:
        cosine: of their embeddings.
        threshold: a cosine.
        same: whether the cosine is above it.
        sets: the verification sets whose mean the threshold is; empty if it was given.
    """

    cosine: float
    threshold: float
    same: bool
    sets: tuple[str, ...]


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
    return Comparison(cosine, limit, cosine > limit, tuple(map(str, known)) if threshold is None else ())

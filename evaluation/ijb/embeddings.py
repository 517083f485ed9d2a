"""The embeddings of a benchmark's images, kept in parts on disk: no model embeds an image twice."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from evaluation.embedder import NOT_FINITE, Embedder, EmbeddingError, Forward
from evaluation.ijb.alignment import AlignmentError, align
from evaluation.ijb.lines import IjbError
from evaluation.ijb.protocol import Protocol
from faceshards.errors import one_line
from faceshards.files import replacing
from faceshards.progress import bar
from faceshards.reading import content, names_in
from faceshards.storage.faults import StorageError
from faceshards.storage.location import Location
from faceshards.versions import stamp
from training.data.transforms import ImageError, decode

log = logging.getLogger(__name__)

_NAME = re.compile(r"part-\d{5}\.npz|\.part-\d{5}\.npz\.[0-9a-f]{32}")
PART = 256  # images: whole batches, so that a part is the same whatever was embedded before it


@dataclass
class Embedded:
    """The embeddings of N images.

    Args:
        rows: (N, D) float32, image and mirror image added; NaN where there is none.
        problems: why an image has none, by its place.
        passing: whether one that is there could not be read, for the moment perhaps: it is tried again the next time.
    """

    rows: np.ndarray
    problems: dict[int, str] = field(default_factory=dict)
    passing: bool = False

    def put(self, start: int, part: Embedded, count: int) -> None:
        """Takes over a part of `count` embeddings, from the place `start` on."""
        if not len(self.rows):
            self.rows = np.empty((count, part.rows.shape[1]), np.float32)
        self.rows[start : start + len(part.rows)] = part.rows
        self.problems.update({start + place: cause for place, cause in part.problems.items()})


def embed_protocol(
    protocol: Protocol, forward: Forward, folder: Location | None = None, model: str = "", quiet: bool = True
) -> Embedded:
    """Returns the embeddings of a benchmark's aligned faces.

    Args:
        protocol: the benchmark.
        forward: (B, 3, 112, 112) float32 to (B, D).
        folder: keeps part-NNNNN.npz, each with what decides it (_identity): what was interrupted goes on, and what is
            there is not embedded again. None keeps nothing. Nobody else may be at work there.
        model: what tells `forward` from others: the SHA-256 of its weights, and how it is fed.
        quiet: no progress bar.

    Raises:
        IjbError: there is no folder of images, or none of them in it.
        EmbeddingError: the model gives nothing finite.
    """
    if not protocol.images.is_dir():
        raise IjbError(f"{protocol.images}: no such folder of images")
    count = len(protocol.names)
    if not any(_state(protocol.images / name) for name in protocol.names):
        raise IjbError(f"{protocol.images}: none of the {count:,} images is there")
    found = Embedded(np.zeros((0, 0), np.float32))
    missing = [range(start, min(start + PART, count)) for start in range(0, count, PART)]
    identities = {}
    if folder is not None:
        by = f"{model} {stamp()['versions']['faceshards']}"
        identities = {places: _identity(protocol, places, by) for places in missing}
        missing = _take_kept(found, folder, identities, count)
    with bar(one_line(protocol.name), count, quiet) as shown:
        shown.update(count - sum(map(len, missing)))
        for places in missing:
            part = _embed(protocol, places, forward, shown.update)
            if not places.start and [*part.problems.values()] == [NOT_FINITE] * len(places):
                raise EmbeddingError(f"the model's embeddings of the first {len(places)} images are not finite")
            if folder is not None and not part.passing:
                _write(_part(folder, places), identities[places], part)
            found.put(places.start, part, count)
    return found


def _take_kept(found: Embedded, folder: Location, identities: dict[range, str], count: int) -> list[range]:
    """Takes over the parts that are kept, and returns the places of the others; says how many there are of both."""
    folder.mkdir(parents=True, exist_ok=True)
    there = names_in(folder)
    for name in there - {_part(folder, places).name for places in identities}:
        if _NAME.fullmatch(name):
            (folder / name).unlink()  # of a longer list, or half-written when a process died
    missing, other = [], 0
    for places, identity in identities.items():
        path = _part(folder, places)
        part = _read(path, identity, len(places)) if path.name in there else None
        if part is not None:
            found.put(places.start, part, count)
        else:
            missing.append(places)
            other += path.name in there
    if other:
        log.warning(
            "%s: %d of %d parts are of another model, list or images, or damaged; their images are embedded again",
            *(folder, other, len(identities)),
        )
    if kept := count - sum(map(len, missing)):
        log.info("%s: %s of %s images were embedded before, and are not again", folder, f"{kept:,}", f"{count:,}")
    return missing


def _embed(protocol: Protocol, places: range, forward: Forward, advance: Callable[[int], object]) -> Embedded:
    """Returns the embeddings of some of a benchmark's images; `advance` hears how many there are more."""
    passing = False

    def load(place: int) -> np.ndarray:
        nonlocal passing
        name = protocol.names[place]
        path = protocol.images / name
        try:
            return align(decode(path.read_bytes()), protocol.points[place])
        except OSError as error:
            passing |= bool(_state(path))
            raise ImageError(f"{name}: {error.strerror}") from None
        except (ImageError, AlignmentError) as error:
            raise ImageError(f"{name}: {error}") from None

    rows: list[np.ndarray] = []
    problems: dict[int, str] = {}
    for views, bad in Embedder(forward, load=load, strict=False).batches(places):
        start = sum(map(len, rows))
        rows.append(views[0] + views[1])
        problems.update({start + place: cause for place, cause in bad.items()})
        advance(len(rows[-1]))
    return Embedded(np.concatenate(rows), problems, passing)


def _part(folder: Location, places: range) -> Location:
    return folder / f"part-{places.start // PART:05d}.npz"


def _identity(protocol: Protocol, places: range, by: str) -> str:
    """Returns the SHA-256 (hex) of what decides a part: images with their times, landmarks, and `by` what."""
    digest = hashlib.sha256(f"{by}\n".encode())
    for place in places:
        name = protocol.names[place]
        digest.update(f"{name}\n{_state(protocol.images / name)}\n".encode())
    digest.update(np.ascontiguousarray(protocol.points[places.start : places.stop]).tobytes())
    return digest.hexdigest()


def _state(path: Path) -> tuple[int, ...]:
    """Returns what changes when a file is written, replaced or made readable; nothing if it cannot be found."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_size, found.st_mtime_ns, found.st_mode


def _read(path: Location, identity: str, count: int) -> Embedded | None:
    """Returns a part; None if it is of something else, or damaged: it is but a copy of what can be made."""
    try:
        with np.load(io.BytesIO(content(path)), allow_pickle=False) as file:
            if str(file["identity"]) != identity:
                return None
            rows, problems = file["rows"], dict(zip(file["places"].tolist(), file["causes"].tolist(), strict=True))
    except StorageError:
        raise
    except Exception:  # a damaged file raises whatever its bytes lead to
        return None
    return Embedded(rows, problems) if len(rows) == count else None


def _write(path: Location, identity: str, part: Embedded) -> None:
    """Writes a part, whole or not at all, and on disk when it returns."""
    places, causes = np.array([*part.problems], np.int64), np.array([*part.problems.values()], np.str_)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, identity=np.array(identity), rows=part.rows, places=places, causes=causes)
        file.flush()
        os.fsync(file.fileno())

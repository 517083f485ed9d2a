"""Which .rec files a path means, and what such a file says of itself."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np

from faceshards.errors import SourceError
from faceshards.formats import recordio
from faceshards.reading import files_in, open_file
from faceshards.storage.location import Location, as_location
from pipelines.sources.base import Claims, SourceFile
from pipelines.sources.leftovers import Leftovers, is_held_out

_PROPERTY = 1 << 16  # bytes of the file of this name that are looked at: it has one line

IR_HEADER = 24
"""Bytes of an image record's header: u32 flag, f32 label, u64 id, u64 id2 (MXNet recordio.py, format "IfQQ")."""


def find(path: Location) -> tuple[list[SourceFile], list[str]] | None:
    """Returns a .rec, the train.rec of a folder or else all its .rec files but held-out ones, as SourceKind has it.

    Raises:
        SourceError: a file is empty or no RecordIO, or a folder has held-out files alone.
    """
    if path.is_file():
        return [_rec_file(path)], []
    leftovers = Leftovers()
    recs = files_in(path, lambda name: Path(name).suffix == ".rec")
    recs = [entry for entry in recs if not leftovers.take(entry)]
    if not recs:
        return None
    warnings = [f"{path}: {line}" for line in leftovers.told()]
    main = [entry for entry in recs if entry.name == "train.rec"]
    if main:
        others = [entry.name for entry in recs if entry.name != "train.rec"]
        note = f"{path}: reads train.rec and leaves {', '.join(others)}; name one with --source to read it instead"
        return [_rec_file(main[0])], [*warnings, note] if others else warnings
    held = [entry.name for entry in recs if is_held_out(entry.stem)]
    if len(held) == len(recs):
        raise SourceError(
            f"{path}: only held-out sets in it ({', '.join(held)}); name one with --source to train on it"
        )
    if held:
        warnings.append(f"{path}: leaves {', '.join(held)}, held-out sets by their names; --source names what to read")
    return [_rec_file(entry) for entry in recs if entry.name not in held], warnings


def _rec_file(path: Location) -> SourceFile:
    with open_file(path) as file:
        stat, head = file.status, file.read_at(0, 1 << 20)
    if not head:
        raise SourceError(f"{path}: empty file")
    if not (np.frombuffer(head, np.uint32, len(head) // 4) == recordio.MAGIC).any():
        raise SourceError(f"{path}: not RecordIO: no record header in its first {len(head)} bytes")
    index = path.with_suffix(".idx")
    return SourceFile(
        str(path), path.name, "recordio", str(index) if index.is_file() else "", stat.st_size, stat.st_mtime_ns
    )


def claims(file: SourceFile) -> Claims:
    """Returns what InsightFace's header record says of the images, and `property` beside the file of identities.

    A header record is the first, with id 0, no image, and two labels: one behind the last image's key, and one behind
    the last identity's. Both are float32, exact below 2**24.
    """
    with open_file(file.path) as opened:
        head = opened.read_at(0, 8 + IR_HEADER + 8)
    images = None
    if len(head) == 40:
        magic, length, flag, _, key, _, behind, _ = struct.unpack("<IIIfQQff", head)
        if (magic, length, flag, key) == (recordio.MAGIC, 32, 2, 0) and 1 <= behind < 1 << 31:
            rounded = int(np.spacing(np.float32(behind)) / 2)
            images = range(int(behind) - 1 - rounded, int(behind) + rounded)
    return Claims(images, _claimed_identities(as_location(file.path)))


def _claimed_identities(path: Location) -> int | None:
    """Returns the classes that the file `property` beside a .rec names; None if there is none, or it is another's."""
    try:
        with open_file(path.parent / "property") as file:
            text = file.read_at(0, _PROPERTY).decode("ascii")
        alone = path.name == "train.rec" or len(files_in(path.parent, lambda name: name.endswith(".rec"))) == 1
    except (OSError, ValueError):
        return None
    match = re.match(r"\s*(\d{1,9})\s*,", text)
    return int(match[1]) if match and alone else None

"""WebDataset: .tar files of samples, KEY.jpg (.jpeg, .png) with KEY.cls or KEY.json, read where they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from faceshards.errors import SourceError
from faceshards.files import replacing
from faceshards.formats.tar import Member, Tar
from faceshards.reading import open_file
from faceshards.storage.location import as_location
from pipelines.sources.base import Claims, Cut, OpenFiles, Partition, Place, Scanned, SourceFile
from pipelines.sources.tar_files import find, set_of
from pipelines.sources.tar_samples import is_numbered, listing

__all__ = ["claims", "cut", "doubt", "fetch_ahead", "find", "labels", "names", "place", "read", "scan", "set_of"]
_GAP = 1 << 16  # bytes between two images that are read rather than passed over
_READ = 32 << 20  # bytes read at once


def cut(file: SourceFile, number: int, work: Path, step: int) -> Cut:
    """Returns how a .tar is cut, as SourceKind has it: by rows of its listing, LISTING in an Arrow file."""
    rows, warnings = listing(as_location(file.path))
    table = work / f"listing-{number}.arrow"
    with replacing(table) as temporary, pa.ipc.new_file(str(temporary), rows.schema) as writer:
        writer.write_table(rows)
    filled = np.cumsum(rows["size"].to_numpy() + 1) // step  # a row without an image is a byte
    inner = np.flatnonzero(np.diff(filled, prepend=0))
    return Cut([0, *(inner[inner > 0]).tolist(), len(rows)], str(table), warnings)


def _listed(part: Partition, columns: list[str]) -> pa.Table:
    """Returns columns of the listing of a partition's file."""
    with pa.memory_map(str(part.table)) as source:
        return pa.ipc.open_file(source).read_all().select(columns)


def names(part: Partition) -> list[str] | None:
    """Returns the names of the identities by label; None where they are numbers."""
    rows = _listed(part, ["label", "label_original"])
    found = sorted(rows.filter(pa.array(rows["label"].to_numpy() >= 0))["label_original"].unique().to_pylist())
    return None if is_numbered(found) else found


def labels(part: Partition) -> np.ndarray:
    """Returns the labels of a partition, as SourceKind has it."""
    found = np.unique(_listed(part, ["label"])["label"].to_numpy()[part.start : part.stop])
    return found[found >= 0]


def claims(_: SourceFile) -> Claims:
    """Returns that a .tar says nothing of itself."""
    return Claims(None, None)


def doubt(_: Partition) -> str:
    """Returns "": a label is a label."""
    return ""


def scan(part: Partition) -> Scanned:
    """Returns the images of a stretch of a file's listing.

    Raises:
        SourceError: the file is shorter than it was.
    """
    names = ["offset", "header", "size", "key", "label", "label_original", "reason", "detail"]
    rows = _listed(part, names).slice(part.start, part.stop - part.start)
    offset, header, size, label, reason = (
        rows[name].to_numpy().copy() for name in ("offset", "header", "size", "label", "reason")
    )
    n = len(rows)
    out = Scanned(
        offset=offset,
        header=header,
        size=size,
        parts=np.ones(n, np.int32),
        ordinal=np.arange(n, dtype=np.int32),
        key=rows["key"].to_pylist(),
        label=label,
        label_original=rows["label_original"].to_pylist(),
        reason=reason,
        detail=rows["detail"].to_pylist(),
        images=[None] * n,
        records=n,
        structural=0,
    )
    _take_images(out, part.path)
    return out


def _take_images(out: Scanned, path: str) -> None:
    """Fills the images of the rows that are not dropped, reading neighbours together."""
    rows = np.flatnonzero(out.reason == 0)
    begin = (out.offset + out.header)[rows]
    end = begin + out.size[rows]
    with open_file(path) as file:
        first = 0
        while first < len(rows):
            last = first + 1
            while last < len(rows) and begin[last] - end[last - 1] <= _GAP and end[last] - begin[first] <= _READ:
                last += 1
            window = np.frombuffer(file.read_at(int(begin[first]), int(end[last - 1] - begin[first])), np.uint8)
            if len(window) != end[last - 1] - begin[first]:
                raise SourceError(f"{path}: changed since it was scanned")
            for i in range(first, last):
                out.images[rows[i]] = window[begin[i] - begin[first] : end[i] - begin[first]]
            first = last


def read(file: SourceFile, place: Place, opened: OpenFiles) -> bytes:
    """Returns the image of a member.

    Raises:
        SourceError: the file changed since it was scanned.
    """
    return opened.file(file).read_at(place.offset + place.header, place.size)


def place(file: SourceFile, key: str, opened: OpenFiles) -> Place:
    """Returns where the image of a member is, as SourceKind has it: the first of its name, or the one at NAME@BYTE.

    Raises:
        SourceError: the file changed since it was scanned, or has no image under this key.
    """
    if (file.path, key) not in opened.looked_up:
        fetch_ahead(file, [key], opened)
    member = opened.looked_up[file.path, key]
    if member is None:
        raise SourceError(f"{file.path}: has no image {key!r}")
    if member.damage:
        raise SourceError(f"{file.path}: no image at byte {member.offset}: {member.damage}")
    if member.kind:
        raise SourceError(f"{file.path}: {key!r} is {member.kind}, and no image")
    return Place(key, member.offset, member.data - member.offset, member.size, 1)


def fetch_ahead(file: SourceFile, keys: Sequence[str], opened: OpenFiles) -> None:
    """Finds the members that keys mean, by one walk; of an object it has their images fetched, several at once."""
    found: dict[str, Member] = {}
    wanted, handle = set(keys), opened.file(file)
    for member in Tar(handle, file.bytes).members():
        name, at = member.name, f"@{member.offset}"
        for key in wanted.intersection([at] if member.damage else [name, name + at]):
            found[key] = member
            wanted.remove(key)
        if not wanted:
            break
    opened.looked_up |= {(file.path, key): found.get(key) for key in keys}
    handle.read_ahead(sorted((member.data, member.size) for member in found.values()))

"""Pictures without identities: of a flat folder, named one by one, or in a list."""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evaluation.pair_lists import read_lines
from faceshards.checksums import file_digest
from faceshards.errors import SourceError
from faceshards.formats.verification_bin import printable
from pipelines.sources.base import Partition
from pipelines.sources.leftovers import is_image, is_leftover

log = logging.getLogger(__name__)

LISTS = (".txt", ".lst")


@dataclass(frozen=True)
class ImageFiles:
    """Picture files.

    Args:
        root: the folder, absolute.
        names: their paths, from there on or absolute; the keys of the images.
        labels: an identity each, None where there is none.
    """

    root: str
    names: Sequence[str]
    labels: Sequence[str | None]

    def cut(self, work: Path, step: int) -> tuple[list[Partition], dict[str, Any]]:
        """Returns partitions of the kind "folder" of about `step` bytes, and what changes whenever the files do.

        Args:
            work: folder for the listing, the table that this kind has.
            step: aimed bytes of a partition.
        """
        sizes, times = np.array([_state(os.path.join(self.root, name)) for name in self.names], np.int64).T
        table = work / "files.parquet"
        places = pa.array(np.zeros(len(sizes), np.int32))
        pq.write_table(
            pa.table({"path": self.names, "identity": pa.array(self.labels, pa.string()), "place": places}), table
        )
        pieces = (np.cumsum(sizes) - sizes) // step  # which piece each file begins in
        bounds = [0, *(np.flatnonzero(np.diff(pieces)) + 1).tolist(), len(sizes)]
        parts = [
            Partition(number, 0, "folder", self.root, start, stop, str(table), stop == len(sizes))
            for number, (start, stop) in enumerate(itertools.pairwise(bounds))
        ]
        identity = {"files": [len(sizes), int(sizes.sum()), int(times.max())], "tables": [file_digest(table)[1]]}
        return parts, identity


def _state(path: str) -> tuple[int, int]:
    """Returns a file's bytes and its time in ns; zeros for one that is not there, which has a row with that cause."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return 0, 0
    return found.st_size, found.st_mtime_ns


def find_image_files(paths: Sequence[Path]) -> ImageFiles | None:
    """Returns the pictures that paths name; None if it is one path to something else.

    Args:
        paths: one flat folder (pictures in it, none in a folder below it), one list, or pictures.
            A list is a file of LISTS with a path on each line, or im2rec's index, label and path with tabs between
            them. Its paths count from the current folder, or, if none is there, from the folder of the list.

    Raises:
        SourceError: one of several is no file, none of them is a picture, or the list cannot be read.
    """
    first = paths[0]
    if len(paths) == 1 and first.is_dir():
        return _flat(first)
    if len(paths) == 1 and first.suffix.lower() in LISTS and first.is_file():
        return _listed(first)
    if len(paths) == 1 and not is_image(first.name):
        return None
    for path in paths:
        if path.is_dir() and not is_leftover(path.name):
            raise SourceError(f"{path}: a folder; of several sources each is a picture")
        if not path.exists():
            raise SourceError(f"{path}: no such file")
    return _taken(str(first) if len(paths) == 1 else "SOURCE", os.getcwd(), list(map(str, paths)))


def _flat(folder: Path) -> ImageFiles | None:
    """Returns the pictures of a folder that has none in folders below it; None for another, or one of .rec files."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise SourceError(f"{folder}: {error.strerror}") from None
    if not any(map(is_image, names)) or any(name.endswith(".rec") for name in names):
        return None
    below = {name for name in names if os.path.isdir(folder / name) and not is_leftover(name)}
    if any(_has_pictures(folder / name) for name in below):
        return None
    return _taken(str(folder), os.path.abspath(folder), [name for name in names if name not in below])


def _has_pictures(folder: Path) -> bool:
    """Returns whether there is a picture anywhere below a folder."""
    for _, folders, names in os.walk(folder):
        if any(is_image(name) and not is_leftover(name) for name in names):
            return True
        folders[:] = [name for name in folders if not is_leftover(name)]
    return False


def _listed(path: Path) -> ImageFiles:
    """Returns the pictures of a list."""
    names, labels = [], []
    for _, line in read_lines(path):
        fields = line.split("\t")
        names.append(fields[-1].strip())
        labels.append(re.sub(r"\.0*$", "", fields[1].strip()) if len(fields) == 3 else None)  # im2rec writes 5.000000
    roots = [os.getcwd(), os.path.abspath(path.parent)]
    root = next((root for root in roots if any(os.path.exists(os.path.join(root, name)) for name in names)), None)
    if names and root is None:
        raise SourceError(f"{path}: none of its {len(names)} files is there, the first: {names[0]}")
    return _taken(str(path), root or roots[0], names, labels)


def _taken(where: str, root: str, names: Sequence[str], labels: Sequence[str | None] = ()) -> ImageFiles:
    """Returns the files that are pictures, by their names; a warning counts the others.

    Args:
        where: what names them, for messages.
        root: as in ImageFiles.
        names: likewise.
        labels: likewise; empty for none.
    """
    if not names:
        raise SourceError(f"{where}: names no file")
    places = [os.path.abspath(os.path.join(root, name)) for name in names]
    # What all of them lie in may have any name: the user chose it.
    common = os.path.commonpath(map(os.path.dirname, places))
    aside: dict[str, list[str]] = {}
    taken = []
    for name, place, label in zip(names, places, labels or [None] * len(names), strict=True):
        base = os.path.basename(place)
        if any(map(is_leftover, os.path.relpath(place, common).split(os.sep))):
            aside.setdefault("that systems left", []).append(name)
        elif not is_image(base):
            aside.setdefault("that are no .jpg, .jpeg or .png", []).append(name)
        elif printable(name) != name or "\0" in name:
            aside.setdefault("whose name is not UTF-8", []).append(printable(name))
        else:
            taken.append((name, label))
    if aside:
        told = ", ".join(f"{len(found)} {what} (the first: {found[0]})" for what, found in aside.items())
        log.warning("%s: left aside: %s", where, told)
    if not taken:
        raise SourceError(f"{where}: none of {len(names)} files is a picture (.jpg, .jpeg or .png)")
    return ImageFiles(root, *zip(*taken, strict=True))

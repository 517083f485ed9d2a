"""The kinds of sources, and what is done with a piece of any of them: nothing outside this folder asks for its kind."""

from __future__ import annotations

import atexit
import dataclasses
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from faceshards.errors import SourceError
from faceshards.extensions import blamed, family
from faceshards.locks import own_folder
from faceshards.reading import fetch
from faceshards.storage.location import Location, StoredPath, as_location
from pipelines.sources import folder, recordio, webdataset
from pipelines.sources.base import Claims, Cut, OpenFiles, Partition, Place, Scanned, SourceFile
from pipelines.sources.kind import SourceKind

_OWN: dict[str, SourceKind] = {"webdataset": webdataset, "recordio": recordio, "folder": folder}
SOURCES: dict[str, SourceKind] = family("sources", _OWN, SourceKind)
"""By kind, as manifests name it, in the order in which they are asked whether a path is theirs."""


_ASKED = [*(name for name in SOURCES if name not in _OWN), *_OWN]  # whoever installs another kind wants it asked


def find(path: Location) -> tuple[list[SourceFile], list[str]] | None:
    """Returns the files that a path means, and warnings; None if it is of no kind.

    Raises:
        SourceError: it is of one, but nothing can be read from it.
        OSError: it cannot be looked at.
    """
    for name in _OWN if isinstance(path, StoredPath) else _ASKED:
        with blamed(f"source '{name}': {path}"):
            if found := SOURCES[name].find(path):
                return found
    return None


def set_of(file: SourceFile) -> str:
    """Returns what the files of one set have in common; see SourceKind."""
    with blamed(f"source '{file.kind}': {file.path}"):
        return SOURCES[file.kind].set_of(file)


def cut_file(file: SourceFile, number: int, work: Path, step: int) -> Cut:
    """Returns how a file is cut into partitions; see SourceKind.

    Raises:
        OSError: it cannot be read.
    """
    with blamed(f"source '{file.kind}': {file.path}"):
        return Cut(*SOURCES[file.kind].cut(file, number, work, step))


def doubt_of(part: Partition) -> str:
    """Returns why what a source's names stand for may be no people, "" without doubt; see SourceKind."""
    with blamed(f"source '{part.kind}': {part.path}"):
        return SOURCES[part.kind].doubt(_at_hand(part))


class _Copied(threading.local):
    """The table of a file that a thread read last, if it lies in a bucket: a copy on a disk of this machine."""

    def __init__(self) -> None:
        self.table, self.path, self._open = "", "", ExitStack()
        atexit.register(self._open.close)

    def of(self, table: str) -> str:
        """Returns the path of a copy."""
        if self.table != table:
            self._open.close()
            self.table, folder = "", self._open.enter_context(own_folder())
            stored = as_location(table)
            self.path = str(folder / stored.name)
            fetch(stored, Path(self.path))
            self.table = table
        return self.path


_copied = _Copied()


def _at_hand(part: Partition) -> Partition:
    """Returns a partition whose table, if any, is on a disk of this machine."""
    if part.table is None or not isinstance(as_location(part.table), StoredPath):
        return part
    return dataclasses.replace(part, table=_copied.of(part.table))


@contextmanager
def _reading(kind: str, path: str) -> Iterator[None]:
    """Tells an OSError as a SourceError, and what no source may raise as one line that names its kind."""
    try:
        with blamed(f"source '{kind}': {path}"):
            yield
    except OSError as error:
        raise SourceError(f"{error.filename or path}: {error.strerror or error}") from None


def scan(part: Partition) -> Scanned:
    """Returns the partition's rows and images.

    Raises:
        SourceError: the file cannot be read.
    """
    with _reading(part.kind, part.path):
        found = SOURCES[part.kind].scan(_at_hand(part))
        rows = {name: len(values) for name, values in vars(found).items() if hasattr(values, "__len__")}
        if len(set(rows.values())) != 1 or not isinstance(found, Scanned):
            raise ValueError(f"scan: columns of unequal lengths ({rows})")
        return found


def identity_names(part: Partition) -> list[str] | None:
    """Returns the names of the identities by label; None if labels are their own names.

    Args:
        part: any partition of the source.
    """
    with _reading(part.kind, part.path):
        return SOURCES[part.kind].names(_at_hand(part))


def labels(part: Partition) -> np.ndarray:
    """Returns the labels in a partition that can be identities, (n,) int32, ascending.

    Raises:
        SourceError: the file cannot be read.
    """
    with _reading(part.kind, part.path):
        return SOURCES[part.kind].labels(_at_hand(part))


def claims(file: SourceFile) -> Claims:
    """Returns what a file says of itself.

    Raises:
        SourceError: the file cannot be read.
    """
    with _reading(file.kind, file.path):
        return SOURCES[file.kind].claims(file)


def read_images(file: SourceFile, places: Sequence[Place], opened: OpenFiles, in_order: bool = False) -> list[bytes]:
    """Returns the encoded images at places of a source file, in their order, as the file was when the build started.

    Args:
        file: the source.
        places: in it, in order of their offsets.
        opened: keeps files open.
        in_order: they follow each other, and what lies between them may be read, too.

    Raises:
        SourceError: the file changed, or went away, since it was scanned.
    """
    read = SOURCES[file.kind].read
    with _reading(file.kind, file.path):  # once: for each image it would cost as much as reading it
        opened.read_ahead(file, places, in_order)
        return [read(file, place, opened) for place in places]


def read_records(entry: Mapping[str, Any], keys: Sequence[str]) -> list[bytes | SourceError]:
    """Returns the encoded images of records, kept or dropped, from the source of a published dataset, in their order.

    In place of an image that cannot be had is why: the source changed, or went away, since it was scanned, or has no
    image under this key.

    Args:
        entry: the source, as dataset.json has it.
        keys: of the records, as the manifest has them.
    """
    try:
        file = SourceFile(**entry)
        kind = SOURCES[file.kind]
    except (TypeError, KeyError):
        return [SourceError(f"{entry.get('path')}: of a kind that this release does not read")] * len(keys)

    def image(key: str) -> bytes | SourceError:
        try:
            return kind.read(file, kind.place(file, key, opened), opened)
        except SourceError as error:
            return error
        except OSError as error:
            return SourceError(f"{error.filename or file.path}: {error.strerror or error}")

    with OpenFiles() as opened:
        if fetch_ahead := getattr(kind, "fetch_ahead", None):
            with suppress(SourceError, OSError):  # it is said of each record below
                fetch_ahead(file, keys, opened)
        return [image(key) for key in keys]


def read_record(entry: Mapping[str, Any], key: str) -> bytes:
    """Returns the encoded image of a record from the source of a published dataset; see read_records().

    Raises:
        SourceError: it cannot be had.
    """
    (found,) = read_records(entry, [key])
    if isinstance(found, SourceError):
        raise found
    return found

"""The kinds of sources, and what is done with a piece of any of them: nothing outside this folder asks for its kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from faceshards.errors import SourceError
from pipelines.sources import folder, recordio, webdataset
from pipelines.sources.base import Claims, OpenFiles, Partition, Place, Scanned, SourceFile, SourceKind

SOURCES: dict[str, SourceKind] = {"webdataset": webdataset, "recordio": recordio, "folder": folder}
"""By kind, as manifests name it, in the order in which they are asked whether a path is theirs."""


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Tells an OSError as a SourceError."""
    try:
        yield
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror or error}") from None


def scan(part: Partition) -> Scanned:
    """Returns the partition's rows and images.

    Raises:
        SourceError: the file cannot be read.
    """
    with _reading(part.path):
        return SOURCES[part.kind].scan(part)


def identity_names(part: Partition) -> list[str] | None:
    """Returns the names of the identities by label; None if labels are their own names.

    Args:
        part: any partition of the source.
    """
    return SOURCES[part.kind].names(part)


def labels(part: Partition) -> np.ndarray:
    """Returns the labels in a partition that can be identities, (n,) int32, ascending.

    Raises:
        SourceError: the file cannot be read.
    """
    with _reading(part.path):
        return SOURCES[part.kind].labels(part)


def claims(file: SourceFile) -> Claims:
    """Returns what a file says of itself.

    Raises:
        SourceError: the file cannot be read.
    """
    with _reading(file.path):
        return SOURCES[file.kind].claims(file)


def read_image(file: SourceFile, place: Place, opened: OpenFiles) -> bytes:
    """Returns the encoded image at a place of a source file, as the file was when the build started.

    Raises:
        SourceError: the file changed, or went away, since it was scanned.
    """
    with _reading(file.path):
        return SOURCES[file.kind].read(file, place, opened)


def read_record(entry: Mapping[str, Any], key: str) -> bytes:
    """Returns the encoded image of a record, kept or dropped, from the source of a published dataset.

    Args:
        entry: the source, as dataset.json has it.
        key: of the record, as the manifest has it.

    Raises:
        SourceError: the source changed, or went away, since it was scanned, or has no image under this key.
    """
    try:
        file = SourceFile(**entry)
        kind = SOURCES[file.kind]
    except (TypeError, KeyError):
        raise SourceError(f"{entry.get('path')}: of a kind that this release does not read") from None
    try:
        with OpenFiles() as opened:
            return kind.read(file, kind.place(file, key, opened), opened)
    except OSError as error:
        raise SourceError(f"{error.filename or file.path}: {error.strerror or error}") from None

"""What is made of a dataset, an export or a split, published in a folder or in a bucket.

For a bucket it is made in a work folder, as it would be on a disk, and uploaded from there.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from faceshards.dataset.manifest import Manifest
from faceshards.errors import BuildError
from faceshards.progress import logging_at
from faceshards.storage.location import Location, StoredPath, absolute
from pipelines import workspace
from pipelines.exports import request as exports
from pipelines.exports.base import ABOUT, Request
from pipelines.exports.export import check, export
from pipelines.prefix import File, files_of
from pipelines.publication import INSTEAD, Publication
from pipelines.runner import Execution
from pipelines.split import split as splits
from pipelines.split.plan import Request as SplitRequest


def export_at(
    dataset: Location,
    out: Location,
    request: Request,
    execution: Execution,
    *,
    work: Path | None = None,
    restart: bool = False,
) -> dict[str, Any]:
    """Returns what export.json says once a dataset is exported to a folder or a prefix in a bucket; see export().

    Args:
        dataset: its folder, or its prefix in a bucket.
        out: where to publish; in a bucket export.json comes last.
        request: which format, and how.
        execution: how it is run.
        work: of a bucket only, and needed there: a folder in which the export is made before it is uploaded.
        restart: throw away an interrupted export, and its upload.

    Raises:
        ExportError: likewise; or the format has too many files for a bucket.
        BuildError: something else is in the way.
        StorageError: the store refuses, or does not answer.
    """
    folder = _made_in(out, work, "export")
    if isinstance(out, Path):
        return export(dataset, out, request, execution, restart=restart)
    manifest = Manifest(absolute(dataset))
    workspace.check_apart(manifest, out)
    check(manifest, request, out)
    publication = Publication(out, ABOUT, exports.describe(manifest, request), "export")
    if publication.is_whole():
        found = exports.published(out, publication.request, INSTEAD)
        publication.tidy(folder)
        return found

    def make() -> list[File]:
        with logging_at(exports.__name__, logging.ERROR):  # of one that waits to be uploaded
            about = export(dataset, folder, request, execution, restart=restart)
        return [File(name, entry["bytes"], entry["sha256"]) for name, entry in about["files"].items()]

    publication.make(folder.parent, folder, make, restart=restart, quiet=execution.quiet)
    return exports.read(out)


def split_at(
    dataset: Location,
    out: Location,
    request: SplitRequest,
    execution: Execution,
    *,
    work: Path | None = None,
    restart: bool = False,
) -> Manifest:
    """Returns the dataset split off another one, in a folder or at a prefix in a bucket; see split().

    Args:
        dataset: the parent's folder, or its prefix in a bucket.
        out: where to publish; in a bucket dataset.json comes last.
        request: what to hold out.
        execution: how it is run.
        work: of a bucket only, and needed there: a folder in which the dataset is made before it is uploaded.
        restart: throw away an interrupted split, and its upload.

    Raises:
        SplitError: the dataset has not what is asked for.
        BuildError: cannot start, go on, or publish.
        StorageError: the store refuses, or does not answer.
    """
    folder = _made_in(out, work, "split")
    if isinstance(out, Path):
        return splits.split(dataset, out, request, execution, restart=restart)
    manifest = Manifest(absolute(dataset))
    workspace.check_apart(manifest, out)
    splits.check(manifest, request)
    publication = Publication(out, "dataset.json", splits.describe(manifest, request), "split")
    if publication.is_whole():
        found = workspace.published(out, publication.request, False, INSTEAD)
        publication.tidy(folder)
        return found

    def make() -> list[File]:
        with logging_at(workspace.__name__, logging.ERROR):  # of one that waits to be uploaded
            made = splits.split(dataset, folder, request, execution, restart=restart)
        return files_of(made.info, made.table("shards").to_pylist())

    publication.make(folder.parent, folder, make, restart=restart, quiet=execution.quiet)
    return Manifest(out)


def _made_in(out: Location, work: Path | None, what: str) -> Path:
    """Returns the folder in which something is made for a bucket; BuildError if there is none, or one for a folder."""
    if isinstance(out, StoredPath) == (work is not None):
        return Path() if work is None else work.absolute() / what
    raise BuildError(
        f"{out}: needs a work folder on a disk (--work), in which the {what} is made"
        if work is None
        else f"{out}: is made beside where it will be; a work folder is for buckets"
    )

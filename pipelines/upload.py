"""Builds whose dataset is published in a bucket: it is made on a disk, and uploaded, dataset.json last."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from faceshards.dataset.manifest import Manifest
from faceshards.errors import BuildError
from faceshards.progress import logging_at
from faceshards.storage.location import Location, StoredPath
from pipelines import workspace
from pipelines.build import build
from pipelines.config import BuildConfig
from pipelines.publication import INSTEAD, File, Publication, dataset_files
from pipelines.runner import Execution
from pipelines.sources.base import SourceFile
from pipelines.survey import ask

_NO_OVERWRITE = f"in a bucket no dataset is replaced: {INSTEAD}"


def build_at(
    name: str,
    files: Sequence[SourceFile],
    out: Location,
    config: BuildConfig,
    execution: Execution,
    *,
    work: Path | None = None,
    exclude: Sequence[Path] = (),
    strict: bool = False,
    overwrite: bool = False,
    restart: bool = False,
    **options: Any,
) -> Manifest:
    """Returns the dataset published at `out`, a folder or a prefix in a bucket; see pipelines.build.build.

    Args:
        name: of the dataset.
        files: its sources.
        out: where to publish.
        config: what decides the result.
        execution: how it is run.
        work: of a bucket only, and needed there: a folder in which the dataset is made before it is uploaded.
        exclude: verification sets (.bin); what is a picture of theirs is dropped.
        strict: publish nothing if the sources are unsound.
        overwrite: replace a dataset that is published at `out`; not in a bucket.
        restart: throw away an interrupted build, and its upload.
        options: more of them.

    Raises:
        BuildError: cannot start, go on, or publish; an interrupted build stays resumable.
        StorageError: the store refuses, or does not answer.
    """
    rest: dict[str, Any] = {**options, "exclude": exclude, "strict": strict, "restart": restart}
    if isinstance(out, Path):
        if work is not None:
            raise BuildError(f"{out}: is made beside where it will be; a work folder is for buckets")
        return build(name, files, out, config, execution, **rest, overwrite=overwrite)
    if work is None:
        raise BuildError(f"{out}: needs a work folder on a disk (--work), in which the dataset is made")
    if overwrite:
        raise BuildError(f"{out}: {_NO_OVERWRITE}")
    local = made_in(work)
    publication = _publication(out, ask(name, files, local, config, exclude).request)
    if publication.is_whole():
        found = workspace.published(out, publication.request, strict, INSTEAD)
        publication.tidy(local)
        return found

    def make() -> list[File]:
        with logging_at("pipelines.workspace", logging.ERROR):  # of one that waits to be uploaded
            return dataset_files(build(name, files, local, config, execution, **rest))

    publication.make(work, local, make, restart=restart, quiet=execution.quiet)
    return Manifest(out)


def made_in(work: Path) -> Path:
    """Returns the folder in which a dataset for a bucket is made."""
    return work.absolute() / "dataset"


def _publication(out: StoredPath, request: dict[str, Any]) -> Publication:
    return Publication(out, "dataset.json", request)


def in_the_way(
    name: str, files: Sequence[SourceFile], out: StoredPath, work: Path, config: BuildConfig, options: dict[str, Any]
) -> list[str]:
    """Returns why a build would be refused at a prefix, or nothing; for a plan.

    Args:
        name, files, out, work, config: as build_at() has them.
        options: likewise; those that it names are looked at.
    """
    publication = _publication(out, ask(name, files, made_in(work), config, options["exclude"]).request)
    if options["overwrite"]:
        return [f"{out}: {_NO_OVERWRITE}"]
    try:
        if publication.is_whole():
            workspace.published(out, publication.request, options["strict"], INSTEAD)
        else:
            publication.check(options["restart"])
    except BuildError as error:
        return [str(error)]
    return []

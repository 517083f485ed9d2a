"""Builds whose dataset is published in a bucket: made there piece by piece, or on a disk and then uploaded.

With a work folder on a disk the dataset is made in it, and uploaded. With a work prefix in a bucket, workers put what
they make there, and the shards at once where they will be published: no two machines share a disk. Either way
dataset.json comes last (prefix.py). What was uploaded is known by size and SHA-256.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from faceshards.dataset.manifest import Manifest
from faceshards.errors import BuildError
from faceshards.files import json_bytes
from faceshards.progress import logging_at
from faceshards.reading import for_arrow
from faceshards.storage.lease import Lease
from faceshards.storage.location import Location, StoredPath
from pipelines import prefix, workspace
from pipelines.build import Build, build
from pipelines.config import BuildConfig
from pipelines.publication import INSTEAD, Publication
from pipelines.runner import Execution
from pipelines.shuffle import spills
from pipelines.sources.base import SourceFile
from pipelines.sources.catalog import Dataset
from pipelines.sources.find import check_outside
from pipelines.survey import Asked, Survey, ask

_NO_OVERWRITE = f"in a bucket no dataset is replaced: {INSTEAD}"


def build_at(
    name: str,
    files: Sequence[SourceFile],
    out: Location,
    config: BuildConfig,
    execution: Execution,
    *,
    work: Location | None = None,
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
        work: of a bucket only, and needed there: a folder in which the dataset is made before it is uploaded, or a
            prefix in a bucket, for workers that share no disk.
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
        raise BuildError(f"{out}: needs a work folder (--work), on a disk or in a bucket, in which the dataset is made")
    if overwrite:
        raise BuildError(f"{out}: {_NO_OVERWRITE}")
    check_outside(out, files)
    if isinstance(work, StoredPath):
        prefix.check_apart(work, out, [file.path for file in files])
    asked = ask(name, files, out if isinstance(work, StoredPath) else made_in(work), config, exclude)
    publication = Publication(out, "dataset.json", asked.request)
    if publication.is_whole():
        found = workspace.published(out, asked.request, strict, INSTEAD)
        if isinstance(work, StoredPath):
            (out / prefix.MARK).unlink()
            prefix.clear_same(work, asked.request)
        else:
            publication.tidy(made_in(work))
        return found
    if isinstance(work, StoredPath):
        with prefix.claimed(out, publication.last, asked.request, restart) as lease:
            _build_there(asked, files, out, work, config, execution, lease, strict, restart, **options)
        return Manifest(out)
    local = made_in(work)

    def make() -> list[prefix.File]:
        with logging_at("pipelines.workspace", logging.ERROR):  # of one that waits to be uploaded
            made = build(name, files, local, config, execution, **rest)
        return prefix.files_of(made.info, made.table("shards").to_pylist())

    publication.make(work, local, make, restart=restart, quiet=execution.quiet)
    return Manifest(out)


def _build_there(
    asked: Asked,
    files: Sequence[SourceFile],
    out: StoredPath,
    work: StoredPath,
    config: BuildConfig,
    execution: Execution,
    lease: Lease,
    strict: bool,
    restart: bool,
    *,
    expected: Dataset | None = None,
    warnings: Sequence[str] = (),
) -> None:
    """Builds with every piece in a bucket; see build_at()."""
    with prefix.exclusive_work(work), workspace.resumable(work):
        if restart:
            workspace.clear(work)
        pieces = workspace.claim(work, asked.request)
        spilled = spills(execution.shuffle, [file.path for file in files])
        survey = Survey(asked, files, pieces, config, execution, warnings, spilled=spilled)
        info = Build(survey, out, expected, strict, spilled).run()
        shards = pq.read_table(for_arrow(out / "manifest" / "shards.parquet")).to_pylist()
        prefix.publish(out, prefix.files_of(info, shards), "dataset.json", json_bytes(info), lease)
        workspace.clear(work)


def made_in(work: Path) -> Path:
    """Returns the folder in which a dataset for a bucket is made."""
    return work.absolute() / "dataset"


def in_the_way(
    name: str,
    files: Sequence[SourceFile],
    out: StoredPath,
    work: Location,
    config: BuildConfig,
    options: dict[str, Any],
) -> list[str]:
    """Returns why a build would be refused at a prefix, or nothing; for a plan.

    Args:
        name, files, out, work, config: as build_at() has them.
        options: likewise; those that it names are looked at.
    """
    check_outside(out, files)
    request = ask(
        name, files, out if isinstance(work, StoredPath) else made_in(work), config, options["exclude"]
    ).request
    if options["overwrite"]:
        return [f"{out}: {_NO_OVERWRITE}"]
    try:
        if (out / "dataset.json").exists():
            workspace.published(out, request, options["strict"], INSTEAD)
        elif not options["restart"]:
            prefix.refused(out, request)
    except BuildError as error:
        return [str(error)]
    return []

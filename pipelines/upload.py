"""A build whose dataset is published in a bucket: it is made on a disk, and uploaded, dataset.json last.

Until dataset.json is there, no reader takes what lies at the prefix for a dataset. A mark, the first object, says whose
upload it is: the same request goes on with it, another one is refused. What was uploaded is known by size and SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from faceshards.dataset.manifest import Manifest
from faceshards.errors import BuildError
from faceshards.files import difference
from faceshards.locks import BusyError, exclusive_folder
from faceshards.progress import Progress, logging_at
from faceshards.reading import open_file
from faceshards.storage.faults import MissingError, TakenError
from faceshards.storage.location import Location, StoredPath
from pipelines import workspace
from pipelines.build import build
from pipelines.config import BuildConfig
from pipelines.runner import Execution
from pipelines.sources.base import SourceFile
from pipelines.survey import ask

log = logging.getLogger(__name__)

MARK = ".faceshards-upload.json"

_INSTEAD = "choose another prefix, or remove what is there"
_NO_OVERWRITE = f"in a bucket no dataset is replaced: {_INSTEAD}"
_AT_ONCE = 2  # files in flight, each of some pieces


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
    request = ask(name, files, local, config, exclude).request
    if (out / "dataset.json").exists():
        found = workspace.published(out, request, strict, _INSTEAD)
        (out / MARK).unlink()
        return found
    try:
        with exclusive_folder(work, "lock"):
            if restart:
                shutil.rmtree(local, ignore_errors=True)
                _clear(out)
            goes_on = _claim(out, request)
            with logging_at("pipelines.workspace", logging.ERROR):  # of one that waits to be uploaded
                made = build(name, files, local, config, execution, **rest)
            _upload(made, out, execution.quiet, goes_on)
            shutil.rmtree(local)
    except BusyError as error:
        raise BuildError(f"{work}: another build (process {error.holder}) is at work there") from None
    return Manifest(out)


def made_in(work: Path) -> Path:
    """Returns the folder in which a dataset for a bucket is made."""
    return work.absolute() / "dataset"


def _claim(out: StoredPath, request: dict[str, Any]) -> bool:
    """Returns whether an upload of this request was begun; if none was, the prefix is this one's now.

    Raises:
        BuildError: something else is there.
    """
    mark = _mark(request)
    if _is_free(out):
        try:
            (out / MARK).make_alone(mark)
            return False
        except TakenError:
            pass  # just now, by another build
    _check_mark(out, mark)
    return True


def _mark(request: dict[str, Any]) -> bytes:
    digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
    return json.dumps({"request": digest}).encode()


def _is_free(out: StoredPath) -> bool:
    """Returns whether nothing is there, not even an interrupted upload; BuildError if it is anything else."""
    if (out / MARK).exists():
        return False
    if out.is_dir():
        raise BuildError(f"{out}: objects lie there, and no dataset of ours; they are not touched")
    return True


def _check_mark(out: StoredPath, mark: bytes) -> None:
    """Raises BuildError if an upload is another request's."""
    with open_file(out / MARK) as file:
        if file.read_at(0, len(mark) + 1) != mark:
            raise BuildError(
                f"{out}: an interrupted upload of another request lies there; choose another prefix, or pass --restart "
                "to remove it"
            )


def in_the_way(
    name: str, files: Sequence[SourceFile], out: StoredPath, work: Path, config: BuildConfig, options: dict[str, Any]
) -> list[str]:
    """Returns why a build would be refused at a prefix, or nothing; for a plan.

    Args:
        name, files, out, work, config: as build_at() has them.
        options: likewise; those that it names are looked at.
    """
    request = ask(name, files, made_in(work), config, options["exclude"]).request
    if options["overwrite"]:
        return [f"{out}: {_NO_OVERWRITE}"]
    try:
        if (out / "dataset.json").exists():
            workspace.published(out, request, options["strict"], _INSTEAD)
        elif not _is_free(out) and not options["restart"]:
            _check_mark(out, _mark(request))
    except BuildError as error:
        return [str(error)]
    return []


def _clear(out: StoredPath) -> None:
    """Removes what an interrupted upload left; nothing else."""
    if (out / MARK).exists():
        for place, _ in out.tree():
            if place.name != MARK:
                place.unlink()
        (out / MARK).unlink()


class _File(NamedTuple):
    """A file of a dataset."""

    name: str
    bytes: int
    sha256: str
    images: int = 0


def _files(manifest: Manifest) -> list[_File]:
    """Returns every file of a dataset but dataset.json."""
    found = [_File(name, entry["bytes"], entry["sha256"]) for name, entry in manifest.info["files"].items()]
    for shard in manifest.table("shards").to_pylist():
        found.append(_File(f"shards/{shard['file']}", shard["bytes"], shard["sha256"], shard["rows"]))
        found.append(_File(f"shards/{shard['file']}.db", shard["db_bytes"], shard["db_sha256"]))
    return found


def _upload(manifest: Manifest, out: StoredPath, quiet: bool, goes_on: bool) -> None:
    """Uploads a dataset's files; dataset.json when all others are known to be there.

    Args:
        manifest: of the dataset on the disk.
        out: where to.
        quiet: no progress bar.
        goes_on: some may be there already.

    Raises:
        BuildError: a file is not what was built, or the objects are not those of the dataset.
    """
    files = _files(manifest)

    def put(file: _File) -> _File:
        place = out / file.name
        if not (goes_on and _is_there(place, file)):
            path = manifest.path / file.name
            assert isinstance(path, Path)
            if problem := difference(path, file.bytes, file.sha256, "the manifest"):
                raise BuildError(f"{problem}; pass --restart to build it anew")
            place.upload(path, file.sha256)
        return file

    with Progress("upload", sum(file.bytes for file in files), quiet) as progress, ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            for file in pool.map(put, files):
                progress.advance(file.bytes, file.images)
        finally:
            pool.shutdown(cancel_futures=True)
    there = {str(place): size for place, size in out.tree() if place != out / MARK}
    if there != {str(out / file.name): file.bytes for file in files}:
        raise BuildError(f"{out}: other objects came there while it was uploaded, or some were lost; run it again")
    with open_file(manifest.path / "dataset.json") as about:
        content = about.read_at(0, about.size)
    try:
        (out / "dataset.json").write_bytes(content, exclusive=True)
    except TakenError:
        if Manifest(out).info != manifest.info:
            raise BuildError(f"{out}: another build published there meanwhile") from None
    (out / MARK).unlink()


def _is_there(place: StoredPath, file: _File) -> bool:
    """Returns whether an object is a file that was uploaded before."""
    try:
        return place.sha256() == (file.bytes, file.sha256)
    except MissingError:
        return False

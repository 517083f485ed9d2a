"""Where builds, exports and splits work: one at a time, resumable by the same request only, published by one rename."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from faceshards.dataset.manifest import Manifest
from faceshards.dataset.schema import SCHEMA_VERSION
from faceshards.errors import BuildError, EmptyDatasetError, ShardError, UnsoundError, disk_full, why
from faceshards.files import bytes_text, differences, fsync, fsync_tree, told, write_json
from faceshards.formats.json_files import read_json
from faceshards.formats.mindrecord.writer import FORBIDDEN
from faceshards.locks import BusyError, exclusive_folder
from faceshards.storage.faults import StorageError
from faceshards.storage.location import Location, StoredPath, as_location, lies_in
from pipelines import prefix
from pipelines.config import BuildConfig
from pipelines.sources.base import SourceFile
from pipelines.stages.doubts import broken

log = logging.getLogger(__name__)

Work = TypeVar("Work", Path, StoredPath)

_BEFORE_DECISIONS = ("image_size", "max_pixels", "nested", "labels", "filters")
"""Settings that are heeded before anything is decided: a plan under other ones begins anew."""


def work_folder(out: Path, what: str = "build") -> Path:
    """Returns the folder beside `out` in which it is made by a build, an ``export`` or a ``split``, or sampled by a
    ``sample``."""
    ending = "ting" if what == "split" else "ing"
    return out.with_name(f".{out.name}.{what.removesuffix('e')}{ending}")


def check_output(out: Path) -> None:
    """Refuses a place where no dataset can be published.

    Raises:
        BuildError: the path has characters that MindRecord forbids, or something else is in the way, or around it.
    """
    bad = sorted(set(str(out)) & (FORBIDDEN - {"/"}))
    if bad:
        raise BuildError(f"{out}: has {' '.join(bad)} in it, which MindRecord forbids in names; choose another path")
    if out.exists() and not (out / "dataset.json").is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise BuildError(f"{out}: exists and is no dataset of ours; it is not touched")
    prefix.check_outside(out)


def check_apart(manifest: Manifest, out: Location) -> None:
    """Refuses a place that lies where it would be taken for a part of something else, or that no rename can make.

    Args:
        manifest: the dataset that `out` is made of.
        out: as it is without links.

    Raises:
        BuildError: says what is there.
    """
    home = manifest.path.resolve()
    if lies_in(out, home):
        raise BuildError(f"{out}: lies in the dataset {manifest.path}, and would be taken for a part of it")
    for source in manifest.info.get("sources", []):
        path = as_location(source["path"]).resolve()
        folder = path if source.get("kind") == "folder" else path.parent
        # A folder that holds the dataset too is where somebody keeps everything, not the source. So is a whole bucket.
        everything = lies_in(home, folder) or (isinstance(folder, StoredPath) and not folder.key)
        if lies_in(out, folder) and not everything:
            raise BuildError(f"{out}: lies in the source {folder}, and would be taken for a part of it")
    if isinstance(out, Path) and os.path.ismount(out):
        raise BuildError(f"{out}: a disk is mounted there, so it cannot appear by rename; name a folder in it")


@contextmanager
def exclusive(out: Path, what: str = "build") -> Iterator[Path]:
    """Yields the work folder of `out`, locked against a second build until the end, or the death, of this one.

    Args:
        out: what is going to be published.
        what: makes it, a build, an ``export`` or a ``split``.

    Raises:
        BuildError: another build holds it.
        FaceshardsError: the folder cannot be made.
    """
    work = work_folder(out, what)
    try:
        with exclusive_folder(work, "lock"):
            yield work
    except BusyError as error:
        raise BuildError(f"{out}: another {what} (process {error.holder}) is writing it") from None


def describe(
    name: str, files: Sequence[SourceFile], config: BuildConfig, excluded: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """Returns what decides the published bytes, as JSON has it.

    Args:
        name: of the dataset.
        files: its sources.
        config: every setting.
        excluded: name and digest of each set whose pictures are kept out.
    """
    request = {
        "name": name,
        "schema_version": SCHEMA_VERSION,
        "config": dataclasses.asdict(config),
        "sources": [dataclasses.asdict(file) for file in files],
    }
    if config.filter_reasons:
        request["reasons"] = list(config.filter_reasons)
    if excluded:
        request["exclude"] = list(excluded)
    return dict(json.loads(json.dumps(request)))


def published(out: Location, request: dict[str, Any], strict: bool, instead: str = "") -> Manifest:
    """Returns the dataset at `out` if it is what was asked for.

    Args:
        out: where a dataset is published.
        request: what is asked for.
        strict: it may not be unsound.
        instead: what to do where it is another one, in a bucket.

    Raises:
        BuildError: it is another one.
    """
    found = Manifest(out)
    asked = {key: request.get(key) for key in ("name", "config", "sources", "exclude", "split")}
    published = {key: found.info.get(key) for key in asked}
    published["config"] = {**dataclasses.asdict(BuildConfig()), **found.info["config"]}  # settings that came later
    if differences(published, asked):
        instead = instead or (
            "choose another folder, or remove it" if "split" in request else "--overwrite replaces it"
        )
        raise BuildError(f"{out}: a dataset is published there, from another request; {instead}")
    if strict and (lines := found.info.get("unsound") or broken(request["name"], found.totals)):
        raise BuildError(
            f"{out}: published there without --strict: {'; '.join(lines)}; remove it, or build without --strict"
        )
    done = "split off the same dataset as asked" if "split" in request else "built from the same sources and settings"
    log.warning("%s: already %s; nothing to do", out, done)
    return found


def claim(work: Work, request: dict[str, Any], what: str = "build") -> Work:
    """Returns where the pieces of this build lie, of an interrupted one, or of a plan: `work`, or a prefix in it.

    In a bucket each request has pieces of its own: workers that nobody told of a new one still put some of the last.

    Args:
        work: the work folder, locked.
        request: what is to be built: config and sources, plain JSON values.
        what: makes it, a build, an ``export`` or a ``split``; or looks at it, a ``plan`` or a ``sample``.

    Raises:
        BuildError: what is there had another request; the message shows what differs.
    """
    path, planned = work / "request.json", work / "planned"
    if not path.exists():
        if what == "plan":
            planned.write_bytes(b"")
        write_json({**request, **prefix.own_pieces(work)}, path)
    try:
        before: dict[str, Any] = read_json(path)
        own: dict[str, str] = {"pieces": before.pop("pieces")} if isinstance(work, StoredPath) else {}
    except StorageError:
        raise
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise BuildError(f"{path}: damaged: {error}; remove {work} to start again") from None
    pieces = work / own["pieces"] if own else work
    different = differences(before, request)
    if different and planned.exists() and not differences(_signed(before), _signed(request)):
        _forget_decisions(pieces)
        write_json({**request, **own}, path)
    elif different:
        begun = "a plan" if planned.exists() else f"an interrupted {what}"
        raise BuildError(
            f"{work}: {begun} has another request ({told(different, 'then', 'now')}); repeat it as it was, or pass "
            "--restart to begin anew"
        )
    if what == "build":
        planned.unlink(missing_ok=True)
    return pieces


def _signed(request: dict[str, Any]) -> dict[str, Any]:
    """Returns what of a request decides about its record tables, and whether they may be made."""
    config = request["config"]
    return {**request, "exclude": None, "config": {name: config.get(name) for name in _BEFORE_DECISIONS}}


def _forget_decisions(work: Location) -> None:
    """Removes the decisions, in one step: half of them would be taken for all."""
    if isinstance(work, StoredPath):
        (work / "decisions" / "facts.json").unlink()  # without it there are none
        return
    away = work / ".decisions"
    shutil.rmtree(away, ignore_errors=True)
    if (work / "decisions").exists():
        os.replace(work / "decisions", away)
        shutil.rmtree(away)


def check_space(folder: Path, need: int, what: str = "build", about: str = "") -> None:
    """Refuses to start what cannot end.

    Args:
        folder: on the disk that is written to.
        need: bytes.
        what: needs them, a build, an ``export`` or a ``split``.
        about: what more there is to say of them.

    Raises:
        BuildError: fewer than `need` bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if free < need:
        raise BuildError(f"{folder}: {bytes_text(free)} free, the {what} needs about {bytes_text(need)}{about}")


def size(work: Location) -> int:
    """Returns the bytes of all that lies in a work folder."""
    if isinstance(work, StoredPath):
        return sum(size for _, size in work.tree())
    return sum(path.stat().st_size for path in work.rglob("*") if path.is_file())


def publish(dataset: Path, out: Path, work: Path) -> None:
    """Renames a finished dataset to `out` and removes the work folder; what was at `out` goes with it."""
    fsync_tree(dataset)
    if out.is_dir() and any(out.iterdir()):
        os.replace(out, work / "replaced")
    os.replace(dataset, out)
    fsync(out.parent)
    shutil.rmtree(work, ignore_errors=True)


@contextmanager
def resumable(work: Location, begun: str = "records/part-*") -> Iterator[None]:
    """Leaves what was done in a work folder when the work ends in an error; an error of the disk is one line then.

    Args:
        work: the work folder.
        begun: pattern of files there; without one there is nothing to go on from, and the folder is removed.

    Raises:
        BuildError: for an OSError, or a shard that the disk refused.
    """
    try:
        yield
    except BaseException as error:
        # What holds nothing to go on from would only refuse the next request.
        if isinstance(error, EmptyDatasetError | UnsoundError) or not _has(work, begun, error):
            remove(work)
        if isinstance(error, ShardError) and error.errno:
            error = OSError(error.errno, os.strerror(error.errno), str(error.path))
        if isinstance(error, OSError):
            raise explain_os_error(error, work) from None
        raise


def _has(work: Location, begun: str, error: BaseException) -> bool:
    """Returns whether there is something to go on from."""
    return prefix.has_pieces(work, begun, error) if isinstance(work, StoredPath) else any(work.glob(begun))


def remove(work: Location) -> None:
    """Removes a work folder; of a prefix what is a build's, its lock apart, which is its holder's to remove."""
    if isinstance(work, StoredPath):
        prefix.clear_work(work)
    else:
        shutil.rmtree(work, ignore_errors=True)


def explain_os_error(error: OSError, work: Location) -> BuildError:
    """Returns the one line for an OSError that ended a build."""
    go_on = " and run the same command to go on" if disk_full(error) else ""
    return BuildError(f"{error.filename or work}: {why(error)}{go_on}")


def clear(work: Location) -> None:
    """Empties the work folder, the lock apart."""
    if isinstance(work, StoredPath):
        prefix.clear_work(work)
        return
    for entry in work.iterdir():
        if entry.name != "lock":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

"""Checks a published dataset against its manifest: every file's checksum, every row's bytes, every sum.

Or a sample of the rows: then the images' own files are not read whole.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from faceshards.checksums import difference, there_difference
from faceshards.dataset.manifest import Manifest, fingerprint
from faceshards.dataset.row_check import COLUMNS, Finding, check_rows
from faceshards.dataset.schema import IDENTITY
from faceshards.errors import FaceshardsError
from faceshards.formats.mindrecord.index import verify_index
from faceshards.formats.mindrecord.reader import Shard
from faceshards.reading import open_file
from faceshards.storage.faults import MissingError, StorageError
from faceshards.storage.location import Location, StoredPath

Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Sample:
    """Rows to be looked at in place of all: so many, each row as likely as any other.

    Args:
        images: how many.
        seed: of the choice.
    """

    images: int
    seed: int = 0

    def rows(self, sizes: np.ndarray) -> Iterator[np.ndarray]:
        """Yields the rows of each shard, ascending; `sizes` (S,) are the numbers of their rows."""
        images = min(self.images, int(sizes.sum()))
        drawn = np.random.default_rng(self.seed).multivariate_hypergeometric(sizes, images, method="marginals")
        for shard, (size, count) in enumerate(zip(sizes.tolist(), drawn.tolist(), strict=True)):
            yield np.sort(np.random.default_rng((self.seed, shard)).choice(size, count, replace=False))


def _finding(manifest: Manifest, line: str) -> Finding:
    """Returns what a line says that begins with the path of a file of the dataset."""
    root = str(manifest.path)
    name, _, text = line.removeprefix(root).partition(": ")
    return Finding(f"{root}{name}", text)


def check_books(totals: dict[str, Any], identities: pa.Table, shards: pa.Table) -> Iterator[str]:
    """Yields each sum that does not add up: kept + dropped = scanned, in all and for every identity."""
    dropped = sum(totals["dropped"].values())
    if totals["kept"] + dropped != totals["scanned"]:
        yield f"kept {totals['kept']} + dropped {dropped} is not scanned {totals['scanned']}"
    reasons = [name for name in identities.column_names if name not in IDENTITY]
    frame = {name: identities[name].to_numpy() for name in ("scanned", "kept", *reasons)}
    lost = frame["scanned"] - frame["kept"] - sum(frame[reason] for reason in reasons)
    for row in lost.nonzero()[0].tolist():
        yield f"identity {identities['label_original'][row].as_py()}: {lost[row]} images are in no column"
    for name in ("scanned", "kept"):
        if (total := int(frame[name].sum())) != totals[name]:
            yield f"the identities' {name} sum up to {total}, not {totals[name]}"
    yield from (f"identities has no column {reason}" for reason in totals["dropped"] if reason not in reasons)
    for reason in reasons:
        if (total := int(frame[reason].sum())) != totals["dropped"].get(reason, 0):
            yield f"the identities' {reason} sum up to {total}, not {totals['dropped'].get(reason, 0)}"
    if (rows := sum(shards["rows"].to_pylist())) != totals["kept"]:
        yield f"the shards hold {rows} rows, not {totals['kept']}"
    if len(shards) != totals["shards"]:
        yield f"{len(shards)} shards, not {totals['shards']}"
    if (present := len(identities) - identities["label"].null_count) != totals["identities"]:
        yield f"{present} identities with images, not {totals['identities']}"


def verify(
    manifest: Manifest, sample: Sample | None = None, advance: Callable[[int, int], None] = lambda work, images: None
) -> Iterator[Finding]:
    """Yields each mismatch between a dataset's files and its manifest, and each file that is no part of it.

    Reads every byte once more than it has to: file checksums and row checksums are independent proofs. What a damaged
    table says is not looked at. Of the shards' rows a few row groups are held at a time.

    Args:
        manifest: of the dataset.
        sample: rows to be looked at in place of all. Then shards and their indexes are not compared with their own
            checksums, only with their sizes, and so are parts of `images` from which no row comes.
        advance: told after each shard its bytes, and how many images were looked at in it.
    """
    seen = set()
    for line in _tables(manifest, sample):
        seen.add(str(_finding(manifest, line)))
        yield _finding(manifest, line)
    for finding in _beyond_tables(manifest, sample, advance):
        if str(finding) not in seen:  # a table that could not be read then says so again
            yield finding


def _tables(manifest: Manifest, sample: Sample | None) -> Iterator[str]:
    """Yields a line for each damaged table or part of one."""

    def problem(name: str) -> str | None:
        if sample is not None and name.startswith("manifest/images.parquet"):  # compared when a row of it is read
            return there_difference(manifest.path / name, manifest.info["files"][name]["bytes"], "dataset.json")
        return manifest.table_files.mismatch(name)

    yield from filter(None, _in_threads(problem, manifest.info["files"]))


def _opens(path: Location) -> bool:
    """Returns whether a file can be read at all."""
    try:
        open_file(path).close()
    except OSError:
        return False
    return True


def _in_threads(function: Callable[[Item], Found], items: Iterable[Item]) -> Iterator[Found]:
    """Yields what a function says of each item, in their order; few are looked at ahead of it."""
    waiting: deque[Future[Found]] = deque()
    threads = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _beyond_tables(manifest: Manifest, sample: Sample | None, advance: Callable[[int, int], None]) -> Iterator[Finding]:
    """Yields what is wrong with the books, the fingerprint and the shards, and files that do not belong there."""
    try:
        shards = manifest.table("shards").sort_by("shard")
    except FaceshardsError as error:
        _end_if_lost(error)
        yield _finding(manifest, str(error))
        yield Finding(str(manifest.path / "shards"), "not looked at, without the table shards")
        return
    yield from _strangers(manifest, shards["file"].to_pylist())
    if fingerprint(shards) != manifest.fingerprint:
        yield Finding(str(manifest.path), "the fingerprint is not that of the table shards")
    try:
        for line in check_books(manifest.totals, manifest.table("identities"), shards):
            yield Finding(str(manifest.path), line)
    except FaceshardsError as error:
        _end_if_lost(error)
        yield _finding(manifest, str(error))
    rows = repeat(None, len(shards)) if sample is None else sample.rows(shards["rows"].to_numpy())

    def look(work: tuple[dict[str, Any], np.ndarray | None]) -> tuple[list[Finding], int, int]:
        entry, chosen = work
        return list(_shard(manifest, *work)), entry["bytes"], entry["rows"] if chosen is None else len(chosen)

    for findings, size, images in _in_threads(look, zip(shards.to_pylist(), rows, strict=True)):
        yield from findings
        advance(size, images)


def _end_if_lost(error: FaceshardsError) -> None:
    """Raises what a store says that gives nothing: it would say so of each file, and be asked again for minutes."""
    if isinstance(error, StorageError) and not isinstance(error, MissingError):
        raise error


def _strangers(manifest: Manifest, shards: list[str]) -> Iterator[Finding]:
    """Yields each file or folder that nobody published.

    It is a mismatch where those who read a folder whole, as pyarrow and DuckDB do, would take it for a part.
    """
    known = {"dataset.json", *manifest.info["files"]}
    known |= {f"shards/{name}{more}" for name in shards for more in ("", ".db")}
    folders = {"", *(str(place) for name in known for place in list(Path(name).parents)[:-1])}
    for folder in sorted(folders):
        try:
            there = sorted(_entries(manifest.path / folder))
        except OSError:
            continue  # what should be in it is missing
        for name, is_folder in there:
            place = os.path.join(folder, name)
            if place not in known and place not in folders:
                part = folder.endswith(".parquet") and name[0] not in "._"
                part |= folder == "shards" and name.endswith(".mindrecord")
                path = f"{manifest.path / place}{'/' if is_folder else ''}"
                if part:
                    yield Finding(path, "was not published with the dataset; readers of the folder take it for a part")
                else:
                    yield Finding(path, "no part of the dataset", foreign=True)


def _entries(folder: Location) -> list[tuple[str, bool]]:
    """Returns the names in a folder, and whether each is a folder itself; an object may be beside objects below it."""
    if isinstance(folder, StoredPath):
        return [(entry.name, is_prefix) for entry, is_prefix in folder.entries()]
    with os.scandir(folder) as entries:
        return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]


def _shard(manifest: Manifest, entry: dict[str, Any], chosen: np.ndarray | None) -> Iterator[Finding]:
    """Yields what is wrong with a shard: with its files, and with some of its rows (None: all)."""
    path = manifest.shard_path(entry["file"])
    index = path.with_name(f"{path.name}.db")
    problems = []
    for file, size, digest in ((path, entry["bytes"], entry["sha256"]), (index, entry["db_bytes"], entry["db_sha256"])):
        if chosen is None:
            problems.append(difference(file, size, digest, "the manifest"))
        else:
            problems.append(there_difference(file, size, "the manifest"))
    yield from (_finding(manifest, problem) for problem in problems if problem)
    if (problems[0] and not _opens(path)) or (chosen is not None and not len(chosen)):
        return
    try:
        images = manifest.table("images", COLUMNS, shard=entry["shard"]).sort_by("row")
        if (images["row"].to_numpy() != np.arange(len(images))).any():
            yield Finding(str(path), f"the manifest's rows are not 0..{len(images) - 1}")
        right = True
        with Shard(path) as shard:
            for finding in check_rows(shard, images, chosen):
                right = False
                yield finding
        # Else it is not the index that is to blame.
        if chosen is None and not problems[0] and (not problems[1] or _opens(index)):
            verify_index(path, images["bytes"].to_numpy() if right else None)
    except FaceshardsError as error:
        _end_if_lost(error)
        yield _finding(manifest, str(error))
    except OSError as error:
        yield Finding(str(path), str(error.strerror))

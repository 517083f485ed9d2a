"""An export from beginning to end.

In the work folder, every finished piece is a file that appears by rename, so what exists is whole:

    request.json            what is being exported
    plan/                   identities.parquet, bounds.npy and starts.npy: how it is cut
    routed/shard-*.arrow    a shard's rows by piece
    done/piece-*.json       one per piece; its files lie in parts/, or in export/ already
    export/                 what becomes the published folder
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import uuid
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from faceshards.checksums import file_digest, sealed
from faceshards.dataset.manifest import Manifest
from faceshards.files import fsync, write_json, write_parquet
from faceshards.progress import Progress
from faceshards.storage.location import Location, StoredPath, absolute
from faceshards.versions import stamp
from pipelines import workspace
from pipelines.exports import cuts, images, labels
from pipelines.exports.base import ABOUT, IDENTITIES, ExportError, Format, Piece, Request, Written
from pipelines.exports.registry import EXPORTS
from pipelines.exports.request import check_place, describe, published
from pipelines.runner import Execution, Runner, survived
from pipelines.sources.catalog import terms_of

log = logging.getLogger(__name__)

_STEP = 128 << 20  # bytes of a piece: more than a task costs, less than a worker holds
_ROW = 256  # bytes of an image in the work folder: its row by piece


def export(
    dataset: Location, out: Path, request: Request, execution: Execution, *, restart: bool = False
) -> dict[str, Any]:
    """Returns what export.json says once a dataset is exported to `out`.

    Args:
        dataset: its folder, or its prefix in a bucket.
        out: folder to make, by one rename at the end.
        request: which format, and how.
        execution: how it is run.
        restart: throw away an interrupted export.

    Raises:
        ExportError: it cannot start or go on, or the format cannot say what the dataset holds.
        FaceshardsError: the dataset is damaged, or the disk is full; then the export stays resumable.
    """
    out, manifest = Path(os.path.realpath(out)), Manifest(absolute(dataset))
    check_place(manifest, out)
    kind, identities = EXPORTS[request.to], check(manifest, request, out)
    asked = describe(manifest, request)
    with workspace.exclusive(out, "export") as work, workspace.resumable(work, "routed/shard-*"):
        if (out / ABOUT).exists():
            found = published(out, asked)
            shutil.rmtree(work, ignore_errors=True)
            return found
        if restart:
            workspace.clear(work)
        workspace.claim(work, asked, "export")
        done = sum(json.loads(note.read_text())["bytes"] for note in (work / "done").glob("piece-*"))
        need = manifest.totals["image_bytes"] + manifest.totals["kept"] * (kind.BESIDE + _ROW) + (1 << 20)
        workspace.check_space(work, need - done, "export")
        about = _Export(manifest, request, asked, identities, work, execution).run()
        _publish(work, out)
        return about


def check(manifest: Manifest, request: Request, out: Location) -> pa.Table:
    """Returns one row per identity with images, and its label as it is `written`, if all can be said in the format.

    Raises:
        ExportError: it cannot, or such files do not belong where `out` is.
    """
    kind, identities = EXPORTS[request.to], _identities(manifest, request)
    if kind.FILE_EACH and isinstance(out, StoredPath):
        others = ", ".join(name for name, other in EXPORTS.items() if not other.FILE_EACH)
        raise ExportError(
            f"{out}: --to {request.to} is a file for each image, too many for a bucket; choose another format: {others}"
        )
    kind.refuse(manifest.totals["kept"], identities["written"].to_numpy(zero_copy_only=False))
    return identities


def _publish(work: Path, out: Path) -> None:
    """Renames what is finished and on disk to `out`, and removes the work folder."""
    try:
        os.replace(work / "export", out)
    except OSError as error:
        raise ExportError(f"{out}: cannot be made: {error.strerror}; run the same command to go on") from None
    fsync(out.parent)
    shutil.rmtree(work, ignore_errors=True)


def _identities(manifest: Manifest, request: Request) -> pa.Table:
    """Returns one row per identity with images: label, label_original, images, and its label as `written`."""
    columns = ["label", "label_original", "kept"]
    table = manifest.table("identities", columns).drop_null().sort_by("label").rename_columns([*columns[:2], "images"])
    originals, numbers = table["label_original"], EXPORTS[request.to].NUMBERS
    if request.labels == "new":
        digits = len(str(max(0, len(table) - 1)))  # filled up, so that folders sort as labels do
        written: Any = table["label"].to_numpy().astype(np.int64)
        written = written if numbers else [f"{label:0{digits}d}" for label in written.tolist()]
    else:
        written = labels.numbers(originals) if numbers else labels.folder_names(originals)
    return table.append_column("written", pa.array(written))


class _Export:
    """One export in its work folder."""

    def __init__(
        self,
        manifest: Manifest,
        request: Request,
        asked: dict[str, Any],
        identities: pa.Table,
        work: Path,
        execution: Execution,
    ) -> None:
        self.manifest, self.request, self.asked, self.identities = manifest, request, asked, identities
        self.work, self.execution, self.kind = work, execution, EXPORTS[request.to]
        for folder in ("plan", "routed", "rooms", "parts", "done", "export"):
            (work / folder).mkdir(exist_ok=True)

    def run(self) -> dict[str, Any]:
        """Returns what export.json says, after leaving a complete export in the work folder."""
        bounds = self._plan()
        with self.execution.runner() as runner:
            self._route(runner)
            self._write(runner, bounds)
        for left in (self.work / "export").glob(".*"):  # of one that was killed while it wrote under another name
            left.unlink()
        facts = [json.loads(self._done(piece).read_text()) for piece in range(len(bounds) - 1)]
        counts = self.identities["images"].to_numpy()
        written = Written(self.work / "parts", self.work / "export", facts, counts, self._classes())
        warnings = [*self._odd_labels(), *self.kind.finish(written)]
        for warning in warnings:
            log.warning("%s", warning)
        return self._describe(facts, warnings)

    def _routed(self, shard: int) -> Path:
        return self.work / "routed" / f"shard-{shard:05d}.arrow"

    def _done(self, piece: int) -> Path:
        return self.work / "done" / f"piece-{piece:06d}.json"

    def _plan(self) -> np.ndarray:
        """Returns the bounds of the pieces, as the first run of this export cut them."""
        plan = self.work / "plan"
        if not (plan / "bounds.npy").exists():
            write_parquet(self.identities, plan / IDENTITIES)
            if self.kind.BY_IDENTITY:
                starts = np.concatenate([[0], np.cumsum(self.identities["images"].to_numpy())])
            else:
                starts = cuts.shard_starts(self.manifest)
            np.save(plan / "starts.npy", starts)
            bounds = self.kind.bounds(self.manifest, self.request, self.execution.partition_bytes or _STEP)
            np.save(plan / ".bounds.npy", bounds)
            os.replace(plan / ".bounds.npy", plan / "bounds.npy")
        return np.load(plan / "bounds.npy")

    def _route(self, runner: Runner) -> None:
        rows = self.manifest.table("shards", ["rows"])["rows"].to_pylist()
        tasks = []
        with Progress("route", sum(rows), self.execution.quiet) as progress:
            for shard, count in enumerate(rows):
                if self._routed(shard).exists():
                    progress.advance(count, count)
                else:
                    tasks.append(
                        (*(self.manifest.path, shard, self.work / "plan"), self.kind.BY_IDENTITY, self._routed(shard))
                    )
            for task, result in runner.map(images.sort_shard, tasks):
                count = survived(result, f"sorting shard {task[1]}")
                progress.advance(count, count)

    def _write(self, runner: Runner, bounds: np.ndarray) -> None:
        starts = cuts.shard_starts(self.manifest)
        of, digits = len(bounds) - 1, len(str(max(0, self.manifest.totals["scanned"] - 1)))
        tasks = []
        with Progress("write", int(bounds[-1]), self.execution.quiet) as progress:
            for number, (first, stop) in enumerate(pairwise(bounds.tolist())):
                if self._done(number).exists():
                    progress.advance(stop - first, stop - first)
                    continue
                low, high = 0, len(starts) - 1
                if not self.kind.BY_IDENTITY:
                    low, high = np.searchsorted(starts, first, "right") - 1, np.searchsorted(starts, stop, "left")
                routed = [self._routed(shard) for shard in range(low, high)]
                piece = Piece(number, first, digits, of)
                tasks.append((self.request.to, piece, self.manifest.path, routed, self.work, self._done(number)))
            for task, result in runner.map(write_piece, tasks):
                count = survived(result, f"writing piece {task[1].number}")
                progress.advance(count, count)

    def _classes(self) -> int:
        """Returns how many classes a head for the written labels has; for names, how many there are."""
        return int(np.max(self.identities["written"].to_numpy())) + 1 if self.kind.NUMBERS else len(self.identities)

    def _odd_labels(self) -> list[str]:
        """Returns what a user would want to know of the labels."""
        count = len(self.identities)
        if self.kind.NUMBERS:
            if not (more := self._classes() - count):
                return []
            top = f"labels go up to {self._classes() - 1:,}, and {more:,} below it are nobody's"
            return [f"{top}: a head for them needs {self._classes():,} classes"]
        if self.request.labels == "new":
            return []
        pairs = zip(self.identities["written"].to_pylist(), self.identities["label_original"].to_pylist(), strict=True)
        odd = sum(folder != name for folder, name in pairs)
        return [f"{odd:,} folders are not named as their identities: {IDENTITIES} has both names"] if odd else []

    def _describe(self, facts: list[dict[str, Any]], warnings: list[str]) -> dict[str, Any]:
        """Returns what export.json says, written with identities.parquet."""
        info, out = self.manifest.info, self.work / "export"
        write_parquet(self.identities, out / IDENTITIES)
        named = {fact["name"]: {"bytes": fact["bytes"], "sha256": fact["sha256"]} for fact in facts if "name" in fact}
        for path in sorted(path for path in out.iterdir() if path.is_file() and path.name not in (*named, ABOUT)):
            size, sha256 = file_digest(path)
            named[path.name] = {"bytes": size, "sha256": sha256}
            fsync(path)
        about = sealed(
            {
                "name": info["name"],
                **self.asked,
                "totals": {
                    "images": self.manifest.totals["kept"],
                    "identities": len(self.identities),
                    "classes": self._classes(),
                    "image_bytes": self.manifest.totals["image_bytes"],
                },
                "terms": {name: terms_of(name) or "unknown" for name in info["name"].split("+")},
                "sources": [source["name"] for source in info.get("sources", [])],
                "warnings": warnings,
                "dataset_warnings": info["warnings"],
                "versions": stamp()["versions"],
                "files": dict(sorted(named.items())),
            }
        )
        write_json(about, out / ABOUT)
        fsync(out)
        return about


def write_piece(to: str, piece: Piece, dataset: Location, routed: list[Path], work: Path, done: Path) -> int:
    """Returns the images of a piece after writing it, and `done`, which says so with its facts.

    Args:
        to: a key of EXPORTS.
        piece: which.
        dataset: its folder, or its prefix in a bucket.
        routed: what `sort_shard` wrote, of every shard that may have some.
        work: the work folder.
        done: JSON file, written last.

    Raises:
        ShardError: an image is not the manifest's.
    """
    kind: Format = EXPORTS[to]
    rows = images.gather(piece.number, routed, kind.BY_IDENTITY)
    # A room of its own: a worker of a killed export may still be writing the same piece.
    room = work / "rooms" / f"{piece.number:06d}.{uuid.uuid4().hex}"
    room.mkdir()
    try:
        facts = kind.write(piece, images.samples(dataset, rows), room, work / "export")
        for path in sorted(room.iterdir()):
            fsync(path)
            os.replace(path, work / ("export" if kind.IN_PLACE else "parts") / path.name)
    finally:
        shutil.rmtree(room, ignore_errors=True)
    sizes = np.unique(np.stack([rows["height"].to_numpy(), rows["width"].to_numpy()], 1), axis=0)[:2].tolist()
    write_json({**facts, "rows": len(rows), "sizes": sizes}, done)
    return len(rows)

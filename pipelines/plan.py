"""What a build would do, without doing it: what it keeps and drops and why, its shards, its disk and its time.

A plan is a survey of the sources, in the work folder of the build, which goes on from there: no work is done twice. A
sample of identities is surveyed in a folder of its own, which no build ever reads and which goes when the plan is told.
Identities, not records, are drawn: all copies within a chosen one are then found, as in the whole. A copy under another
identity is found only if both are chosen, so there are more conflicts than the scaled figures say.
"""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from faceshards.dataset.schema import CODE
from faceshards.errors import BuildError, EmptyDatasetError
from faceshards.files import bytes_text
from faceshards.formats.mindrecord.writer import shard_bytes
from faceshards.inspection.sizes import spread
from faceshards.reading import for_arrow, load_array
from faceshards.storage.location import Location, StoredPath, absolute
from pipelines import prefix, workspace
from pipelines.config import BuildConfig
from pipelines.filters.quantiles import quantiles
from pipelines.runner import Execution
from pipelines.shuffle import carried, spills
from pipelines.sources.base import SourceFile
from pipelines.sources.catalog import Dataset
from pipelines.stages.balance import shard_count
from pipelines.stages.sign import PartitionFacts
from pipelines.survey import Doubts, Found, Survey, ask, refusal, room

# Bytes of the manifest, measured on sets of 400 to 7,400 images: hashes do not compress, all else nearly vanishes.
_IMAGE_ROW, _IMAGE_PART, _DROPPED_ROW, _IDENTITY_ROW, _CONFLICT_ROW, _REST = 76, 3500, 30, 28, 50, 12_000
# Bytes in the work folder for each image kept, besides its key: where it lies and goes (stages/route.py).
_ROUTED_ROW = 150
# Writing an image and reading it back takes so much of the time of scanning and signing it: 0.16 to 0.36 measured on
# the synthetic set, source and result in memory; a slow disk makes it more.
_WRITING = 0.4
_PLACE = ("label", "shard", "row")  # what is decided for each image that stays


class _Scale(NamedTuple):
    """How many times more there are in the sources than were looked at."""

    images: float
    identities: float

    def count(self, images: int) -> int:
        """Returns the number of images for one among those looked at."""
        return round(images * self.images)


def plan(
    name: str,
    files: Sequence[SourceFile],
    out: Location,
    config: BuildConfig,
    execution: Execution,
    *,
    expected: Dataset | None = None,
    warnings: Sequence[str] = (),
    strict: bool = False,
    overwrite: bool = False,
    restart: bool = False,
    exclude: Sequence[Path] = (),
    share: float = 1.0,
    work: StoredPath | None = None,
) -> dict[str, Any]:
    """Returns what `build` would do with the same arguments, as JSON has it; nothing is made at `out`.

    Args:
        name, files, out, config, execution, expected, warnings, strict, overwrite, restart, exclude: as `build` has
            them.
        share: of the identities that are looked at, above 0 to 1.
        work: prefix in a bucket to do it in, for workers that share no disk.

    Raises:
        BuildError: cannot start or go on; an interrupted plan stays resumable.
        EmptyDatasetError: nothing would be kept.
        SetError: a set to exclude is unusable.
        SourceError: a source is unusable, or its people cannot be told apart.
    """
    out = absolute(out)
    if isinstance(out, StoredPath) and work is not None:
        prefix.check_apart(work, out, [file.path for file in files])
    asked = ask(name, files, out, config, exclude)
    refused = _in_the_way(out, asked.request, strict, overwrite)
    what = "plan" if share == 1 else "sample"
    with _working(out, work, share) as work_folder, workspace.resumable(work_folder):
        if restart:
            workspace.clear(work_folder)
        request = asked.request if share == 1 else {**asked.request, "sample": share}
        pieces = workspace.claim(work_folder, request, what)
        survey = Survey(asked, files, pieces, config, execution, warnings, share)
        with execution.runner() as runner:
            try:
                found = survey.run(runner)
            except EmptyDatasetError as error:
                raise EmptyDatasetError(
                    f"in a sample of {share * 100:g} %: {error}" if share < 1 else str(error)
                ) from None
            workers = runner.workers
        doubts = survey.doubts(found, expected)
        if strict and doubts.unsound:
            refused.append(refusal(doubts.unsound))
        told = _tell(survey, found, doubts, workers)
        if share == 1:
            told["work_folder"] = str(work_folder)
        else:
            workspace.remove(work_folder)
    disk = told["disk"]
    spilled = disk["spilled"] > 0
    needed = max(room(files, spilled), disk["shards"] + disk["tables"] + disk["work"]) - disk["work_now"]
    if isinstance(out, Path) and needed > disk["free"]:
        about = f"{bytes_text(needed)}{carried(sum(file.bytes for file in files) * spilled)}"
        refused.append(f"{out.parent}: {bytes_text(disk['free'])} free, the build needs about {about}")
    return {"out": str(out), **told, "refused": refused}


def _working(out: Location, work: StoredPath | None, share: float) -> AbstractContextManager[Any]:
    """Returns what yields the work folder, or prefix, locked; a sample has its own, beside that of the build."""
    if isinstance(out, Path):
        return workspace.exclusive(out, "build" if share == 1 else "sample")
    assert work is not None
    return prefix.exclusive_work(work if share == 1 else work.with_name(f"{work.name}.sampling"))


def _in_the_way(out: Location, request: dict[str, Any], strict: bool, overwrite: bool) -> list[str]:
    """Returns why a build would not replace what is published at `out`, or nothing."""
    if isinstance(out, StoredPath) or not (out / "dataset.json").exists() or overwrite:
        return []
    try:
        workspace.published(out, request, strict)
    except BuildError as error:
        return [str(error)]
    return []


def _tell(survey: Survey, found: Found, doubts: Doubts, workers: int) -> dict[str, Any]:
    """Returns what a plan says of what a survey found."""
    decided, kept = found.decided, _Kept.read(survey, found)
    scale = _scale(found, survey.share)
    dropped = {reason: scale.count(count) for reason, count in decided["dropped"].items()}
    count = scale.count(decided["kept"])
    identities = survey.identities()
    images = identities["kept"].to_numpy()
    people = np.count_nonzero(~identities["label_original"].is_null().to_numpy())
    image_bytes = round(int(kept.size.sum(dtype=np.int64)) * scale.images)
    shards = decided["shards"] if survey.share == 1 else shard_count(image_bytes, count, survey.config)
    left = math.ceil(count / shards)
    return {
        "name": survey.asked.request["name"],
        "sample": None if survey.share == 1 else survey.share,
        "looked_at": {"images": decided["scanned"], "identities": people},
        "scanned": count + sum(dropped.values()),
        "kept": count,
        "dropped": dropped,
        "identities": round(decided["identities"] * scale.identities),
        "identities_dropped": round((people - decided["identities"]) * scale.identities),
        "conflicts": scale.count(decided["conflicts"]),
        "identity_links": scale.count(decided["identity_links"]),
        "kept_out": {name: scale.count(n) for name, n in decided["dedupe"].get("test_overlap", {}).items()},
        "identity_sizes": spread(images[images > 0]),
        "image_sizes": spread(kept.size),
        "near_duplicate_bits": spread(kept.near_bits),
        "measured": quantiles([survey.records(part) for part in found.partitions]),
        "shards": shards,
        "shard_rows": {"least": count // shards, "most": left},
        "image_bytes": image_bytes,
        "disk": _disk(survey, kept, dropped, count, shards, scale, len(identities), decided.get("geometry", {})),
        "seconds": _seconds(found.facts, count, survey.share, workers),
        "warnings": [*found.warnings, *doubts.unsound, *doubts.odd],
        "unsound": doubts.unsound,
    }


def _scale(found: Found, share: float) -> _Scale:
    """Returns how a sample is scaled: images by their number, which the scan knows, identities by the share."""
    if share == 1:
        return _Scale(1.0, 1.0)
    records = sum(fact.records - fact.structural for fact in found.facts)
    looked_at = found.decided["scanned"] - found.decided["dropped"].get("missing", 0)
    return _Scale(records / max(1, looked_at), 1 / share)


class _Kept(NamedTuple):
    """Columns of the images that would be kept, (n,) each, in order of sid; and what else a threshold acts on."""

    size: np.ndarray  # bytes
    sid: np.ndarray
    label: np.ndarray
    shard: np.ndarray
    row: np.ndarray
    key_bytes: float  # mean length of a key
    near_bits: np.ndarray  # (m,) Hamming bits between each near-duplicate and what stands for it

    @classmethod
    def read(cls, survey: Survey, found: Found) -> _Kept:
        """Returns them from the work folder."""
        decisions = survey.work / "decisions"
        reason = load_array(decisions / "reason.npy")
        sid = np.flatnonzero(reason == 0)
        sizes, key_bytes = [], 0
        for part in found.partitions:
            table = pq.read_table(for_arrow(survey.records(part)), columns=["bytes", "key"], use_threads=False)
            sizes.append(table["bytes"].to_numpy())
            key_bytes += table["key"].nbytes
        label, shard, row = (load_array(decisions / f"{name}.npy")[sid] for name in _PLACE)
        near = load_array(decisions / "distance.npy")[reason == CODE["near_duplicate"]]
        size = np.concatenate(sizes)[sid]
        return cls(size, sid, label, shard, row, key_bytes / len(reason), near.astype(np.int64))


def _disk(
    survey: Survey,
    kept: _Kept,
    dropped: Mapping[str, int],
    count: int,
    shards: int,
    scale: _Scale,
    identities: int,
    geometry: Mapping[str, int],
) -> dict[str, Any]:
    """Returns bytes: of the shards, the tables, the work folder when it is largest, the images carried through it, and
    what is in it now; and what is free, None in a bucket."""
    order = np.lexsort((kept.row, kept.shard))
    if survey.share == 1:
        ends = np.searchsorted(kept.shard[order], np.arange(shards + 1))
        rows = [order[low:high] for low, high in itertools.pairwise(ends)]
        data = sum(shard_bytes(kept.size[at], kept.label[at], kept.sid[at], **geometry) for at in rows)
    else:  # one shard of the whole, of images like those of the sample
        at = np.resize(order, math.ceil(count / shards))
        data = shard_bytes(kept.size[at], kept.label[at], kept.sid[at]) * shards
    lost = sum(dropped.values())
    conflicts = scale.count(pq.read_metadata(for_arrow(survey.work / "decisions" / "conflicts.parquet")).num_rows)
    tables = (
        _IMAGE_ROW * count
        + _IMAGE_PART * shards
        + _DROPPED_ROW * lost
        + _IDENTITY_ROW * round(identities * scale.identities)
        + _CONFLICT_ROW * conflicts
        + _REST
    )
    now = workspace.size(survey.work)
    carries = spills(survey.execution.shuffle, [file.path for file in survey.files])
    spilled = scale.count(int(kept.size.sum(dtype=np.int64))) * carries
    aside = spilled + round(now * scale.images + (_ROUTED_ROW + kept.key_bytes) * count + 4 * _DROPPED_ROW * lost)
    free = shutil.disk_usage(survey.work).free if isinstance(survey.work, Path) else None
    return {"shards": data, "tables": tables, "work": aside, "spilled": spilled, "work_now": now, "free": free}


def _seconds(facts: Sequence[PartitionFacts], count: int, share: float, workers: int) -> dict[str, Any] | None:
    """Returns about how long a build takes on as many workers, scanning and signing apart, and of how long a work that
    was measured; None if it is not known.

    What a partition took is with its record table, so an interrupted plan knows it of all.

    Args:
        facts: of the partitions.
        count: images to write.
        share: of the identities that were looked at.
        workers: how many there are.
    """
    rows, read = (sum(getattr(fact, name) for fact in facts) for name in ("rows", "read"))
    scanning, signing = (sum(getattr(fact, name) for fact in facts) for name in ("scanning", "signing"))
    if not rows or not signing:
        return None
    measured = scanning + signing
    images = sum(fact.records - fact.structural for fact in facts)
    if share < 1:
        scanning, signing = scanning * images / max(1, read), signing * images / rows
    writing = _WRITING * (scanning + signing) * count / max(1, images)
    busy = max(1, min(workers, len(facts)))
    return {
        **{"scan_and_sign": (scanning + signing) / busy, "write": writing / max(1, workers)},
        **{"workers": workers, "measured": measured},
    }

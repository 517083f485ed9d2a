"""A split from beginning to end.

In the work folder, every finished piece is a file that appears by rename, so what exists is whole:

    request.json            what is being split off
    decisions/              what is held out, where the rest goes, and the pairs
    routed/, held/          a shard's rows that stay and that do not
    dropped/part-*.parquet  one per window of sids
    done/shard-*.json       one per shard; its files already lie in dataset/, which becomes the published folder
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from faceshards.dataset.manifest import Manifest
from faceshards.dataset.schema import SCHEMA_VERSION, SCHEMAS
from faceshards.files import write_json, write_parquet
from faceshards.formats.mindrecord.geometry import Geometry, geometry
from faceshards.progress import Progress
from faceshards.reading import fetch
from faceshards.storage.location import Location, absolute
from pipelines import workspace
from pipelines.config import BuildConfig
from pipelines.runner import Execution, Runner, survived
from pipelines.split.plan import Plan, Request, persons, plan
from pipelines.split.rows import WINDOW, Shards, drop, route
from pipelines.split.unseen import PAIRS, SET, write_set
from pipelines.stages.assemble import assemble
from pipelines.stages.balance import Balance, shard_count
from pipelines.stages.write import write

log = logging.getLogger(__name__)


def split(dataset: Location, out: Path, request: Request, execution: Execution, *, restart: bool = False) -> Manifest:
    """Returns the dataset published at `out`: the parent without the identities held out, and a set of their pairs.

    Args:
        dataset: the parent's folder, or its prefix in a bucket.
        out: folder to publish; made by one rename at the end.
        request: what to hold out.
        execution: how it is run.
        restart: throw away an interrupted split.

    Raises:
        SplitError: the dataset has not what is asked for; nothing was made.
        BuildError: cannot start, go on, or publish; an interrupted split stays resumable.
        FaceshardsError: the dataset is damaged.
    """
    out, manifest = Path(os.path.realpath(out)), Manifest(absolute(dataset))
    workspace.check_apart(manifest, out)
    workspace.check_output(out)
    asked = describe(manifest, request)
    identities, planned = check(manifest, request)
    with workspace.exclusive(out, "split") as work, workspace.resumable(work, "routed/shard-*"):
        if (out / "dataset.json").exists():
            found = workspace.published(out, asked, strict=False)
            shutil.rmtree(work, ignore_errors=True)
            return found
        if restart:
            workspace.clear(work)
        workspace.claim(work, asked, "split")
        done = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
        workspace.check_space(work, int(manifest.totals["image_bytes"] * 1.1) + (8 << 20) - done, "split")
        _Split(manifest, identities, planned, request, asked, work, execution).run()
        workspace.publish(work / "dataset", out, work)
    return Manifest(out)


def describe(manifest: Manifest, request: Request) -> dict[str, Any]:
    """Returns what decides the published bytes, as JSON has it."""
    info = manifest.info
    tables = hashlib.sha256(json.dumps(info["files"], sort_keys=True).encode()).hexdigest()
    parent = {"fingerprint": manifest.fingerprint, "tables": tables}
    if "split" in info:
        parent["split"] = info["split"]
    asked: dict[str, Any] = {
        "name": info["name"],
        "schema_version": SCHEMA_VERSION,
        "config": {**dataclasses.asdict(BuildConfig()), **info["config"]},  # settings that came later
        "sources": info.get("sources", []),
        **{key: info[key] for key in ("exclude", "reasons") if key in info},
        "split": {**dataclasses.asdict(request), "parent": parent},
    }
    return dict(json.loads(json.dumps(asked)))


def check(manifest: Manifest, request: Request) -> tuple[pa.Table, Plan]:
    """Returns the table `identities`, and whom to hold out, once it is known that it makes the pairs.

    Raises:
        SplitError: it does not.
    """
    identities = manifest.table("identities")
    present = identities.filter(pc.is_valid(identities["label"])).sort_by("label")
    names = identities["label_original"].combine_chunks()
    linked = pa.concat_tables(
        manifest.table(table, ["label_original_a", "label_original_b"]) for table in ("conflicts", "identity_links")
    )
    a, b = (pc.index_in(column, names).to_numpy().astype(np.int64) for column in linked.columns)
    person = persons(len(names), a, b)[pc.index_in(present["label_original"], names).to_numpy()]
    return identities, plan(present["kept"].to_numpy(), person, request)


class _Split:
    """One split in its work folder."""

    def __init__(
        self,
        manifest: Manifest,
        identities: pa.Table,
        planned: Plan,
        request: Request,
        asked: dict[str, Any],
        work: Path,
        execution: Execution,
    ) -> None:
        self.manifest, self.identities, self.planned, self.request = manifest, identities, planned, request
        self.asked, self.work, self.execution = asked, work, execution
        self.names = [source["name"] for source in asked["sources"]]
        self.decisions, self.data = work / "decisions", work / "dataset"
        for folder in ("routed", "held", "dropped", "done", "dataset/manifest/images.parquet", "dataset/shards"):
            (work / folder).mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        """Leaves a complete dataset in the work folder."""
        totals = self.manifest.totals
        if not self.decisions.exists():
            self._decide()
        decided = json.loads((self.decisions / "facts.json").read_text())
        shards, sizes = decided["shards"], Geometry(**decided.get("geometry", {}))
        old = self.manifest.table("shards", ["rows"])["rows"].to_pylist()
        routed, held = (
            [self.work / folder / f"shard-{shard:05d}.arrow" for shard in range(len(old))]
            for folder in ("routed", "held")
        )
        windows = range(-(-totals["scanned"] // WINDOW))
        dropped = [self.work / "dropped" / f"part-{window:06d}.parquet" for window in windows]
        path, notes = self.manifest.path, [self.work / "done" / f"shard-{shard:05d}.json" for shard in range(shards)]
        parts = (self.data / "manifest" / "images.parquet", self.data / "shards")
        origin = Shards(path, self.names)
        execution = self.execution
        with execution.runner() as runner:
            shared = (path, self.decisions, self.names)
            self._stage(runner, "route", route, [(path, i, *shared[1:], routed[i], held[i]) for i in range(len(old))])
            self._stage(runner, "drop", drop, [(path, i, held, dropped[i]) for i in windows])
            self._stage(runner, "write", write, [(i, origin, sizes, routed, *parts, notes[i]) for i in range(shards)])
        info, planned = self.manifest.info, self.planned
        sids = np.load(self.decisions / "sids.npy")
        warnings = [*self._short(), *write_set(self.manifest, held, sids, planned.same, self.data)]
        for warning in warnings:
            log.warning("%s", warning)
        about = {"file": SET, "pairs": len(planned.same), "possible": planned.possible, "identities": len(planned.held)}
        said = ([*info["warnings"], *warnings], info.get("unsound", []))
        request = {**self.asked, "unseen": about}
        assemble(self.work, self.data, request, dropped, shards, totals.get("structural", 0), *said, (SET, PAIRS))

    def _stage(self, runner: Runner, name: str, function: Callable[..., int], tasks: Sequence[tuple[Any, ...]]) -> None:
        """Runs the tasks whose last file is not there yet."""
        todo = [task for task in tasks if not task[-1].exists()]
        with Progress(name, len(tasks), self.execution.quiet) as progress:
            progress.advance(len(tasks) - len(todo), 0)
            for task, result in runner.map(function, todo):
                progress.advance(1, survived(result, f"{name}, {task[-1].stem}"))

    def _decide(self) -> None:
        """Writes the folder of decisions, whole or not at all."""
        totals, planned = self.manifest.totals, self.planned
        temporary = self.decisions.with_name(f".{self.decisions.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        fresh = np.ones(totals["identities"], np.int32)
        fresh[planned.held] = 0
        fresh = np.where(fresh, np.cumsum(fresh, dtype=np.int32) - 1, -1).astype(np.int32)
        label = np.full(totals["scanned"], -1, np.int32)
        size = np.zeros(totals["scanned"], np.int32)
        gone = []
        with Progress("decide", totals["kept"], self.execution.quiet) as progress:
            for batch in self.manifest.batches("images", ["sid", "label", "bytes"]):
                sids, old, sizes = (column.to_numpy() for column in batch.columns)
                label[sids] = new = fresh[old]
                size[sids] = sizes
                gone.append(np.stack([old[new < 0].astype(np.int64), sids[new < 0]]))
                progress.advance(len(batch), len(batch))
        names = {field.name for field in dataclasses.fields(BuildConfig)} - {"filters"}  # may be another package's
        config = BuildConfig(**{name: self.asked["config"][name] for name in names})
        stays = label >= 0
        rows = int(stays.sum())
        shards = shard_count(int(size[stays].sum(dtype=np.int64)), rows, config)
        placed = Balance(np.zeros(0, np.uint8), label, config.seed).place(shards)
        for name, column in (("label", label), ("shard", placed.shard), ("row", placed.row)):
            np.save(temporary / f"{name}.npy", column)
        np.save(temporary / "sids.npy", self._sids(np.concatenate(gone, 1)))
        for table in ("conflicts", "identity_links"):
            (name,) = self.manifest.files(table)
            self.manifest.check_file(name)
            fetch(self.manifest.path / name, temporary / f"{table}.parquet")
        write_parquet(self._identities(fresh), temporary / "identities.parquet")
        dropped = {**totals["dropped"], "held_out": totals["dropped"].get("held_out", 0) + totals["kept"] - rows}
        facts = {
            "shards": shards,
            "geometry": geometry(placed.by_shard(size))._asdict(),
            "identities": int(fresh.max()) + 1,
            "scanned": totals["scanned"],
            "kept": rows,
            "dropped": {reason: dropped[reason] for reason in self.manifest.reasons if reason in dropped},
            "conflicts": totals["conflicts"],
            "identity_links": totals["identity_links"],
            "dedupe": self.manifest.info.get("dedupe", {}),
        }
        write_json(facts, temporary / "facts.json")
        os.replace(temporary, self.decisions)

    def _sids(self, gone: np.ndarray) -> np.ndarray:
        """Returns (P, 2) int64 the sids of the pairs' pictures.

        Args:
            gone: (2, n) labels and sids of all that is held out.
        """
        labels, sids = gone[:, np.lexsort((gone[1], gone[0]))]
        return sids[np.searchsorted(labels, self.planned.label) + self.planned.place]

    def _identities(self, fresh: np.ndarray) -> pa.Table:
        """Returns the table `identities`: those held out stand before the others of which nothing was kept."""
        table = self.identities
        old, kept = table["label"].fill_null(-1).to_numpy(), table["kept"].to_numpy()
        new = np.where(old >= 0, fresh[old], -1)
        held = (old >= 0) & (new < 0)
        columns = {
            "label": pa.array(new, pa.int32(), mask=new < 0),
            "kept": pa.array(np.where(held, 0, kept)),
            "held_out": pa.array(table["held_out"].to_numpy() + np.where(held, kept, 0)),
        }
        for name, column in columns.items():
            table = table.set_column(table.column_names.index(name), SCHEMAS["identities"].field(name), column)
        return table.take(np.lexsort((np.arange(len(table)), new < 0)))

    def _short(self) -> list[str]:
        """Returns a warning if fewer identities are held out than were asked for."""
        wanted = self.request.count(self.manifest.totals["identities"])
        if (count := len(self.planned.held)) == wanted:
            return []
        why = "more would part identities that are perhaps one person"
        return [f"{count:,} identities are held out, not {wanted:,}: {why}"]

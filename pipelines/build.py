"""A build from beginning to end: the order of the stages, what each finished one leaves behind, and the books.

In the work folder, every finished piece is a file that appears by rename, so what exists is whole:

    request.json            what is being built; partitions.json and the sources' tables: how it is cut
    records/part-*.parquet  scan and sign, one per partition
    decisions/              the global step
    routed/, dropped/       one per partition
    done/shard-*.json       one per shard; its files already lie in dataset/, which becomes the published folder
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from faceshards.dataset.manifest import Manifest
from faceshards.dataset.schema import REASONS, complete
from faceshards.errors import BuildError, EmptyDatasetError, ShardError, SourceError, UnsoundError
from faceshards.files import write_json
from faceshards.progress import Progress
from pipelines import workspace
from pipelines.config import BuildConfig
from pipelines.dedupe.overlap import Pictures
from pipelines.runner import Execution, Runner, WorkerKilledError
from pipelines.sources.base import Partition, SourceFile
from pipelines.sources.catalog import Dataset
from pipelines.sources.find import cut
from pipelines.sources.registry import SOURCES, labels
from pipelines.stages.assemble import assemble
from pipelines.stages.decide import decide, load_columns
from pipelines.stages.doubts import broken, disagreements, lost_people
from pipelines.stages.excluded import sign_sets
from pipelines.stages.label_spaces import join, overlap, spaces
from pipelines.stages.route import route
from pipelines.stages.sign import PartitionFacts, count_rows, partition_facts, probe_rows, sign_partition
from pipelines.stages.write import write

log = logging.getLogger(__name__)


def build(
    name: str,
    files: Sequence[SourceFile],
    out: Path,
    config: BuildConfig,
    execution: Execution,
    *,
    expected: Dataset | None = None,
    warnings: Sequence[str] = (),
    strict: bool = False,
    overwrite: bool = False,
    restart: bool = False,
    exclude: Sequence[Path] = (),
) -> Manifest:
    """Returns the dataset published at `out`.

    Args:
        name: of the dataset.
        files: its sources.
        out: folder to publish; made by one rename at the end.
        config: what decides the result.
        execution: how it is run.
        expected: the known set, whose counts are compared.
        warnings: about the files, from whoever found them; dataset.json has them too.
        strict: publish nothing if records are broken, or counts are not what the sources say.
        overwrite: replace a dataset that is published at `out`.
        restart: throw away an interrupted build.
        exclude: verification sets (.bin); what is a picture of theirs is dropped.

    Raises:
        BuildError: cannot start, go on, or publish; an interrupted build stays resumable.
        SetError: a set to exclude is unusable; before anything is made.
        SourceError: a source is unusable, or its people cannot be told apart.
        UnsoundError: strict, and the sources are not sound.
    """
    out = Path(os.path.abspath(out))
    for file in files:
        if os.path.isdir(file.path) and out.is_relative_to(file.path):
            raise BuildError(f"{out}: lies in the source {file.path}, and would be read as a part of it")
    workspace.check_output(out)
    pictures, about, told = sign_sets(exclude, config.image_size, config.near_across)
    request = workspace.describe(name, files, config, about)
    with workspace.exclusive(out) as work:
        try:
            if (out / "dataset.json").exists() and not overwrite:
                found = workspace.published(out, request, strict)
                shutil.rmtree(work, ignore_errors=True)
                return found
            if restart:
                workspace.clear(work)
            workspace.claim(work, request)
            room = sum(file.bytes for file in files) * 1.1 + (8 << 20)
            done = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
            workspace.check_space(work, int(room) - done)
            _Build(request, list(files), work, config, execution, expected, [*warnings, *told], strict, pictures).run()
            workspace.publish(work / "dataset", out, work)
        except BaseException as error:
            # What holds nothing to go on from would only refuse the next request.
            if isinstance(error, EmptyDatasetError | UnsoundError) or not any((work / "records").glob("part-*")):
                shutil.rmtree(work, ignore_errors=True)
            if isinstance(error, ShardError) and error.errno:
                error = OSError(error.errno, os.strerror(error.errno), str(error.path))
            if isinstance(error, OSError):
                raise workspace.explain_os_error(error, work) from None
            raise
    return Manifest(out)


class _Build:
    """One build in its work folder."""

    def __init__(
        self,
        request: dict[str, Any],
        files: list[SourceFile],
        work: Path,
        config: BuildConfig,
        execution: Execution,
        expected: Dataset | None,
        warnings: list[str],
        strict: bool,
        pictures: Pictures,
    ) -> None:
        self.request, self.files, self.work, self.config = request, files, work, config
        self.execution, self.expected, self.warnings, self.strict = execution, expected, warnings, strict
        self.pictures, self.names = pictures, [file.name for file in files]
        for folder in ("records", "routed", "dropped", "done", "dataset/manifest/images.parquet", "dataset/shards"):
            (work / folder).mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        """Leaves a complete dataset in the work folder."""
        partitions, warnings = self._cut()
        execution = self.execution
        with Runner(execution.workers, execution.scheduler, execution.dashboard) as runner:
            self._check_labels(runner, partitions)
            self._sign(runner, partitions)
            facts = [partition_facts(self._records(part)) for part in partitions]
            if sum(fact.records for fact in facts) == 0:
                raise SourceError(f"{', '.join(self.names)}: no record in it")
            decisions = self.work / "decisions"
            if not decisions.exists():
                self._decide(partitions, facts, runner.workers, decisions)
            decided = json.loads((decisions / "facts.json").read_text())
            unsound, odd = self._doubts(partitions, facts, decided)
            self._route(runner, partitions, facts)
            self._write(runner, partitions, decided["shards"])
        structural = sum(fact.structural for fact in facts)
        dropped = [self._dropped(part) for part in partitions]
        assemble(self.work, self.request, dropped, decided["shards"], structural, [*warnings, *unsound, *odd], unsound)

    def _records(self, part: Partition) -> Path:
        return self.work / "records" / f"part-{part.number:06d}.parquet"

    def _routed(self, part: Partition) -> Path:
        return self.work / "routed" / f"part-{part.number:06d}.arrow"

    def _dropped(self, part: Partition) -> Path:
        return self.work / "dropped" / f"part-{part.number:06d}.parquet"

    def _cut(self) -> tuple[list[Partition], list[str]]:
        """Returns the partitions, as the first run of this build cut them, and warnings about the sources."""
        path = self.work / "partitions.json"
        if not path.exists():
            partitions, told = cut(self.files, self.work, self.execution.partition_bytes)
            for part in partitions:
                if part.start == 0 and not self.config.nested and (doubt := SOURCES[part.kind].doubt(part)):
                    raise SourceError(doubt)
            write_json([[*self.warnings, *told], [dataclasses.asdict(part) for part in partitions]], path)
        try:
            warnings, rows = json.loads(path.read_text())
            partitions = [Partition(**row) for row in rows]
        except (ValueError, TypeError):
            raise BuildError(f"{path}: damaged, or of another release; pass --restart to begin anew") from None
        for warning in warnings:
            log.warning("%s", warning)
        return partitions, warnings

    def _sign(self, runner: Runner, partitions: list[Partition]) -> None:
        """Scans and signs every partition that has no record table yet; quarantines records that kill workers."""
        with Progress("sign", sum(part.stop - part.start for part in partitions), self.execution.quiet) as progress:
            todo = []
            for part in partitions:
                if self._records(part).exists():
                    progress.advance(part.stop - part.start, partition_facts(self._records(part)).rows)
                else:
                    todo.append((part, self.config, self._records(part)))
            for task, result in runner.map(sign_partition, todo):
                part = task[0]
                if isinstance(result, WorkerKilledError):
                    result = self._quarantine(runner, part)
                progress.advance(part.stop - part.start, result.rows)

    def _quarantine(self, runner: Runner, part: Partition) -> PartitionFacts:
        where = f"{part.path}, {part.start}..{part.stop}"
        log.warning("%s: kills its worker; looking for the record", where)
        rows = runner.alone(count_rows, (part,))
        if isinstance(rows, WorkerKilledError):
            raise BuildError(f"{where}: reading it kills the worker")
        killers = runner.find_killers(probe_rows, (part, self.config), 0, rows)
        task = (part, self.config, self._records(part), frozenset(killers))
        result = runner.alone(sign_partition, task)
        if isinstance(result, WorkerKilledError):
            raise BuildError(f"{where}: kills its worker as a whole, but no record of it does alone (out of memory?)")
        return result

    def _decide(self, partitions: list[Partition], facts: list[PartitionFacts], threads: int, out: Path) -> None:
        """Decides over the whole set, once the label spaces of its files are one."""
        rows = [fact.rows for fact in facts]
        with Progress("decide", sum(rows), self.execution.quiet) as progress:
            columns = load_columns([self._records(part) for part in partitions], rows)
            ends = np.cumsum(np.bincount([part.source for part in partitions], rows, len(self.files)).astype(int))
            own = np.split(columns.label, ends[:-1])
            names = join(self.names, partitions, own, self.config.labels == "separate")
            decide(columns, names, self.config, threads, out, self.pictures)
            progress.advance(sum(rows), sum(rows))

    def _check_labels(self, runner: Runner, partitions: list[Partition]) -> None:
        """Raises SourceError if files share labels and no one said what that means; before anything is decoded."""
        if len(self.files) == 1 or self.config.labels != "disjoint" or any((self.work / "records").glob("part-*")):
            return
        found: list[list[np.ndarray]] = [[] for _ in self.files]
        with Progress("labels", len(partitions), self.execution.quiet) as progress:
            for (part,), own in runner.map(labels, [(part,) for part in partitions]):
                if isinstance(own, WorkerKilledError):
                    raise BuildError(f"{part.path}: reading its labels kills the worker")
                found[part.source].append(own)
                progress.advance(1, len(own))
        if shared := overlap(spaces(self.names, partitions, list(map(np.concatenate, found)))):
            raise SourceError(shared)

    def _doubts(
        self, partitions: list[Partition], facts: list[PartitionFacts], totals: dict[str, Any]
    ) -> tuple[list[str], list[str]]:
        """Returns how the sources are unsound, and what else is odd, once it is said; raises UnsoundError if strict."""
        sources = [part.source for part in partitions]
        images, unindexed = (
            np.bincount(sources, counts, len(self.files)).astype(int)
            for counts in ([fact.records - fact.structural for fact in facts], [fact.unindexed for fact in facts])
        )
        identities = complete("identities", pq.read_table(self.work / "decisions" / "identities.parquet"))
        present = len(identities) - identities["label_original"].null_count
        unsound = broken(self.request["name"], totals)
        unsound += disagreements(self.files, images, unindexed, totals["scanned"], present, self.expected)
        if unsound and self.strict:
            raise UnsoundError(
                f"--strict publishes nothing: {'; '.join(unsound)}; fetch or mend the source, or build without --strict"
            )
        odd = lost_people(identities)
        for warning in (*unsound, *odd):
            log.warning("%s", warning)
        return unsound, odd

    def _route(self, runner: Runner, partitions: list[Partition], facts: list[PartitionFacts]) -> None:
        sid = ordinal = 0
        told = (self.names, (*REASONS, *self.config.filter_reasons), self.config.labels == "separate")
        tasks = []
        for part, fact in zip(partitions, facts, strict=True):
            if part.start == 0:
                ordinal = 0
            if not (self._routed(part).exists() and self._dropped(part).exists()):
                paths = (self._routed(part), self._dropped(part))
                tasks.append((self._records(part), self.work / "decisions", sid, ordinal, *told, *paths))
            sid += fact.rows
            ordinal += fact.records
        with Progress("route", sid, self.execution.quiet) as progress:
            for _, result in runner.map(route, tasks):
                progress.advance(_survived(result, "sorting the records by shard"), result)

    def _write(self, runner: Runner, partitions: list[Partition], shards: int) -> None:
        routed = [self._routed(part) for part in partitions]
        data = self.work / "dataset"
        tasks = []
        with Progress("write", shards, self.execution.quiet) as progress:
            for shard in range(shards):
                done = self.work / "done" / f"shard-{shard:05d}.json"
                if done.exists():
                    progress.advance(1, json.loads(done.read_text())["rows"])
                else:
                    folders = (data / "manifest" / "images.parquet", data / "shards")
                    tasks.append((shard, self.files, routed, *folders, done))
            for task, result in runner.map(write, tasks):
                _survived(result, f"writing shard {task[0]}")
                progress.advance(1, result)


def _survived(result: Any, doing: str) -> int:
    """Returns a stage's result; raises BuildError if its worker died."""
    if isinstance(result, WorkerKilledError):
        raise BuildError(f"{doing}: {result} twice; run the same command to go on")
    return int(result)

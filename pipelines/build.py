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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faceshards.dataset.manifest import Manifest
from faceshards.dataset.schema import SCHEMA_VERSION
from faceshards.errors import BuildError, EmptyDatasetError, ShardError, SourceError
from faceshards.files import differences, write_json
from faceshards.progress import Progress
from pipelines import workspace
from pipelines.config import BuildConfig
from pipelines.runner import Runner, WorkerKilledError, check_dashboard
from pipelines.sources.base import Partition, SourceFile
from pipelines.sources.catalog import Dataset
from pipelines.sources.find import cut
from pipelines.sources.registry import identity_names
from pipelines.stages.assemble import assemble
from pipelines.stages.decide import decide, load_columns
from pipelines.stages.route import route
from pipelines.stages.sign import PartitionFacts, count_rows, partition_facts, probe_rows, sign_partition
from pipelines.stages.write import write

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Execution:
    """How a build is run; nothing here changes a byte of its result.

    Args:
        workers: local worker processes, 0 for one per core.
        scheduler: address of a Dask scheduler to use instead.
        partition_bytes: aimed size of a partition in bytes, 0 to choose.
        dashboard: serve Dask's dashboard.
        quiet: no progress.

    Raises:
        BuildError: a dashboard is wanted that this machine cannot serve.
    """

    workers: int = 0
    scheduler: str | None = None
    partition_bytes: int = 0
    dashboard: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.dashboard and self.scheduler is None:
            check_dashboard()


def build(
    name: str,
    files: Sequence[SourceFile],
    out: Path,
    config: BuildConfig,
    execution: Execution,
    *,
    expected: Dataset | None = None,
    overwrite: bool = False,
    restart: bool = False,
) -> Manifest:
    """Returns the dataset published at `out`.

    Args:
        name: of the dataset.
        files: its sources.
        out: folder to publish; made by one rename at the end.
        config: what decides the result.
        execution: how it is run.
        expected: the known set, whose counts are compared.
        overwrite: replace a dataset that is published at `out`.
        restart: throw away an interrupted build.

    Raises:
        BuildError: cannot start, go on, or publish; an interrupted build stays resumable.
        SourceError: a source is unusable.
    """
    out = Path(os.path.abspath(out))
    for file in files:
        if os.path.isdir(file.path) and out.is_relative_to(file.path):
            raise BuildError(f"{out}: lies in the source {file.path}, and would be read as a part of it")
    request = _request(name, files, config)
    workspace.check_output(out)
    with workspace.exclusive(out) as work:
        try:
            if (out / "dataset.json").exists() and not overwrite:
                found = _already_built(out, request)
                shutil.rmtree(work, ignore_errors=True)
                return found
            if restart:
                workspace.clear(work)
            workspace.claim(work, request)
            room = sum(file.bytes for file in files) * 1.1 + (8 << 20)
            done = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
            workspace.check_space(work, int(room) - done)
            _Build(request, list(files), work, config, execution, expected).run()
            workspace.publish(work / "dataset", out, work)
        except BaseException as error:
            # What holds nothing to go on from would only refuse the next request.
            if isinstance(error, EmptyDatasetError) or not any((work / "records").glob("part-*")):
                shutil.rmtree(work, ignore_errors=True)
            if isinstance(error, ShardError) and error.errno:
                error = OSError(error.errno, os.strerror(error.errno), str(error.path))
            if isinstance(error, OSError):
                raise workspace.explain_os_error(error, work) from None
            raise
    return Manifest(out)


def _request(name: str, files: Sequence[SourceFile], config: BuildConfig) -> dict[str, Any]:
    """Returns what decides the published bytes, as JSON has it."""
    request = {
        "name": name,
        "schema_version": SCHEMA_VERSION,
        "config": dataclasses.asdict(config),
        "sources": [dataclasses.asdict(file) for file in files],
    }
    return dict(json.loads(json.dumps(request)))


def _already_built(out: Path, request: dict[str, Any]) -> Manifest:
    found = Manifest(out)
    asked = {key: request[key] for key in ("name", "config", "sources")}
    if differences({key: found.info.get(key) for key in asked}, asked):
        raise BuildError(f"{out}: a dataset is published there, from another request; --overwrite replaces it")
    log.warning("%s: already built from the same sources and settings; nothing to do", out)
    return found


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
    ) -> None:
        self.request, self.files, self.work, self.config = request, files, work, config
        self.execution, self.expected = execution, expected
        self.names = [file.name for file in files]
        for folder in ("records", "routed", "dropped", "done", "dataset/manifest/images.parquet", "dataset/shards"):
            (work / folder).mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        """Leaves a complete dataset in the work folder."""
        partitions, warnings = self._cut()
        execution = self.execution
        with Runner(execution.workers, execution.scheduler, execution.dashboard) as runner:
            self._sign(runner, partitions)
            facts = [partition_facts(self._records(part)) for part in partitions]
            warnings += self._count(facts)
            decisions = self.work / "decisions"
            if not decisions.exists():
                scanned = sum(fact.rows for fact in facts)
                with Progress("decide", scanned, self.execution.quiet) as progress:
                    columns = load_columns([self._records(part) for part in partitions], [fact.rows for fact in facts])
                    decide(columns, identity_names(partitions[0]), self.config, runner.workers, decisions)
                    progress.advance(scanned, scanned)
            self._route(runner, partitions, facts)
            shards = json.loads((decisions / "facts.json").read_text())["shards"]
            self._write(runner, partitions, shards)
        structural = sum(fact.structural for fact in facts)
        dropped = [self._dropped(part) for part in partitions]
        assemble(self.work, self.request, dropped, shards, structural, warnings, self.expected)

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
            partitions, warnings = cut(self.files, self.work, self.execution.partition_bytes)
            write_json([warnings, [dataclasses.asdict(part) for part in partitions]], path)
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

    def _count(self, facts: list[PartitionFacts]) -> list[str]:
        """Returns a warning if the set does not have as many images as its publishers say."""
        scanned = sum(fact.rows for fact in facts)
        if sum(fact.records for fact in facts) == 0:
            raise SourceError(f"{', '.join(self.names)}: no record in it")
        warnings = []
        if self.expected and self.expected.images and scanned != self.expected.images:
            warnings.append(f"{self.expected.name}: {scanned} images scanned, {self.expected.images} expected")
        for warning in warnings:
            log.warning("%s", warning)
        return warnings

    def _route(self, runner: Runner, partitions: list[Partition], facts: list[PartitionFacts]) -> None:
        sid = ordinal = 0
        tasks = []
        for part, fact in zip(partitions, facts, strict=True):
            if part.start == 0:
                ordinal = 0
            if not (self._routed(part).exists() and self._dropped(part).exists()):
                paths = (self._routed(part), self._dropped(part))
                tasks.append((self._records(part), self.work / "decisions", sid, ordinal, self.names, *paths))
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

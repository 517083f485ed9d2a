"""What a build does before it writes: the sources are cut, scanned and signed, and decided about as a whole.

A plan ends here. In the work folder, whoever made it:

    partitions.json, and the sources' tables    how it is cut
    records/part-*.parquet                      scan and sign, one per partition; images beside it, if they are kept
    decisions/                                  the global step
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from faceshards.dataset.schema import complete
from faceshards.errors import BuildError, EmptyDatasetError, SourceError
from faceshards.files import write_json
from faceshards.locks import own_folder
from faceshards.progress import Progress
from faceshards.reading import content, each, for_arrow, names_in
from faceshards.storage.location import Location, StoredPath, as_location
from pipelines import workspace
from pipelines.config import BuildConfig
from pipelines.dedupe.overlap import Pictures
from pipelines.runner import Execution, Runner, WorkerKilledError
from pipelines.sources.base import Partition, SourceFile
from pipelines.sources.catalog import Dataset
from pipelines.sources.find import check_outside, cut, set_names
from pipelines.sources.registry import doubt_of, labels
from pipelines.stages.decide import decide, load_columns
from pipelines.stages.doubts import broken, disagreements, lost_people
from pipelines.stages.excluded import sign_sets
from pipelines.stages.label_spaces import join, overlap, spaces
from pipelines.stages.sign import PartitionFacts, count_rows, partition_facts, probe_rows, sign_partition

log = logging.getLogger(__name__)


class Asked(NamedTuple):
    """A request, and the pictures that it keeps out."""

    request: dict[str, Any]  # what decides the published bytes, as JSON has it
    pictures: Pictures
    warnings: list[str]  # about the sets that they are of


def ask(name: str, files: Sequence[SourceFile], out: Location, config: BuildConfig, exclude: Sequence[Path]) -> Asked:
    """Returns what is asked for, once it is known that it could be made.

    Args:
        name: of the dataset.
        files: its sources.
        out: folder to publish, absolute, or prefix in a bucket.
        config: what decides the result.
        exclude: verification sets (.bin) whose pictures are kept out.

    Raises:
        BuildError: nothing can be published at `out`.
        SetError: a set to exclude is unusable.
    """
    check_outside(out, files)
    if isinstance(out, Path):
        workspace.check_output(out)
    pictures, about, told = sign_sets(exclude, config.image_size, config.near_across)
    return Asked(workspace.describe(name, files, config, about), pictures, told)


class Found(NamedTuple):
    """What a survey found."""

    partitions: list[Partition]
    facts: list[PartitionFacts]
    decided: dict[str, Any]  # facts.json of the decisions
    warnings: list[str]  # about the sources, from whoever found, cut or signed them


class Doubts(NamedTuple):
    """What speaks against the sources."""

    unsound: list[str]  # a strict build publishes nothing
    odd: list[str]


def room(files: Sequence[SourceFile], spilled: bool) -> int:
    """Returns the bytes on disk that a build of these files needs at least before it starts.

    Args:
        files: its sources.
        spilled: their images are carried through the work folder.
    """
    return int(sum(file.bytes for file in files) * (1.1 + spilled)) + (8 << 20)


def refusal(unsound: Sequence[str]) -> str:
    """Returns why a strict build publishes nothing."""
    return f"--strict publishes nothing: {'; '.join(unsound)}; fetch or mend the source, or build without --strict"


class Survey:
    """The first half of a build, in its work folder.

    Args:
        asked: what is to be built.
        files: its sources.
        work: the work folder, or where the pieces lie in a bucket.
        config: of the build.
        execution: how it is run.
        warnings: about the files, from whoever found them.
        share: of the identities that are looked at; below 1 the work folder is of no use to a build.
        spilled: images are carried through the work folder; those that are objects of their own from the scan on.
    """

    def __init__(
        self,
        asked: Asked,
        files: Sequence[SourceFile],
        work: Location,
        config: BuildConfig,
        execution: Execution,
        warnings: Sequence[str],
        share: float = 1.0,
        spilled: bool = False,
    ) -> None:
        self.asked, self.files, self.work, self.config = asked, list(files), work, config
        self.execution, self.warnings, self.share = execution, list(warnings), share
        self.names = [file.name for file in files]
        self.sets = set_names(files)
        self._facts: dict[int, PartitionFacts] = {}  # by partition
        self._keeps = [spilled and file.is_folder and isinstance(as_location(file.path), StoredPath) for file in files]
        (work / "records").mkdir(parents=True, exist_ok=True)

    def run(self, runner: Runner) -> Found:
        """Returns what the sources hold and what is decided about it; goes on where an earlier survey stopped.

        Raises:
            BuildError: a record cannot be survived, or no record is left.
            SourceError: a source is unusable, or its people cannot be told apart.
        """
        self._check_workers(runner)
        partitions, warnings = self._cut()
        self._check_labels(runner, partitions)
        self._sign(runner, partitions)
        facts = [self._facts[part.number] for part in partitions]
        if sum(fact.records for fact in facts) == 0:
            raise EmptyDatasetError(f"{', '.join(self.names)}: no record in it")
        if sum(fact.rows for fact in facts) == 0 and self.share < 1:
            raise EmptyDatasetError("there is no record of so few identities; take a larger sample")
        decisions = self.work / "decisions"
        if not (decisions / "facts.json").exists():
            self._decide(partitions, facts, runner.workers, decisions)
        return Found(partitions, facts, json.loads(content(decisions / "facts.json")), warnings)

    def _check_workers(self, runner: Runner) -> None:
        """Raises BuildError if a worker cannot reach the bucket of the work: it has variables of its own."""
        if not isinstance(self.work, StoredPath):
            return
        for worker, found in runner.everywhere(names_in, self.work).items():
            if isinstance(found, Exception):
                raise BuildError(f"worker {worker}: {found}")

    def records(self, part: Partition) -> Location:
        """Returns the record table of a partition."""
        return self.work / "records" / f"part-{part.number:06d}.parquet"

    def _cut(self) -> tuple[list[Partition], list[str]]:
        """Returns the partitions, as the first run of this build cut them, and warnings about the sources."""
        path = self.work / "partitions.json"
        if not path.exists():
            partitions, told = cut(self.files, self.work, self.execution.partition_bytes)
            for part in partitions:
                if part.start == 0 and not self.config.nested and (doubt := doubt_of(part)):
                    raise SourceError(doubt)
            partitions = [dataclasses.replace(part, share=self.share) for part in partitions]
            write_json([[*self.warnings, *told], [dataclasses.asdict(part) for part in partitions]], path)
        try:
            warnings, rows = json.loads(content(path))
            partitions = [Partition(**row) for row in rows]
        except (ValueError, TypeError):
            raise BuildError(f"{path}: damaged, or of another release; pass --restart to begin anew") from None
        # Not written down with them: a plan may be repeated with other sets.
        about_sets = [line for line in self.asked.warnings if line not in warnings]
        warnings[len(self.warnings) : len(self.warnings)] = about_sets
        for warning in warnings:
            log.warning("%s", warning)
        return partitions, warnings

    def _begun(self) -> bool:
        """Returns whether a record table is there."""
        return any(name.startswith("part-") for name in names_in(self.work / "records"))

    def _check_labels(self, runner: Runner, partitions: list[Partition]) -> None:
        """Raises SourceError if files share labels and no one said what that means; before anything is decoded."""
        if len(set(self.sets)) == 1 or self.config.labels != "disjoint" or self._begun():
            return
        found: list[list[np.ndarray]] = [[] for _ in self.files]
        with Progress("labels", len(partitions), self.execution.quiet) as progress:
            for (part,), own in runner.map(labels, [(part,) for part in partitions]):
                if isinstance(own, WorkerKilledError):
                    raise BuildError(f"{part.path}: reading its labels kills the worker")
                found[part.source].append(own)
                progress.advance(1, len(own))
        if shared := overlap(spaces(self.sets, partitions, list(map(np.concatenate, found)))):
            raise SourceError(shared)

    def _sign(self, runner: Runner, partitions: list[Partition]) -> None:
        """Scans and signs every partition that has no record table yet; quarantines records that kill workers."""
        with Progress("sign", sum(part.stop - part.start for part in partitions), self.execution.quiet) as progress:
            there = names_in(self.work / "records")
            done = [part for part in partitions if self.records(part).name in there]
            found = each(partition_facts, list(map(self.records, done)))
            for part, facts in zip(done, found, strict=True):
                self._facts[part.number] = facts
                progress.advance(part.stop - part.start, facts.rows)
            todo = [self._signing(part) for part in partitions if part.number not in self._facts]
            for task, result in runner.map(sign_partition, todo):
                part = task[0]
                if isinstance(result, WorkerKilledError):
                    result = self._quarantine(runner, part)
                self._facts[part.number] = result
                progress.advance(part.stop - part.start, result.rows)

    def _signing(self, part: Partition) -> tuple[Any, ...]:
        return part, self.config, self.records(part), self._keeps[part.source]

    def _quarantine(self, runner: Runner, part: Partition) -> PartitionFacts:
        where = f"{part.path}, {part.start}..{part.stop}"
        log.warning("%s: kills its worker; looking for the record", where)
        rows = runner.alone(count_rows, (part,))
        if isinstance(rows, WorkerKilledError):
            raise BuildError(f"{where}: reading it kills the worker")
        killers = frozenset(runner.find_killers(probe_rows, (part, self.config), 0, rows))
        result = runner.alone(sign_partition, (*self._signing(part), killers))
        if isinstance(result, WorkerKilledError):
            raise BuildError(f"{where}: kills its worker as a whole, but no record of it does alone (out of memory?)")
        return result

    def _decide(self, partitions: list[Partition], facts: list[PartitionFacts], threads: int, out: Location) -> None:
        """Decides over the whole set, once the label spaces of its files are one."""
        rows = [fact.rows for fact in facts]
        with Progress("decide", sum(rows), self.execution.quiet) as progress:
            columns = load_columns([self.records(part) for part in partitions], rows)
            ends = np.cumsum(np.bincount([part.source for part in partitions], rows, len(self.files)).astype(int))
            own = np.split(columns.label, ends[:-1])
            names = join(self.sets, partitions, own, self.config.labels == "separate")
            with _made_here(out) as folder:
                decide(columns, names, self.config, threads, folder, self.asked.pictures)
            progress.advance(sum(rows), sum(rows))

    def doubts(self, found: Found, expected: Dataset | None) -> Doubts:
        """Returns what speaks against the sources; a sample's counts are not compared with what they say of themselves.

        Args:
            found: what `run` returned.
            expected: the known set.
        """
        sources = [part.source for part in found.partitions]
        images, unindexed = (
            np.bincount(sources, counts, len(self.files)).astype(int)
            for counts in (
                [fact.records - fact.structural for fact in found.facts],
                [fact.unindexed for fact in found.facts],
            )
        )
        identities = self.identities()
        present = len(identities) - identities["label_original"].null_count
        unsound = broken(self.asked.request["name"], found.decided)
        if self.share == 1:
            unsound += disagreements(self.files, images, unindexed, found.decided["scanned"], present, expected)
        return Doubts(unsound, lost_people(identities))

    def identities(self) -> pa.Table:
        """Returns the manifest's table `identities`, as it was decided."""
        return complete("identities", pq.read_table(for_arrow(self.work / "decisions" / "identities.parquet")))


@contextmanager
def _made_here(out: Location) -> Iterator[Path]:
    """Yields where the decisions are to be made, a folder of this machine; into a bucket they go from there, whole by
    facts.json, the last of them."""
    if not isinstance(out, StoredPath):
        yield out
        return
    with own_folder() as folder:
        yield folder / out.name
        for path in sorted((folder / out.name).iterdir(), key=lambda path: path.name == "facts.json"):
            (out / path.name).upload(path, "")

"""A build from beginning to end: the order of the stages, what each finished one leaves behind, and the books.

In the work folder, every finished piece is a file that appears by rename, so what exists is whole:

    request.json            what is being built
    ...                     what is found and decided about the sources (survey.py), which a plan may have left
    routed/, dropped/       one per partition; in a spill, the images beside what is routed (stages/origins.py)
    done/shard-*.json       one per shard; its files already lie in dataset/, which becomes the published folder
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

from faceshards.dataset.manifest import Manifest
from faceshards.dataset.schema import REASONS
from faceshards.errors import UnsoundError
from faceshards.formats.mindrecord.geometry import Geometry
from faceshards.progress import Progress
from faceshards.reading import content, each, names_in
from faceshards.storage.location import Location, StoredPath
from pipelines import workspace
from pipelines.config import BuildConfig
from pipelines.runner import Execution, Runner, survived
from pipelines.shuffle import carried, spills
from pipelines.sources.base import Partition, SourceFile
from pipelines.sources.catalog import Dataset
from pipelines.stages.assemble import assemble
from pipelines.stages.origins import SPILL, Sources, Spilled
from pipelines.stages.route import route
from pipelines.stages.sections import by_shard
from pipelines.stages.sign import PartitionFacts
from pipelines.stages.write import write
from pipelines.survey import Doubts, Found, Survey, ask, refusal, room

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
    asked = ask(name, files, out, config, exclude)
    with workspace.exclusive(out) as work, workspace.resumable(work):
        if (out / "dataset.json").exists() and not overwrite:
            found = workspace.published(out, asked.request, strict)
            shutil.rmtree(work, ignore_errors=True)
            return found
        if restart:
            workspace.clear(work)
        workspace.claim(work, asked.request)
        done = workspace.size(work)
        spilled = spills(execution.shuffle, [file.path for file in files])
        images = sum(file.bytes for file in files) * spilled
        workspace.check_space(work, room(files, spilled) - done, about=carried(images))
        survey = Survey(asked, files, work, config, execution, warnings, spilled=spilled)
        Build(survey, work / "dataset", expected, strict, spilled).run()
        workspace.publish(work / "dataset", out, work)
    return Manifest(out)


class Build:
    """One build in its work folder.

    Args:
        survey: its first half.
        data: folder of the dataset that is made, or its prefix in a bucket.
        expected: the known set.
        strict: publish nothing if the sources are unsound.
        spilled: images are carried through the work folder.
    """

    def __init__(self, survey: Survey, data: Location, expected: Dataset | None, strict: bool, spilled: bool) -> None:
        self.survey, self.data, self.expected, self.strict, self.spilled = survey, data, expected, strict, spilled
        self.work, self.files, self.config, self.execution = survey.work, survey.files, survey.config, survey.execution
        self.names = survey.names
        self.images, self.shards = data / "manifest" / "images.parquet", data / "shards"
        for folder in (*(self.work / name for name in ("routed", "dropped", "done")), self.images, self.shards):
            folder.mkdir(parents=True, exist_ok=True)

    def run(self) -> dict[str, Any]:
        """Returns dataset.json of the dataset that it has made; in a bucket it is the only thing still missing."""
        execution = self.execution
        with execution.runner() as runner:
            found = self.survey.run(runner)
            unsound, odd = self._doubts(found)
            self._change_form(found)
            self._route(runner, found.partitions, found.facts)
            self._write(runner, found.partitions, found.decided)
        structural = sum(fact.structural for fact in found.facts)
        dropped = [self._dropped(part) for part in found.partitions]
        warnings = [*found.warnings, *unsound, *odd]
        shards, request = found.decided["shards"], self.survey.asked.request
        return assemble(self.work, self.data, request, dropped, shards, structural, warnings, unsound)

    def _doubts(self, found: Found) -> Doubts:
        """Returns what speaks against the sources, once it is said; raises UnsoundError if strict."""
        doubts = self.survey.doubts(found, self.expected)
        if doubts.unsound and self.strict:
            raise UnsoundError(refusal(doubts.unsound))
        for warning in (*doubts.unsound, *doubts.odd):
            log.warning("%s", warning)
        return doubts

    def _routed(self, part: Partition) -> Location:
        return self.work / "routed" / f"part-{part.number:06d}.arrow"

    def _dropped(self, part: Partition) -> Location:
        return self.work / "dropped" / f"part-{part.number:06d}.parquet"

    def _done(self, shard: int) -> Location:
        return self.work / "done" / f"shard-{shard:05d}.json"

    def _finished(self, shards: int) -> set[int]:
        """Returns the shards that are done; in a bucket others may have removed what they are made of."""
        done = names_in(self.work / "done")
        found = {shard for shard in range(shards) if self._done(shard).name in done}
        if isinstance(self.data, StoredPath):
            there = names_in(self.images) | names_in(self.shards)
            names = ("part-{:05d}.parquet", "shard-{:05d}.mindrecord", "shard-{:05d}.mindrecord.db")
            found = {shard for shard in found if there.issuperset(name.format(shard) for name in names)}
        return found

    def _change_form(self, found: Found) -> None:
        """Has what was routed in the other form serve this one: rows are the same, images are made or removed."""
        shards = found.decided["shards"]
        if len(self._finished(shards)) == shards:
            self.spilled = False  # no image is needed any more
            return
        there = names_in(self.work / "routed")
        routed = [path for path in map(self._routed, found.partitions) if path.name in there]
        spills = [path.with_suffix(SPILL) for path in map(self._routed, found.partitions)]
        spills = [path for path in spills if path.name in there] + self._kept(found.partitions)
        if self.spilled and (count := sum(path.with_suffix(SPILL).name not in there for path in routed)):
            log.warning(
                "%d of %d partitions were routed without their images, and are once more", count, len(found.partitions)
            )
        elif not self.spilled and spills:
            count = len({path.name for path in spills})
            log.warning("the images of %d partitions were carried here; they are removed, and read anew", count)
            for path in spills:
                path.unlink()

    def _kept(self, partitions: list[Partition]) -> list[Location]:
        """Returns what the scan kept of the images of partitions, of those of which it did."""
        there = names_in(self.work / "records")
        paths = (self.survey.records(part).with_suffix(SPILL) for part in partitions)
        return [path for path in paths if path.name in there]

    def _route(self, runner: Runner, partitions: list[Partition], facts: list[PartitionFacts]) -> None:
        sid = ordinal = 0
        sets = self.survey.sets if self.config.labels == "separate" else None
        carried = Sources(self.files) if self.spilled else None
        told = (self.names, sets, (*REASONS, *self.config.filter_reasons))
        there, gone = names_in(self.work / "routed"), names_in(self.work / "dropped")
        kept = {*self._kept(partitions)} if self.spilled else set()
        tasks = []
        for part, fact in zip(partitions, facts, strict=True):
            if part.start == 0:
                ordinal = 0
            made = [self._routed(part), *([self._routed(part).with_suffix(SPILL)] if self.spilled else [])]
            if self._dropped(part).name not in gone or not there.issuperset(path.name for path in made):
                records = self.survey.records(part)
                images = records.with_suffix(SPILL)
                paths = (self._routed(part), self._dropped(part), carried, images if images in kept else None)
                tasks.append((records, self.work / "decisions", sid, ordinal, *told, *paths))
            sid += fact.rows
            ordinal += fact.records
        with Progress("route", sid, self.execution.quiet) as progress:
            for _, result in runner.map(route, tasks):
                progress.advance(survived(result, "sorting the records by shard"), result)

    def _write(self, runner: Runner, partitions: list[Partition], decided: dict[str, Any]) -> None:
        routed: list[Any] = [self._routed(part) for part in partitions]
        shards, geometry = decided["shards"], Geometry(**decided.get("geometry", {}))
        finished = self._finished(shards)
        stored = isinstance(self.work, StoredPath)
        origin = Spilled(self.names, [] if stored else routed) if self.spilled else Sources(self.files)
        of_shard = by_shard(routed, shards) if stored and len(finished) < shards else repeat(routed)
        rows = {
            i: json.loads(text)["rows"]
            for i, text in zip(finished, each(content, map(self._done, finished)), strict=True)
        }
        tasks = []
        with Progress("write", shards, self.execution.quiet) as progress:
            for shard, pieces in zip(range(shards), of_shard, strict=False):
                if shard in finished:
                    progress.advance(1, rows[shard])
                else:
                    tasks.append((shard, origin, geometry, pieces, self.images, self.shards, self._done(shard)))
            for task, result in runner.map(write, tasks):
                survived(result, f"writing shard {task[0]}")
                progress.advance(1, result)

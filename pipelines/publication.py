"""What is made on a disk and published in a bucket: its files are uploaded, the one that makes it whole last.

Until that one is there, no reader takes what lies at the prefix for whole. A mark, the first object, says whose upload
it is: the same request goes on with it, another one is refused. What was uploaded is known by size and SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from faceshards.dataset.manifest import Manifest
from faceshards.errors import BuildError, EmptyDatasetError, UnsoundError
from faceshards.files import difference
from faceshards.locks import BusyError, exclusive_folder
from faceshards.progress import Progress
from faceshards.reading import open_file
from faceshards.storage.faults import MissingError, TakenError
from faceshards.storage.location import StoredPath

MARK = ".faceshards-upload.json"
INSTEAD = "choose another prefix, or remove what is there"
"""What to do where something else is published already: in a bucket nothing is replaced."""

_AT_ONCE = 2  # files in flight, each of some pieces


class File(NamedTuple):
    """A file to upload."""

    name: str  # below the prefix
    bytes: int
    sha256: str
    images: int = 0


@dataclass(frozen=True)
class Publication:
    """What is to be published at a prefix.

    Args:
        out: the prefix.
        last: name of the file that makes it whole.
        request: what decides its bytes, plain JSON values.
        what: makes it, a build, an ``export`` or a ``split``.
    """

    out: StoredPath
    last: str
    request: dict[str, Any]
    what: str = "build"

    @property
    def mark(self) -> StoredPath:
        """The object that says whose upload it is."""
        return self.out / MARK

    def is_whole(self) -> bool:
        """Returns whether something is published there, of whatever request."""
        return (self.out / self.last).exists()

    def make(
        self, work: Path, made: Path, make: Callable[[], Sequence[File]], *, restart: bool = False, quiet: bool = False
    ) -> None:
        """Makes it on a disk, and uploads it.

        Args:
            work: folder on a disk, which one process has to itself; empty but for its lock afterwards.
            made: folder in it, in which `make` leaves everything.
            make: returns all files but the last one, once they are there; one that was killed goes on.
            restart: throw away what is there of an interrupted one.
            quiet: no progress bar.

        Raises:
            BuildError: another process is at work, something else is in the way, or a file is damaged.
            StorageError: the store refuses, or does not answer.
        """
        try:
            with exclusive_folder(work, "lock"):
                if restart:
                    shutil.rmtree(made, ignore_errors=True)
                    self.clear()
                goes_on = self.claim()
                try:
                    files = make()
                except (EmptyDatasetError, UnsoundError):  # nothing can come of this request
                    self.clear()
                    raise
                self.upload(made, files, quiet, goes_on)
                shutil.rmtree(made)
        except BusyError as error:
            what = f"another {self.what} (process {error.holder})"
            raise BuildError(f"{work}: {what} is at work there") from None

    def tidy(self, made: Path) -> None:
        """Removes what a process left that was killed after the last file was there: its mark, and its files on disk.

        Args:
            made: folder on a disk in which it was made.
        """
        self.mark.unlink()
        try:
            content = (made / self.last).read_bytes()
        except OSError:
            return
        with open_file(self.out / self.last) as file:
            same = file.read_at(0, file.size) == content
        if same:
            with exclusive_folder(made.parent, "lock"):
                shutil.rmtree(made, ignore_errors=True)

    def claim(self) -> bool:
        """Returns whether an upload of this request was begun; if none was, the prefix is this one's now.

        Raises:
            BuildError: something else is there.
        """
        if self._is_free():
            try:
                self.mark.make_alone(self._own_mark())
                return False
            except TakenError:
                pass  # just now, by another one
        self._check_mark()
        return True

    def check(self, restart: bool) -> None:
        """Raises BuildError if it would be refused at the prefix.

        Args:
            restart: what an interrupted upload left would be thrown away.
        """
        if not self._is_free() and not restart:
            self._check_mark()

    def clear(self) -> None:
        """Removes what an interrupted upload left; nothing else."""
        if self.mark.exists():
            for place, _ in self.out.tree():
                if place.name != MARK:
                    place.unlink()
            self.mark.unlink()

    def upload(self, folder: Path, files: Sequence[File], quiet: bool, goes_on: bool) -> None:
        """Uploads files; the last one when all others are known to be there.

        Args:
            folder: on the disk.
            files: in it, all but the last.
            quiet: no progress bar.
            goes_on: some may be there already.

        Raises:
            BuildError: a file is not what was made, or the objects are not those of the folder.
        """

        def put(file: File) -> File:
            place, path = self.out / file.name, folder / file.name
            if not (goes_on and _is_there(place, file)):
                if problem := difference(path, file.bytes, file.sha256, self._thing("the manifest", "export.json")):
                    raise BuildError(f"{problem}; pass --restart to {self.what} it anew")
                place.upload(path, file.sha256)
            return file

        total = sum(file.bytes for file in files)
        with Progress("upload", total, quiet) as progress, ThreadPoolExecutor(_AT_ONCE) as pool:
            try:
                for file in pool.map(put, files):
                    progress.advance(file.bytes, file.images)
            finally:
                pool.shutdown(cancel_futures=True)
        there = {str(place): size for place, size in self.out.tree() if place != self.mark}
        if there != {str(self.out / file.name): file.bytes for file in files}:
            raise BuildError(
                f"{self.out}: other objects came there while it was uploaded, or some were lost; run it again"
            )
        self._finish((folder / self.last).read_bytes())

    def _finish(self, content: bytes) -> None:
        """Makes it whole: puts the last file where there is none, and takes the mark away."""
        last = self.out / self.last
        try:
            last.write_bytes(content, exclusive=True)
        except TakenError:
            with open_file(last) as file:
                if file.read_at(0, file.size) != content:
                    raise BuildError(f"{self.out}: another {self.what} published there meanwhile") from None
        self.mark.unlink()

    def _own_mark(self) -> bytes:
        digest = hashlib.sha256(json.dumps(self.request, sort_keys=True).encode()).hexdigest()
        return json.dumps({"request": digest}).encode()

    def _is_free(self) -> bool:
        """Returns whether nothing is there, not even an interrupted upload; BuildError if it is anything else."""
        if self.mark.exists():
            return False
        if self.out.is_dir():
            thing = self._thing("dataset", "export")
            raise BuildError(f"{self.out}: objects lie there, and no {thing} of ours; they are not touched")
        return True

    def _check_mark(self) -> None:
        """Raises BuildError if an upload is another request's."""
        mark = self._own_mark()
        with open_file(self.mark) as file:
            if file.read_at(0, len(mark) + 1) != mark:
                raise BuildError(
                    f"{self.out}: an interrupted upload of another request lies there; choose another prefix, or pass "
                    "--restart to remove it"
                )

    def _thing(self, dataset: str, export: str) -> str:
        return export if self.what == "export" else dataset


def dataset_files(manifest: Manifest) -> list[File]:
    """Returns every file of a dataset but dataset.json."""
    found = [File(name, entry["bytes"], entry["sha256"]) for name, entry in manifest.info["files"].items()]
    for shard in manifest.table("shards").to_pylist():
        found.append(File(f"shards/{shard['file']}", shard["bytes"], shard["sha256"], shard["rows"]))
        found.append(File(f"shards/{shard['file']}.db", shard["db_bytes"], shard["db_sha256"]))
    return found


def _is_there(place: StoredPath, file: File) -> bool:
    """Returns whether an object is a file that was uploaded before."""
    try:
        return place.sha256() == (file.bytes, file.sha256)
    except MissingError:
        return False

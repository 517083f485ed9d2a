"""What is made on a disk and published in a bucket: its files are uploaded, the one that makes it whole last.

What was uploaded is known by size and SHA-256; whose the prefix is, and what makes a whole of it, is prefix.py's.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faceshards.checksums import difference
from faceshards.errors import BuildError
from faceshards.locks import BusyError, exclusive_folder
from faceshards.progress import Progress
from faceshards.reading import content
from faceshards.storage.lease import Lease
from faceshards.storage.location import StoredPath
from pipelines import prefix

INSTEAD = "choose another prefix, or remove what is there"
"""What to do where something else is published already: in a bucket nothing is replaced."""

_AT_ONCE = 2  # files in flight, each of some pieces


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

    def is_whole(self) -> bool:
        """Returns whether something is published there, of whatever request."""
        return (self.out / self.last).exists()

    def make(
        self,
        work: Path,
        made: Path,
        make: Callable[[], Sequence[prefix.File]],
        *,
        restart: bool = False,
        quiet: bool = False,
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
        self._check_ours(work, made)
        try:
            with (
                prefix.claimed(self.out, self.last, self.request, restart, self.what) as lease,
                exclusive_folder(work, "lock"),
            ):
                if restart:
                    _remove(made)
                self.upload(made, make(), quiet, lease)
                _remove(made)
        except BusyError as error:
            what = f"another {self.what} (process {error.holder})"
            raise BuildError(f"{work}: {what} is at work there") from None

    def _check_ours(self, work: Path, made: Path) -> None:
        """Raises BuildError if what was made there before was not made to be uploaded: it is removed in the end."""
        bare = made.is_dir() and not any(made.iterdir())
        ours = (work / "lock").is_file() and (made / self.last).is_file()
        if made.exists() and not bare and not ours:
            raise BuildError(f"{made}: is in the way, and was not left by us; it is not touched, choose another --work")

    def upload(self, folder: Path, files: Sequence[prefix.File], quiet: bool, lease: Lease) -> None:
        """Uploads files; the last one when all others are known to be there.

        Args:
            folder: on the disk.
            files: in it, all but the last.
            quiet: no progress bar.
            lease: of the prefix; where it is a fresh one, nothing is there already.

        Raises:
            BuildError: a file is not what was made, or the objects are not those of the folder.
        """
        said = "export.json" if self.what == "export" else "the manifest"

        def put(file: prefix.File) -> prefix.File:
            place, path = self.out / file.name, folder / file.name
            if lease.fresh or not prefix.is_there(place, file):
                if problem := difference(path, file.bytes, file.sha256, said):
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
        prefix.publish(self.out, files, self.last, (folder / self.last).read_bytes(), lease, self.what)

    def tidy(self, made: Path) -> None:
        """Removes what a process left that was killed after the last file was there: its mark, and its files on disk.

        Args:
            made: folder on a disk in which it was made.
        """
        (self.out / prefix.MARK).unlink()
        if not (made.parent / "lock").is_file():
            return
        try:
            here = (made / self.last).read_bytes()
        except OSError:
            here = b""
        if not here or content(self.out / self.last) == here:
            with exclusive_folder(made.parent, "lock"):
                _remove(made, bool(here))


def _remove(made: Path, whole: bool = True) -> None:
    """Removes what was made, in one step: half of it could not be told from what others keep there.

    Args:
        made: its folder, which may be gone.
        whole: it is there as it was made; else only what an earlier removal left goes.
    """
    away = made.with_name(f".{made.name}.removed")
    shutil.rmtree(away, ignore_errors=True)
    if whole and made.exists():
        os.replace(made, away)
        shutil.rmtree(away)

"""Copies of shards on a disk of this host: fetched, compared with their checksums, shared by its ranks, evicted by age.

A copy is SHA256.mindrecord, so that the shards of several datasets lie beside each other. Whoever reads one holds a
shared lock on it (flock), which the system gives back with the process; what is locked is not evicted.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event

from faceshards.checksums import difference, file_state
from faceshards.errors import FaceshardsError, disk_full, why
from faceshards.files import bytes_text, writable_at
from faceshards.reading import BLOCK, open_file, open_regular
from faceshards.storage.location import Location
from training.data.layout import StreamError

log = logging.getLogger(__name__)

_COPY = re.compile(r"[0-9a-f]{64}\.(mindrecord|part)")
_OURS = re.compile(rf"{_COPY.pattern}|[0-9a-f]{{64}}\.lock|\.lock")
_OF_THE_DISK = "lost+found"


class CacheError(FaceshardsError):
    """A cache cannot be used, or has no room."""


class ShardCache:
    """A folder with copies of shards.

    Args:
        folder: for them alone; made when it is first needed.
        limit: bytes that they may take together, of all who use the folder; 0: no limit.
    """

    def __init__(self, folder: Path, limit: int = 0) -> None:
        self.folder, self.limit = folder, limit
        self._compared: dict[str, tuple[int | str, int, int] | None] = {}  # states of files, by SHA-256

    def check(self, need: int, whole: int) -> None:
        """Refuses a folder that cannot be written or is not for this user's shards alone, a low limit, a small disk.

        Args:
            need: bytes that readers on this host hold at once.
            whole: bytes of all shards that they read.

        Raises:
            CacheError: one line.
        """
        if self.limit and self.limit < need:
            raise CacheError(
                f"--cache-bytes {self.limit}: what the ranks of this host read at once takes up to {need} "
                f"({bytes_text(need)}), the smallest that works"
            )
        try:
            place = writable_at(self.folder)
        except FaceshardsError as error:
            raise CacheError(str(error)) from None
        with suppress(FileNotFoundError):
            for entry in sorted(os.scandir(self.folder), key=lambda entry: entry.name):
                if cause := _strange(entry):
                    raise CacheError(f"{self.folder}: holds {entry.name}, {cause}: choose a folder for shards alone")
        room = shutil.disk_usage(place).free + sum(count for _, count, _ in self._copies())
        if room < min(whole, self.limit or whole):
            text = f"{self.folder}: its disk has room for {bytes_text(room)} of shards"
            if room < need:
                raise CacheError(f"{text}, {need} ({bytes_text(need)}) are read at once: make room")
            raise CacheError(
                f"{text}, {bytes_text(whole)} are read: make room, or choose --cache-bytes from {need} to {room} "
                f"({bytes_text(need)} to {bytes_text(room)})"
            )

    def _copies(self) -> list[tuple[int, int, Path]]:
        """Returns of each copy, and each that is being made, when it was read last (ns), its bytes, and its path."""
        found = []
        with suppress(FileNotFoundError):
            for entry in os.scandir(self.folder):
                with suppress(FileNotFoundError):  # a part became a shard, or another one evicted it
                    if _COPY.fullmatch(entry.name):
                        status = entry.stat()
                        found.append((status.st_atime_ns, status.st_size, Path(entry.path)))
        return sorted(found)

    def take(self, source: Location, size: int, sha256: str, ended: Event) -> int:
        """Returns the descriptor of a copy, open for reading; it is not evicted until that is closed.

        Of several processes that want the same shard, one fetches it.

        Args:
            source: where the shard lies.
            size: in bytes, as the manifest says.
            sha256: hex, likewise.
            ended: set when nobody waits for it any more.

        Raises:
            CacheError: there is no room, or the folder cannot be written.
            StreamError: the source is not what was published.
            StorageError: the source cannot be read.
        """
        path = self.folder / f"{sha256}.mindrecord"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _alone(path.with_suffix(".lock"), remove=True):
                handle = self._open(path, size, sha256)
                return self._fetch(source, size, path, ended) if handle is None else handle
        except FaceshardsError:  # of a store's it is an OSError too
            raise
        except OSError as error:
            raise CacheError(f"{self.folder}: cannot keep shards: {why(error)}") from None

    def _open(self, path: Path, size: int, sha256: str) -> int | None:
        """Returns the descriptor of a whole copy; None if there is none."""
        try:
            handle = open_regular(path)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_SH)
            if not _is(path, handle):  # it was evicted meanwhile
                os.close(handle)
                return None
            state = file_state(path)
            if self._compared.get(sha256) != state:  # each process looks at it once
                if problem := difference(path, size, sha256, "the manifest"):
                    log.warning("%s; damaged in the cache, it is fetched again", problem)
                    path.unlink(missing_ok=True)
                    os.close(handle)
                    return None
                self._compared[sha256] = state
            os.utime(handle, ns=(time.time_ns(), os.fstat(handle).st_mtime_ns))  # its age
        except BaseException:
            os.close(handle)
            raise
        return handle

    def _fetch(self, source: Location, size: int, path: Path, ended: Event) -> int:
        """Returns the descriptor of a copy, newly fetched and compared with its checksum."""
        part = path.with_suffix(".part")
        handle = self._room(part, size)
        try:
            if _copy(source, size, handle, ended) != path.stem:
                log.warning("%s: its SHA-256 is not the manifest's; it is fetched once more", source)
                if _copy(source, size, handle, ended) != path.stem:
                    raise StreamError(f"{source}: changed since it was published: its SHA-256 is not the manifest's")
            with _alone(self.folder / ".lock"):  # who counts what is kept would miss it between its two names
                os.replace(part, path)
                fcntl.flock(handle, fcntl.LOCK_SH)
            self._compared[path.stem] = file_state(path)
        except BaseException:
            part.unlink(missing_ok=True)
            os.close(handle)
            raise
        return handle

    def _room(self, part: Path, size: int) -> int:
        """Returns the descriptor of a file of that size, locked; what was not used for longest makes room for it."""
        with _alone(self.folder / ".lock"):
            part.unlink(missing_ok=True)  # of a process that was killed
            kept = self._copies()
            total = sum(count for _, count, _ in kept)
            evicted = (count for _, count, path in kept if _evict(path))  # each when it is asked for
            while self.limit and total + size > self.limit:
                if (count := next(evicted, None)) is None:
                    raise CacheError(
                        f"{self.folder}: {bytes_text(total)} of --cache-bytes {self.limit} are in use, which leaves no "
                        f"room for {bytes_text(size)} more; others read from there too: raise it, or choose a folder "
                        "apart"
                    )
                total -= count
            handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                while not _allocated(handle, size):
                    if next(evicted, None) is None:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except BaseException:
                part.unlink(missing_ok=True)
                os.close(handle)
                raise
            return handle


def _copy(source: Location, size: int, handle: int, ended: Event) -> str:
    """Returns the SHA-256 (hex) of what was copied from a source; "" if it is not of that size."""
    digest, count = hashlib.sha256(), 0
    os.lseek(handle, 0, os.SEEK_SET)
    with open_file(source) as file, open(handle, "wb", closefd=False) as copy:
        if file.size != size:
            return ""
        while count < size:
            if ended.is_set():
                raise CacheError(f"{source}: nobody waits for it any more")
            data = file.read_at(count, BLOCK)
            digest.update(data)
            copy.write(data)
            count += len(data)
            if not data:  # it was cut meanwhile
                return ""
    return digest.hexdigest()


def _allocated(handle: int, size: int) -> bool:
    """Returns whether the disk has room for an open file of that size, which is kept for it then."""
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError as error:
        if disk_full(error):
            return False
        raise
    return True


@contextmanager
def _alone(path: Path, remove: bool = False) -> Iterator[None]:
    """Waits for an exclusive lock on a file, made for it, and removed again if that is asked for."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if _is(path, handle):
                break
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # of one who removed it meanwhile
    try:
        yield
    finally:
        if remove:
            path.unlink(missing_ok=True)
        os.close(handle)


def _strange(entry: os.DirEntry[str]) -> str | None:
    """Returns why an entry of a folder cannot be one of a cache's, None if it can."""
    if entry.name == _OF_THE_DISK:
        return None
    if not _OURS.fullmatch(entry.name):
        return "which is no shard of a cache"
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:  # evicted meanwhile
        return None
    if not stat.S_ISREG(status.st_mode):
        return "which is no file"
    if os.geteuid() not in (0, status.st_uid):  # only its owner may say when it was read, or lock it for itself
        return "which is another user's"
    return None


def _is(path: Path, handle: int) -> bool:
    """Returns whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def _evict(path: Path) -> bool:
    """Returns whether a file is gone, which it is not if anybody has locked it."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True

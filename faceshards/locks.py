"""Folders that one process has to itself."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faceshards.errors import FaceshardsError, why
from faceshards.storage.lease import leased
from faceshards.storage.location import Location, StoredPath

_TRIES = 100  # to lock a folder that others remove: each try is another process that has just left it
_OWN = "faceshards-own-"
_YOUNG = 60  # seconds
# How file systems say that they lock no files: NFS without its lock daemon, some mounts of FUSE and Lustre.
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class BusyError(FaceshardsError):
    """Another process has a folder to itself.

    Args:
        folder: the folder.
        holder: number of that process, as it wrote it down.
    """

    def __init__(self, folder: Path, holder: str) -> None:
        super().__init__(f"{folder}: another process ({holder}) is at work there")
        self.holder = holder


@contextmanager
def exclusive_folder(folder: Path, name: str = ".lock") -> Iterator[None]:
    """Makes a folder and keeps it from a second process until this one leaves it or dies.

    Args:
        folder: the folder; whoever has it may remove it.
        name: of the lock file in it, which says the number of the process.

    Raises:
        BusyError: another process has it.
        FaceshardsError: it cannot be made, or its file system has no locks; an OSError of the work inside likewise, as
            one line.
    """
    try:
        lock = _lock(folder, name)
    except OSError as error:
        raise FaceshardsError(f"{error.filename or folder}: cannot be made: {why(error)}") from None
    try:
        try:
            yield
        finally:
            os.close(lock)
    except FaceshardsError:  # of a store's it is one line already
        raise
    except OSError as error:
        raise FaceshardsError(f"{error.filename or folder}: {why(error)}") from None


@contextmanager
def exclusive(folder: Location) -> Iterator[None]:
    """Keeps a folder, or a prefix in a bucket, from a second process until this one leaves it or dies.

    Raises:
        BusyError, HeldError: another process has it.
        FaceshardsError: see exclusive_folder().
    """
    with leased(folder / ".lock") if isinstance(folder, StoredPath) else exclusive_folder(folder):
        yield


@contextmanager
def own_folder() -> Iterator[Path]:
    """Yields an empty folder among the temporary files of this machine, which is gone afterwards.

    Those of processes that were killed are removed by the next one that makes one.
    """
    home = Path(tempfile.gettempdir())
    for left in home.glob(f"{_OWN}*"):
        _remove_if_left(left)
    folder = home / f"{_OWN}{uuid.uuid4().hex}"
    with exclusive_folder(folder):
        try:
            (folder / "here").mkdir()
            yield folder / "here"
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_if_left(folder: Path) -> None:
    """Removes a folder of own_folder() if its process is dead; one that has just been made may have no lock yet."""
    try:
        if time.time() - folder.stat().st_mtime > _YOUNG and holder_of(folder / ".lock") is None:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return  # another one removed it


def holder_of(path: Path) -> str | None:
    """Returns the number of the process that holds a lock file of exclusive_folder(), None if none does.

    Args:
        path: the lock file.
    """
    try:
        lock = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that ask do not hinder each other
    except BlockingIOError:
        return _holder(lock)
    except OSError:  # a file system without locks: nobody holds one
        return None
    finally:
        os.close(lock)
    return None


def _holder(lock: int) -> str:
    return os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"


def _lock(folder: Path, name: str) -> int:
    """Returns the lock file of a folder, open and locked."""
    for _ in range(_TRIES):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            if os.path.lexists(folder):
                raise
            continue  # it was there, and is not any more
        lock = _try_lock(folder / name)
        if lock is not None:
            return lock
    if folder.is_dir():
        raise FaceshardsError(f"{folder / name}: cannot be made: {os.strerror(errno.ENOENT)}")
    raise FaceshardsError(f"{folder}: other processes made and removed it {_TRIES} times; try again")


def _try_lock(path: Path) -> int | None:
    """Returns a file, made, open and locked; None if it was removed meanwhile, with its folder, by who had it."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except FileNotFoundError:
        return None
    ours = False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.stat(path), os.fstat(lock)):
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(os.getpid()).encode(), 0)
            ours = True
    except FileNotFoundError:
        return None
    except BlockingIOError:
        raise BusyError(path.parent, _holder(lock)) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise FaceshardsError(
            f"{path.parent}: its file system locks no files ({error.strerror}), so that a second process could write "
            "there at once; choose a folder on another disk, or have it mounted with locks"
        ) from None
    finally:
        if not ours:
            os.close(lock)
    return lock if ours else None

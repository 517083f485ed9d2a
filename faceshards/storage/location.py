"""Where a thing lies: a path of this machine, or an address in a bucket with the handful of methods that both have."""

from __future__ import annotations

import errno
import os
import re
import stat
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import unquote

from faceshards.errors import discreet, one_line
from faceshards.storage import requests
from faceshards.storage.faults import MissingError, StorageError

SCHEMES = ("s3", "gs", "az")

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(/+)(.*)", re.DOTALL)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_SHA256 = "sha256"  # of an object's content (hex), among what is stored with it

NEEDS_CACHE = (
    "in a bucket: training keeps copies of shards on a disk here, in a folder: name it by --cache (in Python cache=)"
)


Version: TypeAlias = dict[str, str]
"""What changes with an object, by which a store replaces no other: its ETag, in some stores a number."""


NO_VERSION: Version = {"e_tag": '"0"', "version": "0"}
"""That no object has."""


class Status(NamedTuple):
    """What is known of an object, by the names of os.stat."""

    st_size: int  # bytes
    st_mtime_ns: int
    st_ino: str  # what changes with the content: the ETag; "" where the store has none
    st_mode: int = stat.S_IFREG

    @property
    def st_mtime(self) -> float:
        """Seconds since 1970."""
        return self.st_mtime_ns / 1e9


@dataclass(frozen=True, order=True)
class StoredPath:
    """A place in a bucket: an object, or the prefix of objects as a folder is one of files; picklable.

    It has pathlib's names where it does the same. Every method that asks the store raises StorageError.

    Args:
        scheme: of SCHEMES.
        bucket: its name.
        key: names with / between them; "" for the bucket itself.
    """

    scheme: str
    bucket: str
    key: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.key}".rstrip("/")

    def __truediv__(self, name: str | PurePosixPath) -> StoredPath:
        return StoredPath(self.scheme, self.bucket, f"{self.key}/{name}".strip("/"))

    @property
    def _pure(self) -> PurePosixPath:
        return PurePosixPath(self.key or self.bucket)

    @property
    def name(self) -> str:
        """The last name."""
        return self._pure.name

    @property
    def stem(self) -> str:
        """The last name up to its last dot."""
        return self._pure.stem

    @property
    def suffix(self) -> str:
        """The last name from its last dot on."""
        return self._pure.suffix

    @property
    def parent(self) -> StoredPath:
        """The prefix that this lies under."""
        return StoredPath(self.scheme, self.bucket, self.key.rpartition("/")[0])

    def with_name(self, name: str) -> StoredPath:
        """Returns the place of another name beside this one."""
        return self.parent / name

    def with_suffix(self, suffix: str) -> StoredPath:
        """Returns the place with another ending."""
        return self.with_name(self._pure.with_suffix(suffix).name)

    def resolve(self) -> StoredPath:
        """Returns itself: in buckets are no links."""
        return self

    def stat(self) -> Status:
        """Returns what is known of the object.

        Raises:
            MissingError: there is none; where the bucket is missing, it is not a MissingError.
        """
        try:
            return status(requests.head(self))
        except MissingError:
            self._check_bucket()  # a HEAD has no words for it
            raise

    def exists(self) -> bool:
        """Returns whether there is such an object."""
        try:
            self.stat()
        except MissingError:
            return False
        return True

    def is_file(self) -> bool:
        """Returns whether there is such an object."""
        return bool(self.key) and self.exists()

    def is_dir(self) -> bool:
        """Returns whether objects lie below this place."""
        return next(self.tree(), None) is not None

    def entries(self) -> Iterator[tuple[StoredPath, bool]]:
        """Yields what is right below this place, and whether it is the prefix of more."""
        found = requests.children(self)
        for key in found["common_prefixes"]:
            yield StoredPath(self.scheme, self.bucket, key.rstrip("/")), True
        for entry in found["objects"]:
            if entry["path"] != self.key:  # else a console's mark of a folder, PREFIX/, which comes without its slash
                yield StoredPath(self.scheme, self.bucket, entry["path"]), False

    def iterdir(self) -> Iterator[StoredPath]:
        """Yields what is right below this place, as a folder's entries."""
        return (entry for entry, _ in self.entries())

    def tree(self) -> Iterator[tuple[StoredPath, int]]:
        """Yields every object below this place, and its size in bytes; not the marks of folders that consoles make."""
        last = None  # of no bytes: a mark, if what lies below it comes next
        for entry in requests.below(self):
            if last and not entry["path"].startswith(f"{last}/"):
                yield StoredPath(self.scheme, self.bucket, last), 0
            last = None if entry["size"] else entry["path"]
            if entry["size"]:
                yield StoredPath(self.scheme, self.bucket, entry["path"]), entry["size"]
        if last and last != self.key:
            yield StoredPath(self.scheme, self.bucket, last), 0

    def below(self, after: str = "") -> Iterator[tuple[str, Status]]:
        """Yields the path of every object below this place, from here on, and what is known of it.

        Args:
            after: only of those whose paths come after this one in the store's order.
        """
        start = len(self.key) + bool(self.key)
        for entry in requests.below(self, f"{self.key}/{after}".lstrip("/") if after else ""):
            if name := entry["path"][start:]:
                yield name, status(entry)

    def sha256(self) -> tuple[int, str]:
        """Returns size and SHA-256 (hex) of the object as it was uploaded; "" if it was not by `upload`."""
        return requests.attribute(self, _SHA256)

    def write_bytes(
        self, data: bytes | memoryview, exclusive: bool = False, replaces: Version | None = None
    ) -> Version:
        """Returns the version of an object, which is made or replaced whole or not at all.

        Args:
            data: its content.
            exclusive: only if there is none yet.
            replaces: only this version.

        Raises:
            TakenError: exclusive, and there is one.
            StorageError: ESTALE: there is another one than is to be replaced, or none.
        """
        if exclusive:
            return version(requests.put_once(self, data))
        return version(requests.put(self, data, mode=replaces or "overwrite"))

    def upload(self, path: Path, sha256: str) -> None:
        """Makes or replaces an object with the content of a file, whole or not at all.

        Args:
            path: of the file.
            sha256: its digest (hex), which is stored with the object.
        """
        requests.upload(self, path, {_SHA256: sha256})

    def unlink(self, missing_ok: bool = True) -> None:
        """Removes the object; nothing happens if there is none."""
        requests.delete(self)

    def mkdir(self, parents: bool = True, exist_ok: bool = True) -> None:
        """Does nothing: a prefix is there as soon as an object is."""

    def check_writable(self) -> None:
        """Raises StorageError if no objects can be made below this place; none is made to see that."""
        self._check_bucket()
        probe = self / f".faceshards-{uuid.uuid4().hex}"
        try:
            probe.write_bytes(b"", replaces=NO_VERSION)
        except StorageError as error:
            if not is_other(error):
                raise StorageError(error.errno, error.strerror, str(self)) from None
        else:  # a store that ignores the condition
            probe.unlink()

    def _check_bucket(self) -> None:
        """Raises StorageError if the bucket is missing, as far as one may look."""
        try:
            requests.check_bucket(self)
        except StorageError as error:
            if error.errno != errno.EACCES:
                raise


Location: TypeAlias = Path | StoredPath
"""Where a thing lies."""


def absolute(path: str | Location) -> Location:
    """Returns a place that does not depend on the folder one stands in."""
    found = as_location(path)
    return found if isinstance(found, StoredPath) else Path(os.path.abspath(found))


def lies_in(place: Location, folder: Location) -> bool:
    """Returns whether a place is a folder (or a prefix in a bucket), or lies in it, by their names alone."""
    if isinstance(place, StoredPath) or isinstance(folder, StoredPath):
        return f"{place}/".startswith(f"{folder}/")
    return place.is_relative_to(folder)


def is_other(error: StorageError) -> bool:
    """Returns whether an object was not replaced because it is another one, or gone."""
    return error.errno == errno.ESTALE or isinstance(error, MissingError)


def version(found: Any) -> Version:
    """Returns the version in what obstore says of an object."""
    return {name: found[name] for name in ("e_tag", "version") if found[name]}


def status(found: Any) -> Status:
    """Returns what obstore says of an object."""
    changed: datetime = found["last_modified"]
    return Status(found["size"], round(changed.timestamp() * 1e6) * 1000, found["e_tag"] or "")


def as_location(text: str | Location) -> Location:
    """Returns what a path or an address of the user's means.

    Raises:
        StorageError: an address that is none, of another scheme, or one that holds credentials.
    """
    if not isinstance(text, str):
        return as_location(str(text)) if isinstance(text, Path) and _collapsed(text) else text
    found = _ADDRESS.fullmatch(text)
    if found is None and text != text.strip() and _ADDRESS.fullmatch(text.strip()) and not os.path.lexists(text):
        raise _refused(repr(discreet(text)), "no address begins with a blank")
    if found is None or (len(found[2]) == 1 and os.path.lexists(text)):
        return Path(text)
    scheme, slashes, rest = found[1].lower(), found[2], found[3]
    if len(slashes) == 1 and scheme not in (*SCHEMES, "file"):
        return Path(text)
    if scheme == "file" and len(slashes) != 2:
        return Path("/" + unquote(rest))
    bucket, _, key = rest.partition("/")
    # What holds credentials is never repeated.
    shown = f"{scheme}://..." if re.search("[@:?]", bucket) or re.search(r"[?&][^/]*=", key) else text
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in (*SCHEMES, "file"))
        raise _refused(shown, f"addresses of {scheme} are not known; there are {known}{'/' * (scheme == 'file')}")
    if shown != text:
        raise _refused(shown, "an address holds no credentials or options: command lines are public; set variables")
    if len(slashes) != 2 or not bucket:
        raise _refused(text, f"no bucket in it: an address is {scheme}://BUCKET/PREFIX")
    if not _BUCKET.fullmatch(bucket):
        raise _refused(text, "no name of a bucket: letters, digits, dots and dashes, at least two")
    names = key.rstrip("/").split("/") if key.rstrip("/") else []
    if bad := next((name for name in names if name in ("", ".", "..") or not name.isprintable()), None):
        raise _refused(text, f"{bad!r} is no name in a bucket")
    if "" in names:
        raise _refused(text, "an empty name, between two slashes")
    return StoredPath(scheme, bucket, "/".join(names))


def _collapsed(path: Path) -> bool:
    """Returns whether a Path was made of an address, which takes a slash from it."""
    return str(path).startswith(tuple(f"{scheme}:/" for scheme in SCHEMES)) and not os.path.lexists(path)


def _refused(text: str, cause: str) -> StorageError:
    return StorageError(errno.EINVAL, cause, one_line(text))

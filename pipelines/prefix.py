"""Prefixes in a bucket as the places of a build: of the dataset, and of the work where no disk is shared.

That of a dataset, an export or a split is claimed by a mark, and published by dataset.json (of an export, export.json),
which comes last.

Until that is there, no reader takes what lies at the prefix for a dataset. The mark, the first object, says
whose it is: a lease as long as a build is at work, afterwards a note for the next one. The same request goes on there,
another one is refused.
"""

from __future__ import annotations

import errno
import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from typing import Any, NamedTuple

from faceshards.errors import BuildError
from faceshards.files import differences
from faceshards.formats.json_files import read_json
from faceshards.reading import content, each
from faceshards.storage.faults import MissingError, StorageError, TakenError
from faceshards.storage.lease import HeldError, Lease, LostError, leased
from faceshards.storage.location import Location, StoredPath

MARK = ".faceshards-upload.json"

_PIECES = "pieces-"
_TOLD = {"lock": "token", "request.json": "pieces"}  # what objects of a work prefix say


class File(NamedTuple):
    """A file of a dataset."""

    name: str
    bytes: int
    sha256: str
    images: int = 0


def files_of(info: Mapping[str, Any], shards: Iterable[Mapping[str, Any]]) -> list[File]:
    """Returns every file of a dataset but dataset.json.

    Args:
        info: what dataset.json says.
        shards: rows of its table `shards`.
    """
    found = [File(name, entry["bytes"], entry["sha256"]) for name, entry in info["files"].items()]
    for shard in shards:
        found.append(File(f"shards/{shard['file']}", shard["bytes"], shard["sha256"], shard["rows"]))
        found.append(File(f"shards/{shard['file']}.db", shard["db_bytes"], shard["db_sha256"]))
    return found


@contextmanager
def claimed(
    out: StoredPath, last: str, request: Mapping[str, Any], restart: bool, what: str = "build"
) -> Iterator[Lease]:
    """Yields the lease of a prefix at which only this request is built; what is there is left for the next one.

    Args:
        out: the prefix.
        last: name of the object that makes it whole.
        request: what is built there.
        restart: what an interrupted build left is removed, whatever its request.
        what: makes it, a build, an ``export`` or a ``split``.

    Raises:
        BuildError: something else is there, or another build is at work.
    """
    _check_free(out, what)

    def accept(found: Mapping[str, Any]) -> None:
        if not restart:
            _check_mark(out, found, request)

    try:
        lease = Lease(out / MARK, {"request": _digest(request)}, accept)
    except HeldError as error:
        raise BuildError(f"{out}: another {what} (process {error.holder}) is writing it") from None
    keep = True
    try:
        if (out / last).exists():  # since it was looked for
            raise BuildError(f"{out}: another {what} published there just now; run the same command again")
        if restart:
            clear(out)
        yield lease
        keep = False
    finally:
        lease.release(keep and not _is_bare(out))


def _digest(request: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def _is_bare(out: StoredPath) -> bool:
    """Returns whether nothing lies there but the mark; a store that does not say so is not asked for long."""
    try:
        return all(place == out / MARK for place, _ in out.tree())
    except StorageError:
        return False


def check_outside(out: Location) -> None:
    """Refuses a place in a dataset or, in a bucket, where one is being made: with that one it would be removed.

    Raises:
        BuildError: says which.
    """
    place, around = out, list[Location]()
    while place.parent != place:
        place = place.parent
        around += [place / "dataset.json", *([place / MARK] if isinstance(place, StoredPath) else [])]
    if found := next(filter(None, each(_what_is_at, around)), None):
        raise BuildError(f"{out}: lies in {found}, and would be taken for a part of it; choose another place")


def _what_is_at(last: Location) -> str:
    """Returns what a dataset.json or a mark makes of the place that it is in; "" if it is not there, or not of ours."""
    try:
        found = read_json(last)
    except StorageError as error:
        if error.errno not in (errno.ENOENT, errno.EACCES):  # others' prefixes may be closed to us
            raise
        return ""
    except (OSError, ValueError):
        return ""
    if last.name == MARK:
        return f"{last.parent}, where another dataset is being made"
    return f"the dataset {last.parent}" if isinstance(found, dict) and "fingerprint" in found else ""


def _check_free(out: StoredPath, what: str = "build") -> None:
    """Raises BuildError if something is there that is no interrupted build."""
    check_outside(out)
    if not (out / MARK).exists() and out.is_dir():
        thing = "export" if what == "export" else "dataset"
        raise BuildError(f"{out}: objects lie there, and no {thing} of ours; they are not touched")


def _check_mark(out: StoredPath, found: Mapping[str, Any], request: Mapping[str, Any]) -> None:
    """Raises BuildError if a mark is another request's."""
    if found.get("request") != _digest(request):
        raise BuildError(
            f"{out}: an interrupted upload of another request lies there; choose another prefix, or pass --restart "
            "to remove it"
        )


def refused(out: StoredPath, request: Mapping[str, Any]) -> None:
    """Raises BuildError if a request would be refused at a prefix without a dataset; nothing is made there."""
    _check_free(out)
    try:
        found = read_json(out / MARK)
    except MissingError:
        return
    except ValueError:
        found = {}
    _check_mark(out, found if isinstance(found, dict) else {}, request)


def clear(out: StoredPath) -> None:
    """Removes what an interrupted build left, the mark apart; nothing else."""
    if (out / MARK).exists():
        each(StoredPath.unlink, [place for place, _ in out.tree() if place != out / MARK])


def is_there(place: StoredPath, file: File) -> bool:
    """Returns whether an object is a file that was uploaded before."""
    try:
        return place.sha256() == (file.bytes, file.sha256)
    except MissingError:
        return False


def publish(out: StoredPath, files: Iterable[File], last: str, data: bytes, lease: Lease, what: str = "build") -> None:
    """Puts the object that makes it whole, once all else is known to be there.

    Args:
        out: the prefix.
        files: all others.
        last: name of the object.
        data: its content.
        lease: of the prefix.
        what: makes it, a build, an ``export`` or a ``split``.

    Raises:
        BuildError: the objects are not those of the dataset, or another one was published meanwhile.
        LostError: another build took the prefix over.
    """
    expected = {str(out / file.name): file for file in files}
    there = {str(place): size for place, size in out.tree() if place != out / MARK}
    if there != {name: file.bytes for name, file in expected.items()}:
        raise BuildError(f"{out}: other objects came there while it was uploaded, or some were lost; run it again")
    found = each(lambda file: is_there(out / file.name, file), list(expected.values()))
    if wrong := next((name for name, same in zip(expected, found, strict=True) if not same), None):
        raise BuildError(f"{wrong}: was replaced by another {what}; pass --restart to {what} it anew")
    lease.renew()
    try:
        (out / last).write_bytes(data, exclusive=True)
    except TakenError:
        if content(out / last) != data:
            raise BuildError(f"{out}: another {what} published there meanwhile") from None


def check_apart(work: StoredPath, out: StoredPath, sources: Iterable[str]) -> None:
    """Refuses a work prefix that holds the dataset or a source, or lies in one of them.

    Raises:
        BuildError: says which.
    """
    for what, place in (("dataset", str(out)), *(("source", path) for path in sources)):
        if f"{work}/".startswith(f"{place}/") or f"{place}/".startswith(f"{work}/"):
            raise BuildError(f"{work}: the {what} is {place}; choose a prefix for the work that is apart from it")


@contextmanager
def exclusive_work(work: StoredPath) -> Iterator[StoredPath]:
    """Yields a work prefix, kept from a second build until the end of this one, or soon after its death.

    Raises:
        BuildError: another build holds it, or it is no place for one.
    """
    if not work.key:
        raise BuildError(f"{work}: is a whole bucket; name a prefix in it to build in")
    if other := next((place for place, _ in work.entries() if not _is_ours(place) and place != work), None):
        raise BuildError(f"{other}: is none of a build's; nothing is touched there, choose another prefix to build in")
    try:
        with leased(work / "lock"):
            yield work
    except HeldError as error:
        raise BuildError(f"{work}: another build (process {error.holder}) is at work there") from None


def _is_ours(place: StoredPath) -> bool:
    """Returns whether what lies right in a work prefix is a build's: others may have a lock or a request.json too."""
    if place.name not in _TOLD:
        return place.name == "planned" or place.name.startswith(_PIECES)
    try:
        found = read_json(place)
    except MissingError:  # another build has just left
        return True
    except ValueError:
        return False
    return isinstance(found, dict) and _TOLD[place.name] in found


def own_pieces(work: Location) -> dict[str, str]:
    """Returns where the pieces of a request are to lie in a work prefix, for its request.json; nothing for a folder.

    Each request has a prefix of its own: a worker that has not yet heard of a new one still puts a piece of the last.
    """
    return {"pieces": f"{_PIECES}{uuid.uuid4().hex[:12]}"} if isinstance(work, StoredPath) else {}


def has_pieces(work: StoredPath, begun: str, error: BaseException) -> bool:
    """Returns whether objects lie there whose names end as a pattern says; a store that has just failed is not asked
    again, and a prefix that another build has taken over is none of ours."""
    if isinstance(error, StorageError | LostError):
        return True
    return any(fnmatch(str(place), f"*/{begun}") for place, _ in work.tree())


def clear_work(work: StoredPath) -> None:
    """Removes what is a build's, its lock apart, which is its holder's to remove."""
    for place, is_prefix in [*work.entries()]:
        if is_prefix and _is_ours(place):
            each(StoredPath.unlink, [piece for piece, _ in place.tree()])
    for name in ("planned", "request.json"):
        (work / name).unlink()


def clear_same(work: StoredPath, request: Mapping[str, Any]) -> None:
    """Removes what a build of this request left when it was ended just after it had published."""
    with suppress(OSError, ValueError, BuildError):  # of others, who may be at work there
        before = read_json(work / "request.json")
        if not differences({**before, "pieces": None}, {**request, "pieces": None}):
            with exclusive_work(work):
                clear_work(work)

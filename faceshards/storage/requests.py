"""Requests to stores, made again where obstore does not do it by itself.

obstore repeats what found no server, 5xx, 408 and 429, and goes on with an object whose bytes broke off. It does not
repeat what may not take effect twice, and believes what it is sent: half of a range, a page of a login, half a list.
"""

from __future__ import annotations

import errno
import functools
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

from faceshards.storage import stores
from faceshards.storage.faults import DamagedError, MissingError, PassingError, StorageError, TakenError, told

_MOST = 6  # times: who sends a page of HTML will do so in three minutes, too
_CHUNK = 8 << 20  # bytes of a piece of an upload: with 10,000 pieces, objects of up to 80 GB
_AT_ONCE = 4  # pieces in flight
_MADE_BY = "made-by"  # of objects that were to be made once: which request did

_Given = ParamSpec("_Given")
_Found = TypeVar("_Found")


class Place(Protocol):
    """An address, of an object or a prefix; printed as such."""

    @property
    def scheme(self) -> str:
        """Of the address."""

    @property
    def bucket(self) -> str:
        """Its name."""

    @property
    def key(self) -> str:
        """Names with / between them; "" for the bucket itself."""


def patient(request: Callable[_Given, _Found]) -> Callable[_Given, _Found]:
    """Returns a function that makes a request again as long as its error may pass.

    Args:
        request: raises PassingError then; may be called again with the same arguments.
    """

    @functools.wraps(request)
    def repeated(*given: _Given.args, **named: _Given.kwargs) -> _Found:
        began, most, longest = time.monotonic(), min(stores.attempts(), _MOST), stores.PAUSES[0]
        for times in range(1, most + 1):
            try:
                return request(*given, **named)
            except PassingError as error:
                took, pause, last = time.monotonic() - began, random.uniform(stores.PAUSES[0], longest), error
                if times == most or took + pause > stores.RETRY_SECONDS:
                    break
            time.sleep(pause)
            longest = min(2 * longest, stores.PAUSES[1])
        said = str(last.strerror).partition(" (tried ")[0]
        often = "once" if times == 1 else f"{times} times in {took:.3g} s"
        raise StorageError(last.errno, f"{said} (tried {often})", last.filename) from None

    return repeated


@contextmanager
def _asked(place: Place, uploads: bool = False) -> Iterator[tuple[Any, Any]]:
    """Yields obstore, and the store; what goes wrong is told."""
    store: Any = stores.store(place.scheme, place.bucket, uploads)
    with told(place, store.config.get("endpoint", "")) as obstore:
        yield obstore, store


def is_protected(place: Place) -> bool:
    """Returns whether bytes of a store cannot come changed: unless it is asked over http, they come over TLS."""
    store: Any = stores.store(place.scheme, place.bucket)
    return not str(store.config.get("endpoint", "")).startswith("http://")


@patient
def head(place: Place) -> Any:
    """Returns what obstore says of an object."""
    with _asked(place) as (obstore, store):
        return _tagged(obstore.head(store, place.key))


@patient
def attribute(place: Place, name: str) -> tuple[int, str]:
    """Returns size of an object, and what is stored with it under a name, or ""."""
    with _asked(place) as (obstore, store):
        found = obstore.get(store, place.key, options={"head": True})
        return _tagged(found.meta)["size"], str(found.attributes.get(name, ""))


def _tagged(about: Any) -> Any:
    """Returns what is known of an object; every store gives it an ETag, and no other server."""
    if not about["e_tag"]:
        raise DamagedError("no ETag")
    return about


@patient
def part(place: Place, start: int, stop: int, tag: str) -> bytes:
    """Returns bytes of an object, if it is the one of that ETag."""
    with _asked(place) as (obstore, store):
        return _all_of(obstore.get(store, place.key, options={"range": (start, stop), "if_match": tag}), stop - start)


@patient
def some(place: Place, start: int, stop: int) -> tuple[bytes, Any]:
    """Returns bytes of an object, as far as it has them, and what obstore says of it.

    Args:
        place: of the object.
        start: the first; below 0: so many of its last ones, whatever `stop` is.
        stop: behind the last.

    Raises:
        StorageError: ERANGE: it ends before `start`, or is empty.
    """
    with _asked(place) as (obstore, store):
        wanted = {"suffix": -start} if start < 0 else (start, stop)
        found = obstore.get(store, place.key, options={"range": wanted})
        return _all_of(found, found.range[1] - found.range[0]), _tagged(found.meta)


@patient
def whole(place: Place, most: int) -> tuple[bytes, Any]:
    """Returns the content of an object, and what obstore says of it; StorageError if it has more than `most` bytes."""
    with _asked(place) as (obstore, store):
        found = obstore.get(store, place.key)
        if (size := found.meta["size"]) > most:
            raise StorageError(errno.EFBIG, f"{size} bytes, no file of ours has more than {most} there", str(place))
        return _all_of(found, size), _tagged(found.meta)


def _all_of(found: Any, count: int) -> bytes:
    """Returns the body of an answer that has so many bytes."""
    data = bytes(found.bytes())
    if len(data) != count:  # it may be shorter than the range that the answer names
        raise DamagedError(f"{len(data)} bytes of {count}")
    return data


def children(place: Place) -> Any:
    """Returns what obstore lists right below a place."""
    found = _children(place)
    if not found["common_prefixes"] and not found["objects"]:
        _check_empty(place)
        found = _children(place)
    return found


@patient
def _children(place: Place) -> Any:
    with _asked(place) as (obstore, store):
        return obstore.list_with_delimiter(store, place.key or None)


def below(place: Place, after: str = "") -> Iterator[Any]:
    """Yields what obstore lists of all objects below a place, or of those whose keys come after one."""
    last, pages = after, None

    @patient
    def page() -> Any:
        nonlocal pages
        try:
            with _asked(place) as (obstore, store):
                pages = pages or iter(obstore.list(store, place.key or None, offset=last or None))
                return next(pages, None)
        except StorageError:
            pages = None  # it ends with its first error: another one goes on behind what came
            raise

    entries = page()
    if not entries:
        _check_empty(place)
        pages = None
        entries = page()
    while entries:
        last = entries[-1]["path"]
        yield from entries
        entries = page()


@patient
def _check_empty(place: Place) -> None:
    """Sees that it is a store that listed nothing, before it is asked again: a page of HTML reads the same."""
    try:
        with _asked(place) as (obstore, store):
            _tagged(obstore.head(store, f"{place.key}/.faceshards".lstrip("/")))
    except MissingError:
        pass
    except StorageError as error:
        if error.errno != errno.EACCES:  # who may list but not read is told so by a store, too
            raise


@patient
def check_bucket(place: Place) -> None:
    """Raises StorageError if the bucket is missing."""
    with _asked(place) as (obstore, store):
        next(iter(obstore.list(store, place.key or None)), None)


@patient
def put(place: Place, data: bytes | memoryview, **options: Any) -> Any:
    """Makes or replaces an object, and returns what obstore says of it."""
    with _asked(place) as (obstore, store):
        return obstore.put(store, place.key, data, **options)


def put_once(place: Place, data: bytes | memoryview) -> Any:
    """Makes an object if there is none, and returns what obstore says; TakenError if another one made it."""
    by = uuid.uuid4().hex
    try:
        return put(place, data, mode="create", attributes={_MADE_BY: by})
    except TakenError:  # perhaps by a request of ours that was answered on the second time only
        if attribute(place, _MADE_BY)[1] != by:
            raise
        return head(place)


@patient
def upload(place: Place, path: Path, attributes: Mapping[str, str]) -> None:
    """Makes or replaces an object with the content of a file."""
    by = uuid.uuid4().hex
    about = {**attributes, _MADE_BY: by}
    try:
        with _asked(place, uploads=True) as (obstore, store), open(path, "rb") as file:
            obstore.put(store, place.key, file, attributes=about, chunk_size=_CHUNK, max_concurrency=_AT_ONCE)
    except MissingError:  # completed, unheard, and asked again: a store may not know the upload any more
        if attribute(place, _MADE_BY)[1] != by:
            raise


@patient
def delete(place: Place) -> None:
    """Removes an object; nothing happens if there is none."""
    with _asked(place) as (obstore, store):
        obstore.delete(store, place.key)

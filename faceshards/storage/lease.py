"""Prefixes that one process has to itself: an object says whose, and is renewed as long as that process lives.

A store knows neither locks nor the death of who made an object. So the holder replaces its object every 20 seconds
(If-Match: what it wrote last). Who finds one of a living process of this machine is refused, and of a dead one takes
it over; of another machine's it watches, by its own clock: one that changes is held, one that has not for two minutes
is taken over. Only one of many can (If-Match again), and a holder that was believed dead notices when it renews.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from faceshards.errors import FaceshardsError
from faceshards.storage.faults import MissingError, StorageError, TakenError
from faceshards.storage.location import NO_VERSION, StoredPath, Version, is_other
from faceshards.storage.ranges import read_object

log = logging.getLogger(__name__)

_BEAT = 20.0  # seconds between two renewals
_PATIENCE = 120.0  # seconds without one after which a holder counts as dead
_LOOK = 5.0  # seconds between two looks
_MOST = 64 << 10  # bytes of a lease
_held: set[str] = set()  # tokens of this process's own; one that it has lost, or could not remove, is not among them


class HeldError(FaceshardsError):
    """Another process has a prefix to itself.

    Args:
        place: of its lease.
        holder: who it is.
    """

    def __init__(self, place: StoredPath, holder: str) -> None:
        super().__init__(f"{place.parent}: another process ({holder}) is at work there")
        self.holder = holder


class LostError(FaceshardsError):
    """Another process took a prefix over, believing this one dead."""


class Lease:
    """An object that keeps a prefix from others until `release`, or two minutes after the death of this process.

    Args:
        place: of the object.
        about: what else it says, as JSON has it.
        accept: called with what an earlier object says, before it is taken over; raises if it may not be.

    Raises:
        HeldError: another process has it.
        StorageError: the store refuses, or knows no conditional PUT.
    """

    def __init__(
        self,
        place: StoredPath,
        about: Mapping[str, Any],
        accept: Callable[[Mapping[str, Any]], None] = lambda found: None,
    ) -> None:
        self.place, self.about, self._accept = place, dict(about), accept
        self._token, self._beat, self._lock = uuid.uuid4().hex, 0, threading.Lock()
        self._stop = threading.Event()
        self.fresh = False
        """Whether there was none before."""
        _held.add(self._token)
        try:
            self._version = self._take()
        except BaseException:  # the object may be there already: nobody holds it
            _held.discard(self._token)
            raise
        threading.Thread(target=self._renew_always, name="faceshards-lease", daemon=True).start()

    def renew(self) -> None:
        """Says that this process lives.

        Raises:
            LostError: another one took the prefix over.
        """
        with self._lock:
            self._beat += 1
            try:
                self._version = self.place.write_bytes(self._content(), replaces=self._version)
            except StorageError as error:
                if not is_other(error):
                    raise
                self._version = self._if_ours()

    def release(self, keep: bool = False) -> None:
        """Lets others have the prefix.

        Args:
            keep: the object stays, and says that nobody holds it.
        """
        self._stop.set()
        _held.discard(self._token)
        with self._lock, suppress(StorageError):  # a store that is lost: then it is taken over in time
            if keep:
                self.place.write_bytes(_json({**self.about, "beat": self._beat}), replaces=self._version)
            elif _parsed(read_object(self.place, _MOST)[0]).get("token") == self._token:
                self.place.unlink()

    def _content(self) -> bytes:
        return _json({**self.about, "token": self._token, "beat": self._beat, **_here()})

    def _take(self) -> Version:
        """Returns the version of the object, which is this process's now."""
        seen: Version = {}
        since = time.monotonic()
        while True:
            try:
                version = self.place.write_bytes(self._content(), exclusive=True)
                self._probe()
                self.fresh = True
                return version
            except TakenError:
                pass
            try:
                data, version = read_object(self.place, _MOST)
            except MissingError:
                continue  # released just now
            found = _parsed(data)
            if found.get("token") == self._token:  # the answer to an earlier try was lost
                return version
            if seen and version != seen:
                raise HeldError(self.place, _name(found))
            if (alive := _alive(found)) is True:
                raise HeldError(self.place, _name(found))
            self._accept(found)
            if alive is None and (not seen or time.monotonic() < since + _PATIENCE):
                if not seen:
                    since = time.monotonic()
                    log.warning(
                        "%s: held by %s; waits up to %.0f s to see whether it lives",
                        *(self.place.parent, _name(found), _PATIENCE),
                    )
                seen = version
                self._stop.wait(_LOOK)
                continue
            try:
                return self.place.write_bytes(self._content(), replaces=version)
            except StorageError as error:
                if not is_other(error):
                    raise

    def _probe(self) -> None:
        """Sees that the store would not make the object twice, nor replace another one than it is told to."""
        tries: tuple[tuple[str, dict[str, Any]], ...] = (
            ("If-None-Match", {"exclusive": True}),
            ("If-Match", {"replaces": NO_VERSION}),
        )
        for header, condition in tries:
            try:
                self.place.write_bytes(self._content(), **condition)
            except StorageError as error:
                if isinstance(error, TakenError) or is_other(error):
                    continue
                raise
            self.place.unlink()
            cause = f"its store ignores {header}, so that two could publish there at once"
            raise StorageError(errno.ENOTSUP, cause, str(self.place.parent))

    def _if_ours(self) -> Version:
        """Returns the version of the object if this process wrote it, by a try whose answer was lost."""
        try:
            data, version = read_object(self.place, _MOST)
        except MissingError:
            data, version = b"{}", {}
        found = _parsed(data)
        if found.get("token") != self._token:
            self._stop.set()
            _held.discard(self._token)
            who = f"another process ({_name(found)})" if version else "someone"
            raise LostError(f"{self.place.parent}: {who} took it over, as this one had not been heard of for long")
        return version

    def _renew_always(self) -> None:
        while not self._stop.wait(_BEAT):
            with suppress(StorageError, LostError):  # whoever works there meets them, too
                self.renew()


@contextmanager
def leased(place: StoredPath) -> Iterator[Lease]:
    """Yields a lease that is gone in the end; see Lease."""
    lease = Lease(place, {})
    try:
        yield lease
    finally:
        lease.release()


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content).encode()


def _parsed(data: bytes) -> dict[str, Any]:
    """Returns what a lease says; nothing if it is none."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("token", ""), str) else {}


def _here() -> dict[str, Any]:
    """Returns what tells this process from all others."""
    return {
        "host": socket.gethostname(),
        "processes": _numbers(),
        "process": os.getpid(),
        "started": _start(os.getpid()),
    }


def _numbers() -> str:
    """Returns what the numbers of processes are unique in: a machine since it was started, or a container on it."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start(process: int) -> str:
    """Returns when a process was started, "" if there is none: numbers are given again."""
    try:
        state, *rest = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if state in "ZX" else rest[18]


def _alive(found: Mapping[str, Any]) -> bool | None:
    """Returns whether the holder that a lease names lives; None if it is a process of another machine."""
    if "token" not in found:
        return False
    if not found.get("processes") or found["processes"] != _numbers() or type(found.get("process")) is not int:
        return None
    if found["process"] == os.getpid() and found["token"] not in _held:
        return False
    return _start(found["process"]) == found.get("started") != ""


def _name(found: Mapping[str, Any]) -> str:
    return f"{found.get('process', 'unknown')} on {found.get('host', 'a host')}"

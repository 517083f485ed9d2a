"""What the hosts of a job tell each other: that they live, and why they end, by a small file of each on a shared disk.

A file is written in place, so that a file system that is shared sees each change at the next open (NFS: close-to-open);
a half of one is no JSON, and is read again. No clock is compared with another's: a host lives while its count changes.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from faceshards.formats.json_files import read_json

GO_ON = "; --resume goes on"
BEAT = 1.0  # seconds between two counts of a launcher
SILENT = 10.0  # seconds without a count, after which a host is lost if something has failed anyway
LOST = 30.0  # and after which that alone ends the job
_SIZE = 4096  # bytes of a file, so that one more count needs no room on a full disk


@dataclass(frozen=True)
class Cause:
    """Why a job ends.

    Args:
        text: with rank and host, for the user.
        echo: it may only be what one meets when another has ended: another cause, if there is one, comes before it.
    """

    text: str
    echo: bool = False


@dataclass
class _Other:
    """What is known of another host: its file as last read, and when it changed."""

    record: dict[str, Any] | None = None
    changed: float = 0.0
    seen: bool = False
    old: str = ""
    mutual: bool = False  # it has seen this start of this host's, too
    again: bool = False  # it was started anew since


class Board:
    """The files of all hosts of a job, one of which is this one's.

    Args:
        folder: on the shared disk; has a folder host-R for each, or will have.
        names: of the hosts; of one alone nothing is written.
        rank: this host's place among them.
        clock: seconds that only grow.
    """

    def __init__(
        self, folder: Path, names: tuple[str, ...], rank: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._names, self._rank, self._clock = names, rank, clock
        self._paths = [folder / f"host-{place}" / "host.json" for place in range(len(names))]
        self._mine: dict[str, Any] = {"start": uuid.uuid4().hex, "count": 0, "sees": {}, "done": False, "cause": None}
        self._next = 0.0
        self._others = {place: _Other() for place in range(len(names)) if place != rank}
        for place, other in self._others.items():
            before = self._read(place)
            if before is not None and (before["done"] or before["cause"]):
                other.old = before["start"]  # of a job before, which may still be ending
            other.record = before

    def turn(self) -> None:
        """Counts on, and reads what the others have written; most calls do nothing."""
        now = self._clock()
        if len(self._names) < 2 or now < self._next:
            return
        self._next = now + BEAT
        self._mine["count"] += 1
        self._mine["sees"] = {str(place): o.record["start"] for place, o in self._others.items() if o.seen and o.record}
        self._write()
        for place, other in self._others.items():
            record = self._read(place)
            if record is None or record == other.record or record["start"] == other.old:
                continue
            if other.mutual and other.record and record["start"] != other.record["start"]:
                other.again = True  # and what it says is of another job
            sees = record["sees"].get(str(self._rank), self._mine["start"])
            if other.again or sees != self._mine["start"]:  # a launcher of a job before, which does not know yet
                continue
            other.mutual |= str(self._rank) in record["sees"]
            other.record, other.changed, other.seen = record, now, True

    def tell(self, cause: Cause) -> None:
        """Writes down why this host ends."""
        if self._mine["cause"] != asdict(cause):
            self._mine["cause"] = asdict(cause)
            self._write()

    def done(self) -> None:
        """Writes down that this host has nothing more to say."""
        self._mine["done"] = True
        self._write()

    def told(self) -> list[Cause]:
        """Returns what the other hosts have written down."""
        found = [other.record["cause"] for other in self._others.values() if other.seen and other.record]
        return [Cause(str(cause["text"]), bool(cause["echo"])) for cause in found if cause]

    def silent(self, seconds: float) -> Cause | None:
        """Returns that a host is lost, if one has not counted for so long, or was started anew."""
        for place, other in self._others.items():
            if other.again:
                return Cause(f"host {self._names[place]} was lost: its launcher has been started anew{GO_ON}")
            since = self._clock() - other.changed
            if other.seen and since > seconds and other.record and not other.record["done"]:
                return Cause(
                    f"host {self._names[place]} was lost: its launcher was not heard of for {since:.0f} s{GO_ON}"
                )
        return None

    def absent(self) -> Cause | None:
        """Returns that a host has not started, if one has not."""
        for place, other in self._others.items():
            if not other.seen:
                return Cause(f"host {self._names[place]} did not start: it needs this command with --host-rank {place}")
        return None

    def agreed(self) -> bool:
        """Returns whether all others have written down why they end, or that they are done."""
        return all(o.seen and o.record and (o.record["cause"] or o.record["done"]) for o in self._others.values())

    def _write(self) -> None:
        if len(self._names) < 2:
            return
        data = json.dumps(self._mine).encode().ljust(_SIZE)
        with suppress(OSError):  # of a disk that is away: the others take this host for lost, rightly
            file = os.open(self._paths[self._rank], os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.pwrite(file, data, 0)
                os.ftruncate(file, len(data))
            finally:
                os.close(file)

    def _read(self, place: int) -> dict[str, Any] | None:
        try:
            record = read_json(self._paths[place])
            fit = isinstance(record, dict) and set(self._mine) <= set(record) and isinstance(record["sees"], dict)
            return record if fit else None
        except (OSError, ValueError):
            return None

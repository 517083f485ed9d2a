"""Where a rank has the shards that it reads from: all of them open on a disk, or some at a time in a cache."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from threading import Event, Lock
from typing import NamedTuple, Protocol

from faceshards.checksums import size_difference
from faceshards.reading import open_regular
from faceshards.storage.location import Location
from training.data.layout import StreamError
from training.data.read_ahead import have_read, will_read
from training.data.shard_cache import ShardCache
from training.data.shard_check import Written


class Run(NamedTuple):
    """The bytes of a shard that hold the rows of a window."""

    shard: int
    start: int
    end: int


class Shelf(Protocol):
    """Open shards, by their numbers."""

    waits: bool  # whether a window is read only after ready() came back
    at_once: int  # windows that are made ready at the same time

    def opened(self, shard: int) -> Location:
        """Returns where a shard's header is read, after it was opened if it stays so; called once for each."""

    def handle(self, shard: int) -> int:
        """Returns the descriptor of an open shard."""

    def ready(self, runs: Sequence[Run], ended: Event) -> None:
        """Makes a window ready; `ended` is set when nobody waits for it any more."""

    def done(self, runs: Sequence[Run]) -> None:
        """Gives a window up that was to be made ready."""

    def close(self) -> None:
        """Closes all files."""


class LocalShelf:
    """Shards on a disk, open as long as the stream is.

    Args:
        shards: by their numbers.
        ahead: has the system read windows ahead, whole.
        forget: has it forget them after use.
    """

    waits = False
    at_once = 2

    def __init__(self, shards: dict[int, Written], ahead: bool, forget: bool) -> None:
        self._shards, self._ahead, self._forget = shards, ahead, ahead and forget
        self._handles: dict[int, int] = {}

    def opened(self, shard: int) -> Location:
        """Returns the path of a shard that has its size, after it was opened."""
        path, size, _ = self._shards[shard]
        if problem := size_difference(path, size, "the manifest"):
            raise StreamError(problem)
        self._handles[shard] = open_regular(str(path))
        return path

    def handle(self, shard: int) -> int:
        """Returns the descriptor of an open shard."""
        return self._handles[shard]

    def ready(self, runs: Sequence[Run], ended: Event) -> None:
        """Has the system read a window ahead."""
        for run in runs if self._ahead else ():
            if run.shard in self._handles and not ended.is_set():
                will_read(self._handles[run.shard], run.start, run.end)

    def done(self, runs: Sequence[Run]) -> None:
        """Has the system forget a window."""
        for run in runs if self._forget else ():
            if run.shard in self._handles:
                have_read(self._handles[run.shard], run.start, run.end)

    def close(self) -> None:
        """Closes all files."""
        for handle in self._handles.values():
            os.close(handle)
        self._handles = {}


class CachedShelf:
    """Shards that are somewhere else, of which windows are fetched into a cache before they are read.

    Args:
        cache: it.
        shards: by their numbers.
    """

    waits = True
    at_once = 4  # one may be compared with its checksum while another is asked for

    def __init__(self, cache: ShardCache, shards: dict[int, Written]) -> None:
        self._cache, self._shards = cache, shards
        self._handles: dict[int, list[int]] = defaultdict(list)  # one for each window that a shard is in
        self._lock = Lock()

    def opened(self, shard: int) -> Location:
        """Returns where a shard comes from; its size is compared when it is fetched."""
        return self._shards[shard].path

    def handle(self, shard: int) -> int:
        """Returns the descriptor of an open shard: of all windows' the one that is closed last."""
        return self._handles[shard][0]

    def ready(self, runs: Sequence[Run], ended: Event) -> None:
        """Fetches the shards of a window that are not in the cache, and opens them."""
        opened: list[tuple[int, int]] = []
        try:
            # Those before one that fails are in the list as well.
            opened.extend((run.shard, self._cache.take(*self._shards[run.shard], ended)) for run in runs)
        except BaseException:
            for _, handle in opened:
                os.close(handle)
            raise
        with self._lock:
            for shard, handle in opened:
                self._handles[shard].append(handle)

    def done(self, runs: Sequence[Run]) -> None:
        """Closes the shards of a window, which may be evicted then."""
        with self._lock:
            for run in runs:
                if self._handles[run.shard]:  # it was made ready
                    os.close(self._handles[run.shard].pop())

    def close(self) -> None:
        """Closes all files."""
        with self._lock:
            for handles in self._handles.values():
                while handles:
                    os.close(handles.pop())

"""Image folders in buckets: what lies below a prefix, by the rules of a folder on a disk, and in its order.

A store lists a thousand names at a time, whatever folders they are in, and in an order of its own: by whole keys
(`a-b/1.jpg` before `a/1.jpg`) or by names. A walk over a disk goes by names, one folder after the other: so do keys
whose slashes come before any other character.
"""

from __future__ import annotations

import atexit
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from faceshards.locks import own_folder
from faceshards.reading import each
from faceshards.storage.location import StoredPath
from pipelines.sources.folder_walk import Aside
from pipelines.sources.leftovers import is_image, is_leftover

ROWS = 1 << 16
"""Rows of a row group of a listing: about what a partition has."""

LISTING = pa.schema([("path", pa.string()), ("identity", pa.string()), ("place", pa.int32()), ("bytes", pa.int64())])
"""Columns of a listing: a picture's path below the root, its identity's folder, and the rank of that among all."""

_PAGE, _LAST = 1000, chr(0x10FFFF)  # names in an answer, and the last character
_SLASH = "\0"  # before any other character, and in no name
_FOUND = pa.schema([("name", pa.large_string()), ("bytes", pa.int64()), ("changed", pa.int64())])


class Listed(NamedTuple):
    """What a listing says as a whole."""

    bytes: int  # of all pictures
    newest: int  # time of the newest one in ns; -1 without any
    warnings: list[str]  # about what is left aside
    rec: str | None  # path of a .rec, below the root


def list_images(root: StoredPath, table: Path) -> Listed:
    """Returns what the pictures below a prefix are as a whole, after writing their LISTING.

    Args:
        root: the image folder.
        table: Parquet file to write.

    Raises:
        StorageError: the store cannot be asked.
    """
    found = _found(root)
    order = pc.sort_indices(found["name"]).to_numpy()
    walk = _Walk(root, *_markers(root, found, order))
    total, newest, rec = 0, -1, None
    with pq.ParquetWriter(table, LISTING) as writer:
        for start in range(0, len(order), ROWS):
            rows = found.take(pa.array(order[start : start + ROWS]))
            names = [name.replace(_SLASH, "/") for name in rows["name"].to_pylist()]
            identities, places = walk.on(start, names)
            pictures = np.array([place >= 0 for place in places])
            rec = rec or next((name for name in names if name.endswith(".rec")), None)
            if pictures.any():
                sizes, changed = (rows[name].to_numpy()[pictures] for name in ("bytes", "changed"))
                total, newest = total + int(sizes.sum()), max(newest, int(changed.max()))
                columns = [pa.array(column).filter(pa.array(pictures)) for column in (names, identities)]
                columns += [pa.array(np.array(places, np.int32)[pictures]), pa.array(sizes)]
                writer.write_table(pa.table(columns, schema=LISTING))
    return Listed(total, newest, walk.told(), rec)


def _found(root: StoredPath) -> pa.Table:
    """Returns all that lies below a prefix, _FOUND, as the store lists it; slashes in names are _SLASH."""
    listed = ((name.replace("/", _SLASH), about.st_size, about.st_mtime_ns) for name, about in root.below())
    pieces = [_FOUND.empty_table()]
    while piece := list(islice(listed, ROWS)):
        pieces.append(pa.table(list(map(list, zip(*piece, strict=True))), schema=_FOUND))
    return pa.concat_tables(pieces).combine_chunks()


def _markers(root: StoredPath, found: pa.Table, order: np.ndarray) -> tuple[set[int], set[int]]:
    """Returns the places in an order of objects that stand for folders: of some with names below them, and of others.

    Consoles and mounts of buckets make such, empty ones whose key ends in a slash. Of a listing that slash is lost.

    Args:
        root: the prefix.
        found: what lies below it.
        order: rows of it, by name.
    """
    places = np.flatnonzero(found["bytes"].to_numpy()[order] == 0)
    following = np.minimum(places + 1, len(order) - 1)
    names, after = (found["name"].take(pa.array(order[at])).to_pylist() for at in (places, following))
    above, alone = set(), []
    for place, name, behind in zip(places.tolist(), names, after, strict=True):
        if behind.startswith(f"{name}{_SLASH}"):
            above.add(place)
        elif not is_image(name):
            alone.append((place, root / name.replace(_SLASH, "/")))
    there = each(StoredPath.is_file, [path for _, path in alone])
    return above, {place for (place, _), is_file in zip(alone, there, strict=True) if not is_file}


class _Walk:
    """A walk over the names of a listing in their order.

    Args:
        root: the image folder.
        passed: places of what stands for folders that are walked through.
        empty: places of what stands for folders without anything.
    """

    def __init__(self, root: StoredPath, passed: set[int], empty: set[int]) -> None:
        self._passed, self._empty, self._aside = passed, empty, Aside(root)
        # Where it is, the leftover that this is in, and the last one that was counted.
        self._folder, self._hidden, self._told = "", "", ""
        self._identity, self._place, self._bare = "", -1, False  # without a picture so far

    def on(self, start: int, names: list[str]) -> tuple[list[str], list[int]]:
        """Returns identity and its place for each of the next names; of what is no picture the place is -1.

        Args:
            start: place of the first in the whole listing.
            names: of objects, below the root.
        """
        identities, places = [], []
        for number, name in enumerate(names, start):
            is_picture = number not in self._passed and self._take(name, number in self._empty)
            identities.append(self._identity)
            places.append(self._place if is_picture else -1)
        return identities, places

    def _take(self, name: str, is_folder: bool) -> bool:
        """Returns whether a name is a picture of an identity's; what is left aside is counted."""
        folder, _, base = name.rpartition("/")
        if folder != self._folder:
            self._enter(folder)
        if self._hidden:
            self._aside.leftovers.add(self._hidden.rpartition("/")[2], is_image(base), self._hidden != self._told)
            self._told = self._hidden
        elif is_leftover(base):
            self._aside.leftovers.add(base, is_image(base))
        elif is_folder:
            if not folder:
                self._leave(name)
        elif not is_image(base):
            self._aside.stray(base)
        elif not folder:
            self._aside.loose += 1
        else:
            self._place += self._bare
            self._bare = False
            return True
        return False

    def _enter(self, folder: str) -> None:
        """Goes on in another folder."""
        self._folder = folder
        names = folder.split("/")
        hidden = next((i for i, name in enumerate(names, 1) if is_leftover(name)), 0)
        self._hidden = "/".join(names[:hidden])
        if names[0] != self._identity and names[0] and hidden != 1:
            self._leave(names[0])

    def _leave(self, identity: str) -> None:
        """Goes on to another folder of the root."""
        if self._bare:
            self._aside.bare.append(self._identity)
        self._identity, self._bare = identity, True

    def told(self) -> list[str]:
        """Returns the warnings, at its end."""
        self._leave("")
        return self._aside.told()


class _Made(NamedTuple):
    """A listing, and the folder that it lies in."""

    table: Path
    warnings: list[str]
    folder: ExitStack


class Listings:
    """What the search of a prefix listed, until it is cut: a store is not asked for so many names twice."""

    def __init__(self) -> None:
        self._made: dict[str, _Made] = {}
        self._open = ExitStack()
        atexit.register(self._open.close)

    def make(self, root: StoredPath) -> Listed:
        """Returns what the pictures below a prefix are as a whole; their listing waits for take()."""
        if old := self._made.pop(str(root), None):
            old.folder.close()
        with ExitStack() as stack:
            table = stack.enter_context(own_folder()) / "listing.parquet"
            found = list_images(root, table)
            self._made[str(root)] = _Made(table, found.warnings, self._open.enter_context(stack.pop_all()))
        return found

    def take(self, root: StoredPath, to: Path) -> list[str]:
        """Returns the warnings about a prefix, once its listing is the file `to`."""
        if str(root) not in self._made:
            self.make(root)
        made = self._made.pop(str(root))
        with made.folder:
            shutil.move(made.table, to)
        return made.warnings


LISTINGS = Listings()
"""Of this process."""


def with_records(root: StoredPath) -> Iterator[str]:
    """Yields the names of the folders right in a prefix that hold pictures, .rec or .tar files, leftovers apart.

    Of a large one not all is listed: where a page of names tells nothing new, the next one begins behind it.
    """
    known, idle, listed = "", 0, root.below()
    while (entry := next(listed, None)) is not None:
        *folders, base = entry[0].split("/")
        if folders and folders[0] == known:
            idle += 1
            if idle == _PAGE:
                listed = root.below(f"{known}/{_LAST}")
        elif folders and _is_record(base) and not any(map(is_leftover, (*folders, base))):
            known, idle = folders[0], 0
            yield known


def _is_record(name: str) -> bool:
    return is_image(name) or name.lower().endswith((".rec", ".tar"))

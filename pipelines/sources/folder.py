"""Image folders: one sub-folder per identity, the images in it; deeper ones only if the user says so (`doubt`)."""

from __future__ import annotations

import itertools
import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from faceshards.errors import SourceError, first_few
from faceshards.storage.location import Location, StoredPath
from pipelines.sources import nesting
from pipelines.sources.base import (
    MAX_ENCODED,
    Claims,
    Cut,
    OpenFiles,
    Partition,
    Place,
    Scanned,
    SourceFile,
    in_sample,
)
from pipelines.sources.leftovers import Leftovers, is_image

_TOLD = 8  # names in a warning
_LISTED = 10_000  # objects of a bucket, for a hint


def find(path: Location) -> tuple[list[SourceFile], list[str]] | None:
    """Returns the folder, as SourceKind has it.

    Raises:
        SourceError: no image in it; or it is in a bucket, where an image is a request.
    """
    if isinstance(path, StoredPath):
        if (path / "dataset.json").exists():
            raise SourceError(f"{path}: is a dataset, and no source of one; export-data makes .rec or .tar of it")
        ends = (".rec", ".tar")
        inner = {str(place.parent) for place, _ in itertools.islice(path.tree(), _LISTED) if place.suffix in ends}
        deeper = f"; some lie deeper: --source {first_few(sorted(inner))}" if inner else ""
        raise SourceError(
            f"{path}: no .rec and no .tar, and of buckets only these are read: pack pictures (im2rec or tar), or copy "
            f"them to a disk{deeper}"
        )
    if not path.is_dir():
        return None
    return [SourceFile(str(path), path.name, "folder", "", *_state(path))], []


def _state(root: Path) -> tuple[int, int]:
    """Returns the bytes of all images, and the time of the newest in ns."""
    total, newest = 0, -1
    warnings: list[str] = []
    for _, file in walk_images(root, warnings):
        try:
            stat = os.stat(file)
        except OSError:  # listed as a row of its own when it is read
            newest = max(newest, 0)
            continue
        total, newest = total + stat.st_size, max(newest, stat.st_mtime_ns)
    if newest < 0:
        told = "".join(f"; {line.removeprefix(f'{root}: ')}" for line in warnings)
        if deeper := next(root.rglob("*.rec"), None):
            told += f"; a .rec lies deeper: --source {deeper.parent}"
        raise SourceError(f"{root}: no .rec file, and no sub-folder with .jpg or .png images{told}")
    return total, newest


def walk_images(root: Path, warnings: list[str]) -> Iterator[tuple[str, str]]:
    """Yields (identity's folder, absolute path) of each image, in sorted order; every folder is entered once.

    Args:
        root: the image folder; one sub-folder per identity, images anywhere below it.
        warnings: gets lines for what is left aside, at the end of the walk.
    """
    seen = {os.path.realpath(root)}
    leftovers = Leftovers()
    strays: Counter[str] = Counter()  # files that are no pictures, by suffix

    def listed(folder: Path | str) -> list[os.DirEntry[str]]:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        foreign = [entry for entry in entries if not _is_utf8(entry.name)]
        # Parquet's strings are UTF-8.
        warnings.extend(f"{entry.path!a}: its name is not UTF-8, left aside" for entry in foreign)
        return [entry for entry in entries if entry not in foreign and not leftovers.take(entry)]

    def below(folder: str) -> Iterator[str]:
        real = os.path.realpath(folder)
        if real in seen:
            warnings.append(f"{folder}: leads to a folder that was already read, left aside")
            return
        seen.add(real)
        try:
            entries = listed(folder)
        except OSError as error:
            warnings.append(f"{folder}: {error.strerror}, left aside")
            return
        for entry in entries:
            if _is_dir(entry):
                yield from below(entry.path)
            elif is_image(entry.name):
                yield entry.path
            else:
                strays[_suffix(entry.name)] += 1

    loose = 0  # pictures beside the identities' folders
    bare = []  # folders without a picture, for no reason that is told
    for entry in listed(root):
        if _is_dir(entry):
            count, told = 0, len(warnings)
            for file in below(entry.path):
                count += 1
                yield entry.name, file
            if not count and told == len(warnings):
                bare.append(entry.name)
        elif is_image(entry.name):
            loose += 1
        else:
            strays[_suffix(entry.name)] += 1
    if loose:
        warnings.append(f"{root}: {loose} pictures lie in the folder itself, of no identity, left aside")
    if strays:
        kinds = ", ".join(f"{suffix} {count}" for suffix, count in strays.most_common(_TOLD))
        warnings.append(f"{root}: {strays.total()} files that are no .jpg or .png, left aside: {kinds}")
    if bare:
        more = f" and {len(bare) - _TOLD} more" if len(bare) > _TOLD else ""
        warnings.append(
            f"{root}: {len(bare)} folders hold no picture and are no identities: {', '.join(bare[:_TOLD])}{more}"
        )
    warnings.extend(f"{root}: {line}" for line in leftovers.told())


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "without a suffix"


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def cut(file: SourceFile, number: int, work: Path, step: int) -> Cut:
    """Returns how a folder is cut, as SourceKind has it: by rows of its listing, a table (path, identity, place).

    An identity's place is its rank among the sorted folder names, and its label until the balance renumbers them.

    Raises:
        SourceError: a name is not UTF-8.
    """
    table = work / f"listing-{number}.parquet"
    warnings: list[str] = []
    keys, names, places, bounds, room = [], [], [], [0], step
    place, before = -1, None
    for identity, path in walk_images(Path(file.path), warnings):
        place += identity != before
        before = identity
        keys.append(os.path.relpath(path, file.path))
        names.append(identity)
        places.append(place)
        try:
            room -= os.path.getsize(path)
        except OSError:
            room -= 1
        if room <= 0:
            bounds.append(len(keys))
            room = step
    try:
        columns = {"path": keys, "identity": names, "place": pa.array(places, pa.int32())}
        pq.write_table(pa.table(columns), table)
    except UnicodeEncodeError as error:
        raise SourceError(f"{file.path}: {os.fsencode(error.object)!r}: the name is not UTF-8; rename it") from None
    return Cut(bounds if bounds[-1] == len(keys) else [*bounds, len(keys)], str(table), warnings)


def names(part: Partition) -> list[str] | None:
    """Returns the folders' names by label."""
    listing = pq.read_table(str(part.table), columns=["identity", "place"])
    return list(dict(zip(listing["place"].to_pylist(), listing["identity"].to_pylist(), strict=True)).values())


def labels(part: Partition) -> np.ndarray:
    """Returns the labels of a partition, as SourceKind has it."""
    return np.unique(pq.read_table(str(part.table), columns=["place"])["place"][part.start : part.stop].to_numpy())


def claims(_: SourceFile) -> Claims:
    """Returns that a folder says nothing of itself."""
    return Claims(None, None)


def set_of(file: SourceFile) -> str:
    """Returns that a file's labels are its own, as SourceKind has it."""
    return file.path


def doubt(part: Partition) -> str:
    """Returns why the folders below the root may be no identities, as SourceKind has it."""
    return nesting.doubt(part.path, pq.read_table(str(part.table), columns=["path"])["path"])


def scan(part: Partition) -> Scanned:
    """Returns the image files of a stretch of a folder's listing; an unreadable file is a row with its reason.

    Args:
        part: the partition; start and stop are rows of the listing.
    """
    table = pq.read_table(str(part.table)).slice(part.start, part.stop - part.start)
    records = len(table)
    if part.share < 1:
        table = table.filter(pa.array(in_sample(table["identity"].to_pylist(), part.share)))
    paths, identities, places = (table[name].to_pylist() for name in ("path", "identity", "place"))
    n = len(paths)
    out = Scanned(
        offset=np.zeros(n, np.int64),
        header=np.zeros(n, np.int64),
        size=np.zeros(n, np.int64),
        parts=np.zeros(n, np.int32),
        ordinal=np.arange(n, dtype=np.int32),
        key=paths,
        label=np.array(places, np.int32),
        label_original=identities,
        reason=np.zeros(n, np.uint8),
        detail=[None] * n,
        images=[None] * n,
        records=records,
        structural=0,
    )
    for i, name in enumerate(paths):
        try:
            # Without O_NONBLOCK a named pipe would wait for its writer for ever.
            with open(os.open(os.path.join(part.path, name), os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    out.drop(i, "undecodable", "cannot be read: not a regular file")
                    continue
                data = file.read(MAX_ENCODED + 1)
        except OSError as error:
            out.drop(i, "undecodable", f"cannot be read: {error.strerror}")
            continue
        out.size[i] = len(data)
        if len(data) > MAX_ENCODED:
            out.drop(i, "too_large", f"the file is larger than {MAX_ENCODED} bytes")
        else:
            out.images[i] = np.frombuffer(data, np.uint8)
    return out


def read(file: SourceFile, place: Place, _: OpenFiles) -> bytes:
    """Returns an image file; its folder has too many to keep them open."""
    with open(os.path.join(file.path, place.key), "rb") as handle:
        return handle.read()


def place(file: SourceFile, key: str, _: OpenFiles) -> Place:
    """Returns where an image file is, as SourceKind has it.

    Raises:
        SourceError: it is newer than all that were scanned.
    """
    path = os.path.join(file.path, key)
    state = os.stat(path)
    if state.st_mtime_ns > file.mtime_ns:
        raise SourceError(f"{path}: changed since it was scanned")
    return Place(key, 0, 0, state.st_size, 1)

"""Image folders: one sub-folder per identity, the images in it; deeper ones only if the user says so (`doubt`)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from faceshards.errors import SourceError
from faceshards.reading import each
from faceshards.storage.faults import StorageError
from faceshards.storage.location import Location, StoredPath, as_location
from faceshards.storage.ranges import read_once
from pipelines.sources import nesting
from pipelines.sources.base import (
    IMAGES_AT_ONCE,
    MAX_ENCODED,
    Claims,
    Cut,
    OpenFiles,
    Partition,
    Place,
    Scanned,
    SourceFile,
    image_of,
    in_sample,
)
from pipelines.sources.folder_listing import LISTING, LISTINGS, ROWS
from pipelines.sources.folder_walk import walk_images


def find(path: Location) -> tuple[list[SourceFile], list[str]] | None:
    """Returns the folder, as SourceKind has it.

    Raises:
        SourceError: no image in it.
    """
    if isinstance(path, StoredPath):
        found = LISTINGS.make(path)
        if found.newest < 0:
            raise _without_images(path, found.warnings, (path / found.rec).parent if found.rec else None)
        state = found.bytes, found.newest
    elif path.is_dir():
        state = _state(path)
    else:
        return None
    return [SourceFile(str(path), path.name, "folder", "", *state)], []


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
        rec = next(root.rglob("*.rec"), None)
        raise _without_images(root, warnings, rec and rec.parent)
    return total, newest


def _without_images(root: Location, warnings: Iterable[str], deeper: Location | None) -> SourceError:
    """Returns that a folder holds no image, what lies there, and where a .rec does; or that it is a dataset."""
    if (root / "dataset.json").is_file():  # of ours; others keep one beside their pictures
        return SourceError(f"{root}: is a dataset, and no source of one; export-data makes .rec or .tar of it")
    told = "".join(f"; {line.removeprefix(f'{root}: ')}" for line in warnings)
    if deeper:
        told += f"; a .rec lies deeper: --source {deeper}"
    return SourceError(f"{root}: no .rec file, and no sub-folder with .jpg or .png images{told}")


def cut(file: SourceFile, number: int, work: Path, step: int) -> Cut:
    """Returns how a folder is cut, as SourceKind has it: by rows of its LISTING, a Parquet file.

    An identity's place is its rank among the sorted folder names, and its label until the balance renumbers them.

    Raises:
        SourceError: a name is not UTF-8.
    """
    table = work / f"listing-{number}.parquet"
    root = as_location(file.path)
    warnings = LISTINGS.take(root, table) if isinstance(root, StoredPath) else _list_files(root, table)
    return Cut(_bounds(pq.read_table(table, columns=["bytes"])["bytes"].to_numpy(), step), str(table), warnings)


def _bounds(sizes: np.ndarray, step: int) -> list[int]:
    """Returns where partitions of about `step` bytes begin, and the end of the last.

    Args:
        sizes: (n,) bytes of the images.
        step: aimed bytes.
    """
    bounds, room = [0], step
    for number, size in enumerate(sizes.tolist(), 1):
        room -= size
        if room <= 0:
            bounds.append(number)
            room = step
    return bounds if bounds[-1] == len(sizes) else [*bounds, len(sizes)]


def _list_files(root: Path, table: Path) -> list[str]:
    """Returns warnings about a folder of this machine, after writing its LISTING."""
    warnings: list[str] = []
    keys, names, places, sizes = [], [], [], []
    place, before = -1, None
    for identity, path in walk_images(root, warnings):
        place += identity != before
        before = identity
        keys.append(os.path.relpath(path, root))
        names.append(identity)
        places.append(place)
        try:
            sizes.append(os.path.getsize(path))
        except OSError:
            sizes.append(1)
    try:
        pq.write_table(pa.table([keys, names, places, sizes], schema=LISTING), table, row_group_size=ROWS)
    except UnicodeEncodeError as error:
        raise SourceError(f"{root}: {os.fsencode(error.object)!r}: the name is not UTF-8; rename it") from None
    return warnings


def names(part: Partition) -> list[str] | None:
    """Returns the folders' names by label."""
    found: dict[int, str] = {}
    with pq.ParquetFile(str(part.table)) as listing:
        for rows in listing.iter_batches(columns=["place", "identity"]):
            found.update(zip(*(column.to_pylist() for column in rows.columns), strict=True))
    return list(found.values())


def labels(part: Partition) -> np.ndarray:
    """Returns the labels of a partition, as SourceKind has it."""
    return np.unique(_listed(part, ["place"])["place"].to_numpy())


def _listed(part: Partition, columns: list[str]) -> pa.Table:
    """Returns a partition's rows of the listing; no more row groups of it are read than they lie in."""
    with pq.ParquetFile(str(part.table)) as listing:
        groups, ends = range(listing.num_row_groups), [0]
        for group in groups:
            ends.append(ends[-1] + listing.metadata.row_group(group).num_rows)
        mine = [group for group in groups if ends[group] < part.stop and part.start < ends[group + 1]]
        rows = listing.read_row_groups(mine, columns)
    return rows.slice(part.start - (ends[mine[0]] if mine else 0), part.stop - part.start)


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
    table = _listed(part, ["path", "identity", "place"])
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
    root = as_location(part.path)
    found = _objects(root, paths) if isinstance(root, StoredPath) else (_file(root, path) for path in paths)
    for i, data in enumerate(found):
        if isinstance(data, Exception):
            # In the system's words, which are the same of any store.
            cause = os.strerror(data.errno or errno.EIO) if isinstance(data, StorageError) else data.strerror
            out.drop(i, "undecodable", f"cannot be read: {cause}")
            continue
        out.size[i] = len(data)
        if len(data) > MAX_ENCODED:
            out.drop(i, "too_large", f"the file is larger than {MAX_ENCODED} bytes")
        else:
            out.images[i] = np.frombuffer(data, np.uint8)
    return out


def _file(root: Path, name: str) -> bytes | OSError:
    """Returns what is in an image file, of one that is too large no more than tells so; or why it cannot be read."""
    try:
        # Without O_NONBLOCK a named pipe would wait for its writer for ever.
        with open(os.open(os.path.join(root, name), os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return OSError(errno.EINVAL, "not a regular file")
            return file.read(MAX_ENCODED + 1)
    except OSError as error:
        return error


def _objects(root: StoredPath, names: list[str]) -> list[bytes | StorageError]:
    """Returns what _file() returns, of objects; some are asked for at once.

    Raises:
        StorageError: the store refuses, or does not answer: that is of no image.
    """
    found = each(_object, [root / name for name in names], IMAGES_AT_ONCE)
    if denied := next((data for data in found if isinstance(data, StorageError) and data.errno == errno.EACCES), None):
        # Of this image, or of all from some moment on? One that could be read tells.
        read = next((name for name, data in zip(names, found, strict=True) if isinstance(data, bytes)), None)
        if read is None:
            raise denied
        image_of(root / read)
    return found


def _object(path: StoredPath) -> bytes | StorageError:
    try:
        return read_once(path, MAX_ENCODED)
    except StorageError as error:
        if error.errno == errno.EFBIG:
            return bytes(MAX_ENCODED + 1)
        if error.errno in (errno.ENOENT, errno.EACCES):
            return error
        raise


def read(file: SourceFile, place: Place, opened: OpenFiles) -> bytes:
    """Returns an image file; its folder has too many to keep them open."""
    root = as_location(file.path)
    if isinstance(root, StoredPath):
        return opened.images.pop(root / place.key, None) or image_of(root / place.key)
    with open(os.path.join(root, place.key), "rb") as handle:
        return handle.read()


def place(file: SourceFile, key: str, _: OpenFiles) -> Place:
    """Returns where an image file is, as SourceKind has it.

    Raises:
        SourceError: it is newer than all that were scanned.
    """
    path = as_location(file.path) / key
    state = path.stat()
    if state.st_mtime_ns > file.mtime_ns:
        raise SourceError(f"{path}: changed since it was scanned")
    return Place(key, 0, 0, state.st_size, 1)

"""Files that are whole or absent, and "the same request?"."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from faceshards.checksums import file_digest
from faceshards.errors import FaceshardsError
from faceshards.locks import own_folder
from faceshards.storage.location import Location, StoredPath

ROW_GROUP = 65536  # rows


@contextmanager
def replacing(path: Location) -> Iterator[Path]:
    """Yields a name beside `path` to write to; it becomes `path` only if all went well, and is removed if not.

    Links and devices (/dev/stdout) are not replaced: what was written goes through them. An object is written on a disk
    of this machine, and uploaded.
    """
    if isinstance(path, StoredPath):
        with own_folder() as folder:
            yield folder / path.name
            path.upload(folder / path.name, file_digest(folder / path.name)[1])
        return
    through = path.is_symlink() or (path.exists() and not path.is_file())
    name = f".{path.name}.{uuid.uuid4().hex}"
    temporary = Path(tempfile.gettempdir(), name) if through else path.with_name(name)
    try:
        yield temporary
        if through:
            with open(temporary, "rb") as source, open(path, "wb") as target:
                shutil.copyfileobj(source, target)
        else:
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def making(name: str, where: Location) -> Iterator[Path]:
    """Yields a folder to make a file of a name in, which then can be moved into another one; it is gone afterwards.

    Args:
        name: of the file.
        where: it will be moved to.
    """
    if isinstance(where, StoredPath):
        with own_folder() as folder:
            yield folder
        return
    folder = where / f".{name}.{uuid.uuid4().hex}"
    folder.mkdir()
    try:
        yield folder
    finally:
        for leftover in folder.iterdir():
            leftover.unlink()
        folder.rmdir()


def move(path: Path, to: Location, sha256: str) -> None:
    """Moves a file out of a folder of `making`; its digest (hex) is stored with an object."""
    if isinstance(to, StoredPath):
        to.upload(path, sha256)
    else:
        os.replace(path, to)


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """Returns how pyarrow is to write a table's columns: a row of the table `images` so takes 74 bytes instead of 91,
    of which 64 are its two hashes.

    Numbers are written as differences, texts that recur as a dictionary. A `key` and a hash come but once: what a
    dictionary adds to them is waste.
    """
    encoding = {field.name: "DELTA_BINARY_PACKED" for field in schema if pa.types.is_integer(field.type)}
    if "key" in schema.names:
        encoding["key"] = "DELTA_LENGTH_BYTE_ARRAY"
    texts = [field.name for field in schema if pa.types.is_string(field.type) and field.name != "key"]
    return {"compression": "zstd", "use_dictionary": texts, "column_encoding": encoding}


def write_parquet(table: pa.Table, path: Location) -> None:
    """Writes a table to `path`, whole or not at all."""
    with replacing(path) as temporary:
        pq.write_table(table, temporary, row_group_size=ROW_GROUP, **parquet_options(table.schema))


def json_bytes(value: object) -> bytes:
    """Returns JSON as files of ours have it."""
    return f"{json.dumps(value, indent=2, ensure_ascii=False)}\n".encode()


def write_json(value: object, path: Location) -> None:
    """Writes JSON to `path`, whole or not at all, and on disk when it returns."""
    if isinstance(path, StoredPath):
        path.write_bytes(json_bytes(value))
        return
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(json_bytes(value))
        file.flush()
        os.fsync(file.fileno())


def fsync(path: Path | str) -> None:
    """Forces a file, or the names in a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_tree(root: Path) -> None:
    """Forces every file and folder below `root`, and `root`, to disk."""
    for folder, _, files in os.walk(root, topdown=False):
        for file in files:
            fsync(os.path.join(folder, file))
        fsync(folder)


def check_writable(folder: Path) -> Path:
    """Returns a folder, or the nearest above it that is there, after a file without a name was made in it.

    Raises:
        FaceshardsError: it cannot be written in, or what is there is no folder.
    """
    place = folder.absolute()
    try:
        while not _is_there(place):
            place = place.parent
        with tempfile.TemporaryFile(dir=place):
            return place
    except OSError as error:
        raise FaceshardsError(f"{folder}: cannot be written: {place}: {error.strerror or error}") from None


def _is_there(path: Path) -> bool:
    """Returns whether something is at a path, a broken link too; OSError for a name that cannot be one."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def bytes_text(count: float) -> str:
    """Returns a number of bytes for people: 1.23 GB, 45.6 MB, 0.012 MB."""
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:.{1 if count >= 1e6 else 3}f} MB"


_TOLD = 4  # differences in a message


class Difference(NamedTuple):
    """An entry of a request that is not what it was."""

    name: str
    before: Any  # None where it was not there
    now: Any


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Returns in what a request differs from an earlier one, in the order of its entries; nothing: it is the same.

    Args:
        before: the earlier one, as it was read from JSON.
        now: this one; compared as JSON would give it back, so that a tuple is a list.
    """
    now = json.loads(json.dumps(now))
    names = dict.fromkeys((*now, *before))
    return [Difference(name, before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)]


def told(found: Sequence[Difference], then: str, now: str) -> str:
    """Returns differences for a message, of nested entries the innermost: those of a long configuration alone.

    Args:
        found: them.
        then: what to call the time of the earlier request, such as ``then``.
        now: of this one.
    """
    lines = [f"{name}: {old!r} {then}, {new!r} {now}" for each in found for name, old, new in _innermost(each)]
    return "; ".join([*lines[:_TOLD], *([f"and {len(lines) - _TOLD} more"] if len(lines) > _TOLD else [])])


def _innermost(found: Difference) -> list[Difference]:
    """Returns the differences in a mapping, or a list of as many mappings, by the names in it; else the one itself."""
    _, before, now = found
    if isinstance(before, dict) and isinstance(now, dict):
        return [inner for entry in differences(before, now) for inner in _innermost(entry)]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = [(then, new) for then, new in zip(before, now, strict=True) if then != new]
        if all(isinstance(item, dict) and "path" in item for pair in pairs for item in pair):
            return [
                Difference(f"{then['path']}: {inner.name}", inner.before, inner.now)
                for then, new in pairs
                for inner in differences(then, new)
            ]
    return [found]

"""Files that are whole or absent, their digests, and folders that one process has to itself."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from faceshards.errors import FaceshardsError

ROW_GROUP = 65536  # rows


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a name beside `path` to write to; it becomes `path` only if all went well, and is removed if not."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_parquet(table: pa.Table, path: Path) -> None:
    """Writes a table to `path`, whole or not at all."""
    with replacing(path) as temporary:
        pq.write_table(table, temporary, row_group_size=ROW_GROUP)


def write_json(value: object, path: Path) -> None:
    """Writes JSON to `path`, whole or not at all, and on disk when it returns."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def file_digest(path: Path) -> tuple[int, str]:
    """Returns size in bytes and SHA-256 (hex) of a file."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb", buffering=0) as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


@contextmanager
def exclusive_folder(out: Path, name: str = ".lock") -> Iterator[None]:
    """Makes a folder and keeps it from a second command until this one ends or dies.

    Args:
        out: the folder.
        name: of the lock file in it.

    Raises:
        FaceshardsError: another process holds it, or the folder cannot be made; an OSError of the work inside
            likewise, as one line.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with open(out / name, "w", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FaceshardsError(f"{out}: another process is at work there") from None
            yield
    except OSError as error:
        raise FaceshardsError(f"{error.filename or out}: {error.strerror or error}") from None

"""Digests of files and objects, and how they differ from what is written of them: size, SHA-256, a seal."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from faceshards.reading import BLOCK, NOT_REGULAR, open_file, open_regular
from faceshards.storage.location import Location, StoredPath
from faceshards.storage.ranges import PIECE, StoredFile

_BLOCK = 1 << 20  # bytes read at a time


def file_digest(path: Location | int, before_block: Callable[[], None] | None = None) -> tuple[int, str]:
    """Returns size in bytes and SHA-256 (hex) of a file or an object, read block by block.

    Args:
        path: of it; or the descriptor of a file, which is closed.
        before_block: called before each block of 1 MiB, or of 32 MiB of an object; what it raises ends the reading.
    """
    if isinstance(path, StoredPath):
        with StoredFile(path, first=PIECE) as stored:
            return stored.size, object_digest(stored, before_block)
    digest, size = hashlib.sha256(), 0
    block = memoryview(bytearray(_BLOCK))
    with open(path, "rb", buffering=0) as file:
        while True:
            if before_block:
                before_block()
            count = file.readinto(block)
            if not count:
                return size, digest.hexdigest()
            digest.update(block[:count])
            size += count


def object_digest(file: StoredFile, before_block: Callable[[], None] | None = None) -> str:
    """Returns the SHA-256 (hex) of an open object; see file_digest."""
    digest = hashlib.sha256()
    for block in file.blocks(BLOCK):
        if before_block:
            before_block()
        digest.update(block)
    return digest.hexdigest()


def file_state(path: Location) -> tuple[int | str, int, int] | None:
    """Returns what changes with a file; None if it cannot be looked at."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def dead_link(path: Location) -> Path | None:
    """Returns the link that leads nowhere, at a path or above it; None if there is none."""
    if isinstance(path, StoredPath):
        return None
    return next((place for place in (path, *path.parents) if place.is_symlink() and not os.path.exists(place)), None)


def unreadable(path: Location, where: str, error: OSError) -> str:
    """Returns one line on why a file cannot be read that is written of somewhere."""
    if isinstance(error, FileNotFoundError):
        link = dead_link(path)
        return f"{path}: missing; {where} lists it{f'; {link} is a link that leads nowhere' if link else ''}"
    if error.strerror == NOT_REGULAR:
        return f"{path}: {NOT_REGULAR}; {where} lists one"
    return f"{path}: {error.strerror}"


def size_difference(path: Location, size: int, where: str) -> str | None:
    """Returns one line if a file is not there, no regular file, or of another size; see difference()."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, NOT_REGULAR)
    except OSError as error:
        return unreadable(path, where, error)
    return _other_size(path, status.st_size, size, where)


def there_difference(path: Location, size: int, where: str) -> str | None:
    """Returns one line if a file is not there with its size, or may not be read; see difference()."""
    try:
        with open_file(path) as file:
            return _other_size(path, file.size, size, where)
    except OSError as error:
        return unreadable(path, where, error)


def _other_size(path: Location, found: int, size: int, where: str) -> str | None:
    return None if found == size else f"{path}: {found} bytes, {where} says {size}"


def difference(
    path: Location, size: int, sha256: str, where: str, before_block: Callable[[], None] | None = None
) -> str | None:
    """Returns one line on how a file differs from what is written of it; None if it does not.

    Args:
        path: of the file.
        size: in bytes, as it is written.
        sha256: hex, likewise.
        where: they are written, for the line.
        before_block: see file_digest.
    """
    if not isinstance(path, StoredPath) and (problem := size_difference(path, size, where)):
        return problem
    try:
        if isinstance(path, StoredPath):
            with StoredFile(path, first=PIECE) as stored:
                return object_difference(stored, size, sha256, where, before_block)
        found = file_digest(open_regular(path), before_block)[1]
    except OSError as error:
        return unreadable(path, where, error)
    return _other_content(path, found, sha256, where)


def object_difference(
    file: StoredFile, size: int, sha256: str, where: str, before_block: Callable[[], None] | None = None
) -> str | None:
    """Returns one line on how an open object differs from what is written of it; see difference()."""
    problem = _other_size(file.path, file.size, size, where)
    return problem or _other_content(file.path, object_digest(file, before_block), sha256, where)


def _other_content(path: Location, found: str, sha256: str, where: str) -> str | None:
    return None if found == sha256 else f"{path}: changed since it was published: its SHA-256 is not {where}'s"


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns JSON content with a checksum of its own.

    Its `sha256` is that (hex) of the rest as canonical JSON: keys sorted, no blanks, ASCII.
    """
    rest = {key: value for key, value in content.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return {**rest, "sha256": hashlib.sha256(text.encode("ascii")).hexdigest()}


def check_seal(content: Mapping[str, Any]) -> None:
    """Compares content read from JSON with its own checksum.

    Raises:
        KeyError: it has none.
        ValueError: it is another one's.
    """
    if content["sha256"] != sealed(content)["sha256"]:
        raise ValueError("its SHA-256 (sha256) is not that of the rest of it")

"""A file system of Python's for DuckDB: some files to read, and nothing to write."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from faceshards.dataset.table_files import TableFiles
from faceshards.reading import OpenFile
from faceshards.storage.faults import StorageError

PROTOCOL = "manifest"


def tables_only(found: TableFiles, files: dict[str, str], lost: list[StorageError]) -> Any:
    """Returns a file system of fsspec with these files and no others, which cannot be written.

    Args:
        found: of the dataset.
        files: names of files of its tables, by their addresses in it.
        lost: what a store says of them is added to it: DuckDB makes words of its own of it.
    """
    from fsspec import AbstractFileSystem

    class Tables(AbstractFileSystem):
        protocol = PROTOCOL
        cachable = False

        def _file(self, path: str) -> OpenFile:
            url = path if "://" in path else f"{PROTOCOL}://{path}"
            if url not in files:
                raise FileNotFoundError(path)
            with _kept(lost):
                return found.open(files[url])

        def info(self, path: str, **_: Any) -> dict[str, Any]:
            with self._file(path) as file:
                return {"name": path, "size": file.size, "type": "file", "mtime": file.status.st_mtime}

        def exists(self, path: str, **_: Any) -> bool:
            return (path if "://" in path else f"{PROTOCOL}://{path}") in files

        def glob(self, path: str, **_: Any) -> list[str]:
            return [path] if self.exists(path) else []

        def modified(self, path: str) -> Any:
            from datetime import datetime, timezone

            return datetime.fromtimestamp(self.info(path)["mtime"], timezone.utc)

        def open(self, path: str, mode: str = "rb", **_: Any) -> _File:
            if mode != "rb":
                raise PermissionError(f"{path}: the manifest is read-only")
            return _File(self._file(path), lost)

    return Tables()


@contextmanager
def _kept(lost: list[StorageError]) -> Iterator[None]:
    try:
        yield
    except StorageError as error:
        lost.append(error)
        raise


class _File:
    """A file whose place belongs to the thread: DuckDB's threads share it, and seek and read are two calls."""

    closed = True

    def __init__(self, file: OpenFile, lost: list[StorageError]) -> None:
        self._file, self._lost, self._place = file, lost, threading.local()
        self.closed = False

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: self._file.size}[whence]
        self._place.at = start + offset
        return self._place.at

    def tell(self) -> int:
        return getattr(self._place, "at", 0)

    def read(self, count: int = -1) -> bytes:
        start, pieces = self.tell(), []
        left = self._file.size - start if count < 0 else count
        with _kept(self._lost):
            while left > 0 and (piece := self._file.read_at(start, left)):
                pieces.append(piece)
                start, left = start + len(piece), left - len(piece)
        self._place.at = start
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._file.close()

    def __del__(self) -> None:
        self.close()

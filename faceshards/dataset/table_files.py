"""The files of a dataset's tables: compared with their checksums once, and then read as they were."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.fs as fs
import pyarrow.parquet as pq

from faceshards.checksums import difference, file_state, object_difference, unreadable
from faceshards.reading import OpenFile, open_file
from faceshards.storage.arrow import ObjectsForArrow
from faceshards.storage.location import Location, Status, StoredPath
from faceshards.storage.ranges import PIECE, StoredFile

_HELD = 32 << 20  # bytes of objects that stay in memory
_FOOTER = 64 << 10  # bytes of a Parquet file from whose end on Arrow reads first


class TableFiles:
    """What dataset.json lists.

    A file of a disk is read where it lies, and compared again if it has changed. An object is what it was when it was
    compared: a small one stays in memory, of a larger one no other version is read.

    Args:
        root: the dataset.
        entries: size and SHA-256 of each file, by its name.
    """

    def __init__(self, root: Location, entries: Mapping[str, Mapping[str, Any]]) -> None:
        self._root, self._entries = root, entries
        self._states: dict[str, tuple[int | str, int, int]] = {}  # of files of a disk, when they were compared
        self._known: dict[str, Status] = {}  # objects that were compared
        self._held: OrderedDict[str, bytes] = OrderedDict()  # content of some of them
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[TableFiles], tuple[Any, ...]]:
        return TableFiles, (self._root, self._entries)  # another process compares for itself

    def mismatch(self, name: str) -> str | None:
        """Returns one line on how a file differs from its checksum; None if it does not."""
        path, entry = self._root / name, self._entries[name]
        if isinstance(path, StoredPath):
            return None if name in self._known else self._stored_mismatch(name, path)
        state = file_state(path)
        if state is not None and self._states.get(name) == state:
            return None
        problem = difference(path, entry["bytes"], entry["sha256"], "dataset.json")
        if not problem and state is not None:
            self._states[name] = state
        return problem

    def first_mismatch(self, names: Sequence[str]) -> str | None:
        """Returns what mismatch() says of the first of some files that differs."""
        if len(names) == 1:
            return self.mismatch(names[0])
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                return next(filter(None, pool.map(self.mismatch, names)), None)
            finally:
                pool.shutdown(cancel_futures=True)

    def _stored_mismatch(self, name: str, path: StoredPath) -> str | None:
        entry = self._entries[name]
        try:
            with StoredFile(path, first=PIECE) as file:
                problem = object_difference(file, entry["bytes"], entry["sha256"], "dataset.json")
                if problem is None:
                    self._keep(name, file)
        except OSError as error:
            return unreadable(path, "dataset.json", error)
        return problem

    def _keep(self, name: str, file: StoredFile) -> None:
        with self._lock:
            self._known[name] = file.status
            if file.size <= PIECE:
                self._held[name] = file.read_at(0, file.size)
            while sum(map(len, self._held.values())) > _HELD:
                self._held.popitem(last=False)

    def take_few(self, names: Sequence[str]) -> None:
        """Compares files if they are objects that are sooner read whole than looked through; tells nothing."""
        if isinstance(self._root, StoredPath) and sum(self._entries[name]["bytes"] for name in names) <= _HELD:
            self.first_mismatch(names)

    def open(self, name: str) -> OpenFile:
        """Returns a file, open for reading.

        Raises:
            OSError: it cannot be opened.
        """
        path = self._root / name
        if not isinstance(path, StoredPath):
            return open_file(path)
        with self._lock:
            known, data = self._known.get(name), self._held.get(name, b"")
            if data:
                self._held.move_to_end(name)
        return StoredFile(path, -_FOOTER, known, data)

    def parquet(self, name: str) -> pq.ParquetFile:
        """Returns a file, open as Parquet; if it was not compared, at least its size is.

        Raises:
            OSError, ArrowException: it cannot be opened, or is none.
            ValueError: it has another size.
        """
        path = self._root / name
        file = self.open(name) if isinstance(path, StoredPath) else None
        if (file.size if file else path.stat().st_size) != self._entries[name]["bytes"]:
            raise ValueError("another size")
        return pq.ParquetFile(pa.PythonFile(file, "r") if file else path)

    def columns(self, name: str) -> list[str]:
        """Returns the columns that a file has; see parquet()."""
        with self.parquet(name) as file:
            return [*file.schema_arrow.names]

    def for_datasets(self) -> fs.FileSystem:
        """Returns the file system of Arrow's in which the files lie, by the paths that they have."""
        if not isinstance(self._root, StoredPath):
            return fs.LocalFileSystem()
        return fs.PyFileSystem(ObjectsForArrow(self._by_path))

    def _by_path(self, path: str) -> StoredFile:
        file = self.open(path.removeprefix(f"{self._root}/"))
        assert isinstance(file, StoredFile)
        return file

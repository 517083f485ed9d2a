"""Objects for Arrow's datasets: a file system of theirs that reads ranges of some, and writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.fs as fs

from faceshards.storage.ranges import StoredFile


class ObjectsForArrow(fs.FileSystemHandler):
    """Reads objects, one by one.

    Args:
        opened: opens one by its address.
    """

    def __init__(self, opened: Callable[[str], StoredFile]) -> None:
        self._opened = opened

    def get_type_name(self) -> str:
        """Returns the name of such file systems."""
        return "faceshards"

    def normalize_path(self, path: str) -> str:
        """Returns the address."""
        return path

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        """Returns what is known of objects."""
        return [fs.FileInfo(path, fs.FileType.File, size=self._opened(path).size) for path in paths]

    def open_input_file(self, path: str) -> pa.NativeFile:
        """Returns an object, open for reading."""
        return pa.PythonFile(self._opened(path), "r")

    open_input_stream = open_input_file

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectsForArrow) and self._opened == other._opened

    def __ne__(self, other: object) -> bool:
        return not self == other

    def _nothing(self, *_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError("datasets in buckets are read, file by file")

    copy_file = create_dir = delete_dir = delete_dir_contents = delete_file = delete_root_dir_contents = _nothing
    get_file_info_selector = move = open_append_stream = open_output_stream = _nothing

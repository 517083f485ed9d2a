"""A source's files, as a path of the user's names them, and how they are cut into partitions."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from faceshards.errors import SourceError
from pipelines.sources.base import Partition, SourceFile
from pipelines.sources.registry import SOURCES

_PARTITIONS = 1024  # partitions aimed at: enough to balance and to resume from, few enough to shuffle between
_SMALLEST, _LARGEST = 8 << 20, 128 << 20  # bytes of a partition: more than a task costs, less than a worker holds


def find_files(path: Path) -> tuple[list[SourceFile], list[str]]:
    """Returns the files of a source and warnings about what is left aside.

    A folder with a train.rec is that file (InsightFace); one with other .rec files is all of them, as one label space;
    any other folder is an image folder, one sub-folder per identity.

    Args:
        path: a .rec file, or a folder.

    Raises:
        SourceError: nothing there, or nothing in it, or it cannot be read.
    """
    path = Path(os.path.abspath(path))
    try:
        if path.is_file() or path.is_dir():
            for kind in SOURCES.values():
                if found := kind.find(path):
                    return found
    except OSError as error:
        raise SourceError(f"{error.filename or path}: {error.strerror}") from None
    raise SourceError(f"{path}: no such file or folder")


def cut(files: list[SourceFile], work: Path, partition_bytes: int) -> tuple[list[Partition], list[str]]:
    """Returns the partitions of a build, in order, and warnings; writes the tables that they need into `work`.

    Args:
        files: the build's files.
        work: folder for the tables, which workers read.
        partition_bytes: aimed size in bytes; 0 chooses by the size of the set.

    Raises:
        SourceError: an index or folder cannot be read.
    """
    total = sum(file.bytes for file in files)
    step = partition_bytes or min(max(total // _PARTITIONS, _SMALLEST), _LARGEST)
    step = max(4, step // 4 * 4)
    partitions: list[Partition] = []
    warnings: list[str] = []
    for number, file in enumerate(files):
        try:
            bounds, table, told = SOURCES[file.kind].cut(file, number, work, step)
        except OSError as error:
            raise SourceError(f"{error.filename or file.path}: {error.strerror}") from None
        warnings += told
        for start, stop in itertools.pairwise(bounds):
            last = stop == bounds[-1]
            partitions.append(Partition(len(partitions), number, file.kind, file.path, start, stop, table, last))
    return partitions, warnings

"""Where records come from: the sets known by name, a path of the user's, and how they are cut into partitions."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np

from faceshards.errors import SourceError
from faceshards.formats import idx, recordio
from pipelines.sources.base import Partition, SourceFile
from pipelines.sources.folder import _folder_state, _list_folder

_PARTS = 1024  # partitions aimed at: enough to balance and to resume from, few enough to shuffle between
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
        if path.is_file():
            return [_rec_file(path)], []
        if not path.is_dir():
            raise SourceError(f"{path}: no such file or folder")
        recs = sorted(entry for entry in path.iterdir() if entry.suffix == ".rec" and entry.is_file())
        main = [entry for entry in recs if entry.name == "train.rec"]
        if main:
            others = [entry.name for entry in recs if entry.name != "train.rec"]
            note = f"{path}: reads train.rec and leaves {', '.join(others)}; name one with --source to read it instead"
            return [_rec_file(main[0])], [note] if others else []
        if recs:
            return [_rec_file(entry) for entry in recs], []
        return [SourceFile(str(path), path.name, "folder", "", *_folder_state(path))], []
    except OSError as error:
        raise SourceError(f"{error.filename or path}: {error.strerror}") from None


def _rec_file(path: Path) -> SourceFile:
    stat = path.stat()
    if stat.st_size == 0:
        raise SourceError(f"{path}: empty file")
    with open(path, "rb") as file:
        head = file.read(1 << 20)
    if not (np.frombuffer(head, np.uint32, len(head) // 4) == recordio.MAGIC).any():
        raise SourceError(f"{path}: not RecordIO: no record header in its first {len(head)} bytes")
    index = path.with_suffix(".idx")
    return SourceFile(
        str(path), path.name, "recordio", str(index) if index.is_file() else "", stat.st_size, stat.st_mtime_ns
    )


def cut(files: list[SourceFile], work: Path, partition_bytes: int) -> tuple[list[Partition], list[str]]:
    """Returns the partitions of a build, in order, and warnings; writes index and listing tables into `work`.

    Args:
        files: the build's files.
        work: folder for the tables, which workers read.
        partition_bytes: aimed size in bytes; 0 chooses by the size of the set.

    Raises:
        SourceError: an index or folder cannot be read.
    """
    total = sum(file.bytes for file in files)
    step = partition_bytes or min(max(total // _PARTS, _SMALLEST), _LARGEST)
    step = max(4, step // 4 * 4)
    partitions: list[Partition] = []
    warnings: list[str] = []
    for number, file in enumerate(files):
        table: str | None = None
        try:
            if file.kind == "folder":
                table = str(work / f"listing-{number}.parquet")
                bounds = _list_folder(file, Path(table), step, warnings)
            else:
                bounds = [*range(0, file.bytes, step), file.bytes]
                if file.index:
                    table = str(work / f"index-{number}.npy")
                    index = idx.read_index(Path(file.index))
                    np.save(table, np.stack([index.offsets, index.keys]))
                    warnings += index.problems
        except OSError as error:
            raise SourceError(f"{error.filename or file.path}: {error.strerror}") from None
        for start, stop in itertools.pairwise(bounds):
            last = stop == bounds[-1]
            partitions.append(Partition(len(partitions), number, file.path, start, stop, table, last))
    return partitions, warnings

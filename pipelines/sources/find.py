"""A source's files, as paths of the user's name them, and how they are cut into partitions."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from faceshards.errors import BuildError, SourceError
from faceshards.locks import own_folder
from faceshards.storage.location import Location, StoredPath, absolute, as_location, lies_in
from pipelines.sources.base import Cut, Partition, SourceFile
from pipelines.sources.folder_listing import with_records
from pipelines.sources.leftovers import is_image, is_leftover
from pipelines.sources.registry import cut_file, find, set_of

_FEW, _MANY = 64, 1024  # partitions: enough to balance and to resume from, few enough to shuffle between
# Bytes of a partition: more than a task costs (about 8 ms of CPU, what decoding a hundred faces takes), less than a
# worker holds. A set has few partitions until they are of the middle size.
_SMALLEST, _MIDDLE, _LARGEST = 8 << 20, 32 << 20, 128 << 20
_RANGE = re.compile(r"\{([0-9]{1,9})\.\.([0-9]{1,9})\}")
_MOST = 100_000  # files that a range of numbers may mean
_TOLD = 6  # names in a warning


def find_files(*paths: Location) -> tuple[list[SourceFile], list[str]]:
    """Returns the files of a source and warnings about what is left aside; their names are distinct.

    A folder with a train.rec is that file (InsightFace); one with other .rec files is all of them but those named as
    held out (x_val.rec); one with .tar files and no pictures in sub-folders is these, as one set (WebDataset); any
    other folder is an image folder, one sub-folder per identity.

    Args:
        paths: each a .rec or .tar file, a range of such files (a{0000..0012}.tar), or a folder; or the address of any
            of them in a bucket.

    Raises:
        SourceError: nothing there, or nothing in it, or it cannot be read, or one folder lies in another.
    """
    files: list[SourceFile] = []
    warnings: list[str] = []
    for path in itertools.chain.from_iterable(map(_numbered, paths)):
        found, told = _find(absolute(path))
        files += found
        warnings += told
    files, told = _once(files)
    _refuse_nested(files)
    return _with_distinct_names(files), warnings + told


def _numbered(path: Location) -> Iterator[Location]:
    """Yields the paths that a{0000..0012}.tar means, as WebDataset and shells have it; any other path is itself."""
    there = isinstance(path, Path) and os.path.lexists(path)
    found = None if there else _RANGE.search(str(path))
    if found is None:
        yield path
        return
    before, after = str(path)[: found.start()], str(path)[found.end() :]
    first, last = int(found[1]), int(found[2])
    if not first <= last < first + _MOST:
        raise SourceError(f"{path}: {found[0]} is no range of up to {_MOST:,} numbers, the smaller one first")
    for number in range(first, last + 1):
        yield from _numbered(as_location(f"{before}{number:0{len(found[1])}d}{after}"))


def _find(path: Location) -> tuple[list[SourceFile], list[str]]:
    """Returns the files that one path means, and warnings."""
    try:
        if (path.is_file() or path.is_dir()) and (found := find(path)):
            files, warnings = found
            return files, warnings + _beside(path, files)
    except OSError as error:
        raise SourceError(f"{error.filename or path}: {error.strerror}") from None
    raise SourceError(f"{path}: no such file or folder")


def _beside(path: Location, files: list[SourceFile]) -> list[str]:
    """Returns a warning if a folder that was read as files has sub-folders with pictures, .rec or .tar files."""
    if any(file.path == str(path) for file in files) or not path.is_dir():
        return []
    if isinstance(path, StoredPath):
        others = sorted({*with_records(path)})
    else:
        others = [
            entry.name
            for entry in sorted(os.scandir(path), key=lambda entry: entry.name)
            if entry.is_dir() and not is_leftover(entry.name) and _has_records(entry.path)
        ]
    if not others:
        return []
    more = f" and {len(others) - _TOLD} more" if len(others) > _TOLD else ""
    return [
        f"{path}: reads {', '.join(file.name for file in files)} and leaves {len(others)} folders with pictures, "
        f".rec or .tar files: {', '.join(map(repr, others[:_TOLD]))}{more}; name one with --source to read it instead"
    ]


def _has_records(folder: str) -> bool:
    """Returns whether there is a picture, a .rec or a .tar anywhere below a folder."""
    for _, folders, names in os.walk(folder):
        if any((is_image(name) or name.lower().endswith((".rec", ".tar"))) and not is_leftover(name) for name in names):
            return True
        folders[:] = [name for name in folders if not is_leftover(name)]
    return False


def _once(files: list[SourceFile]) -> tuple[list[SourceFile], list[str]]:
    """Returns the files, each once whatever the names that lead to it, and warnings about the others."""
    first: dict[object, SourceFile] = {}
    warnings = []
    for file in files:
        same = first.setdefault(_identity(file.path), file)
        if same is not file:
            warnings.append(f"{file.path}: is {same.path} once more, left aside")
    return list(first.values()), warnings


def _identity(path: str) -> object:
    """Returns what is equal for two names of one file."""
    if isinstance(as_location(path), Path):
        stat = os.stat(path)
        return stat.st_dev, stat.st_ino
    return path


def _refuse_nested(files: list[SourceFile]) -> None:
    """Raises SourceError if an image folder lies in another: its pictures would be read twice, as other people's."""
    folders = [(file, as_location(file.path).resolve()) for file in files if file.is_folder]
    for (inner, place), (outer, around) in itertools.permutations(folders, 2):
        if lies_in(place, around):
            raise SourceError(f"{inner.path}: lies in {outer.path}, and would be read twice; name one of them")


def check_outside(out: Location, files: Sequence[SourceFile]) -> None:
    """Raises BuildError if a dataset would lie in an image folder that it is made of."""
    for file in files:
        if file.is_folder and lies_in(out, as_location(file.path)):
            raise BuildError(f"{out}: lies in the source {file.path}, and would be read as a part of it")


def _with_distinct_names(files: list[SourceFile]) -> list[SourceFile]:
    """Returns the files; those that share a name get as much of their path as tells them apart."""
    alike: dict[str, list[SourceFile]] = {}
    for file in files:
        alike.setdefault(file.name, []).append(file)
    return [dataclasses.replace(file, name=_distinct_name(file, alike[file.name])) for file in files]


def _distinct_name(file: SourceFile, files: list[SourceFile]) -> str:
    """Returns the name of one of the files of a name."""
    alike = [Path(other.path).parts for other in files if other is not file]
    if not alike:
        return file.name
    parts = Path(file.path).parts
    lengths = range(1, len(parts) + 1)
    return os.path.join(*next(parts[-n:] for n in lengths if all(other[-n:] != parts[-n:] for other in alike)))


def set_names(files: Sequence[SourceFile]) -> list[str]:
    """Returns the name of the set whose labels each file has: its own, or that of the folder whose files share them."""
    paths = [set_of(file) for file in files]
    named = {
        path: file.name if path == file.path else os.path.basename(path) or path
        for path, file in zip(paths, files, strict=True)
    }
    sets = [dataclasses.replace(files[0], path=path, name=name) for path, name in named.items()]
    names = dict(zip(named, (found.name for found in _with_distinct_names(sets)), strict=True))
    return [names[path] for path in paths]


def cut(files: list[SourceFile], work: Location, partition_bytes: int) -> tuple[list[Partition], list[str]]:
    """Returns the partitions of a build, in order, and warnings; writes the tables that they need into `work`.

    Args:
        files: the build's files.
        work: folder for the tables, which workers read.
        partition_bytes: aimed size in bytes; 0 chooses by the size of the set.

    Raises:
        SourceError: an index or folder cannot be read.
    """
    total = sum(file.bytes for file in files)
    step = partition_bytes or min(max(total // _MANY, min(total // _FEW, _MIDDLE), _SMALLEST), _LARGEST)
    step = max(4, step // 4 * 4)
    partitions: list[Partition] = []
    warnings: list[str] = []
    for number, file in enumerate(files):
        try:
            bounds, table, told = _cut_file(file, number, work, step)
        except OSError as error:
            raise SourceError(f"{error.filename or file.path}: {error.strerror}") from None
        warnings += told
        for start, stop in itertools.pairwise(bounds):
            last = stop == bounds[-1]
            partitions.append(Partition(len(partitions), number, file.kind, file.path, start, stop, table, last))
    return partitions, warnings


def _cut_file(file: SourceFile, number: int, work: Location, step: int) -> Cut:
    """Returns how a file is cut; in a bucket lies a copy of the table that it needs."""
    if not isinstance(work, StoredPath):
        return cut_file(file, number, work, step)
    with own_folder() as folder:
        found = cut_file(file, number, folder, step)
        if found.table is None:
            return found
        stored = work / Path(found.table).name
        stored.upload(Path(found.table), "")
        return found._replace(table=str(stored))

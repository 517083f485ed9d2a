"""Where records come from: the sets known by name, a path of the user's, and how they are cut into partitions."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import idx, recordio
from pipelines.config import load_yaml
from pipelines.errors import ConfigError, SourceError
from pipelines.scan import Partition

DATASETS = Path(__file__).resolve().parent.parent / "configs" / "datasets.yaml"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")

_PARTS = 1024  # partitions aimed at: enough to balance and to resume from, few enough to shuffle between
_SMALLEST, _LARGEST = 8 << 20, 128 << 20  # bytes of a partition: more than a task costs, less than a worker holds


@dataclass(frozen=True)
class Dataset:
    """A set known by name (configs/datasets.yaml).

    Args:
        name: as typed.
        title: as its publishers call it.
        where: where it is to be had.
        terms: terms of use in a line.
        layout: how it is packed.
        identities: expected number, 0 if not stated.
        images: expected number, 0 if not stated.
    """

    name: str
    title: str
    where: str
    terms: str
    layout: str
    identities: int = 0
    images: int = 0


@dataclass(frozen=True)
class SourceFile:
    """One .rec or one image folder, with what tells that it has not changed since.

    Args:
        path: absolute.
        name: short name, for the manifest.
        kind: "recordio" or "folder".
        index: absolute path of the .idx, "" without.
        bytes: size of the .rec; of all images for a folder.
        mtime_ns: modification time in ns, of the .rec; of the newest image for a folder.
    """

    path: str
    name: str
    kind: str
    index: str
    bytes: int
    mtime_ns: int


def known_datasets(path: Path = DATASETS) -> dict[str, Dataset]:
    """Returns the sets known by name.

    Raises:
        ConfigError: the file is missing, or an entry has an unknown or missing key.
    """
    try:
        return {name: Dataset(name=name, **entry) for name, entry in load_yaml(path).items()}
    except TypeError as error:
        raise ConfigError(f"{path}: {str(error).split('__init__() ')[-1]}") from None


def dataset_folder(name: str, data_root: Path) -> tuple[Dataset, Path]:
    """Returns a known set and the folder where its raw files lie.

    Raises:
        SourceError: the name is unknown.
    """
    known = known_datasets()
    if name not in known:
        raise SourceError(f"unknown dataset '{name}'; known: {', '.join(known)}; any other set by --source PATH")
    return known[name], data_root / name


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


def _folder_state(root: Path) -> tuple[int, int]:
    total, newest = 0, -1
    for _, file in walk_images(root, []):
        try:
            stat = os.stat(file)
        except OSError:  # listed as a row of its own when it is read
            newest = max(newest, 0)
            continue
        total, newest = total + stat.st_size, max(newest, stat.st_mtime_ns)
    if newest < 0:
        raise SourceError(f"{root}: no .rec file, and no sub-folder with .jpg or .png images")
    return total, newest


def walk_images(root: Path, warnings: list[str]) -> Iterator[tuple[str, str]]:
    """Yields (identity's folder, absolute path) of each image, in sorted order; every folder is entered once.

    Args:
        root: the image folder; one sub-folder per identity, images anywhere below it.
        warnings: gets a line for what is left aside.
    """
    seen = {os.path.realpath(root)}
    ignored = 0

    def listed(folder: Path | str) -> list[os.DirEntry[str]]:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        foreign = [entry for entry in entries if not _is_utf8(entry.name)]
        # Parquet's strings are UTF-8.
        warnings.extend(f"{entry.path!a}: its name is not UTF-8, left aside" for entry in foreign)
        return [entry for entry in entries if entry not in foreign] if foreign else entries

    def below(folder: str) -> Iterator[str]:
        nonlocal ignored
        real = os.path.realpath(folder)
        if real in seen:
            warnings.append(f"{folder}: leads to a folder that was already read, left aside")
            return
        seen.add(real)
        try:
            entries = listed(folder)
        except OSError as error:
            warnings.append(f"{folder}: {error.strerror}, left aside")
            return
        for entry in entries:
            if _is_dir(entry):
                yield from below(entry.path)
            elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                yield entry.path
            else:
                ignored += 1

    for entry in listed(root):
        if _is_dir(entry):
            for file in below(entry.path):
                yield entry.name, file
        else:
            ignored += 1
    if ignored:
        warnings.append(f"{root}: {ignored} files that are no .jpg or .png in an identity's folder, left aside")


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


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


def _list_folder(file: SourceFile, table: Path, step: int, warnings: list[str]) -> list[int]:
    """Writes the listing (path, identity, place) of a folder; returns the rows at which partitions begin, and the end.

    An identity's place is its rank among the sorted folder names, and its label until the balance renumbers them.
    """
    keys, names, places, bounds, room = [], [], [], [0], step
    place, before = -1, None
    for identity, path in walk_images(Path(file.path), warnings):
        place += identity != before
        before = identity
        keys.append(os.path.relpath(path, file.path))
        names.append(identity)
        places.append(place)
        try:
            room -= os.path.getsize(path)
        except OSError:
            room -= 1
        if room <= 0:
            bounds.append(len(keys))
            room = step
    try:
        columns = {"path": keys, "identity": names, "place": pa.array(places, pa.int32())}
        pq.write_table(pa.table(columns), table)
    except UnicodeEncodeError as error:
        raise SourceError(f"{file.path}: {os.fsencode(error.object)!r}: the name is not UTF-8; rename it") from None
    return bounds if bounds[-1] == len(keys) else [*bounds, len(keys)]

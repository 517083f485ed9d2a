"""Which .tar files a path means, and which of them are one set."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from faceshards.errors import SourceError, first_few
from faceshards.formats.tar import BLOCK, Tar
from faceshards.reading import OpenFile, files_in, open_file
from faceshards.storage.location import Location, StoredPath
from pipelines.sources.base import SourceFile
from pipelines.sources.leftovers import Leftovers, is_held_out, is_image

_UNPACK = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ\0": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
"""What unpacks a file, by what it begins with."""

_COMPRESSED = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz|tzst)", re.ASCII | re.IGNORECASE)
_SEARCHED = 1 << 20  # bytes at a file's beginning that must hold a header
_TOLD = 6  # names in a warning


def find(path: Location) -> tuple[list[SourceFile], list[str]] | None:
    """Returns a .tar, or the .tar files of a folder but held-out ones, as SourceKind has it.

    A folder with a .rec is not asked for its .tar files, nor one with pictures in sub-folders: there they are what it
    was unpacked from.

    Raises:
        SourceError: a file is compressed, empty or no .tar, or a folder has none that can be read.
    """
    if path.is_file():
        if path.suffix.lower() != ".tar" and not _COMPRESSED.fullmatch("".join(Path(path.name).suffixes[-2:])):
            return None if path.suffix == ".rec" or not _is_tar(path) else ([_tar_file(path)], [])
        return [_tar_file(path)], []
    leftovers = Leftovers()
    if not any(entry.name.lower().endswith(".tar") or _COMPRESSED.search(entry.name) for entry in path.iterdir()):
        return None
    entries = files_in(path, lambda _: True)
    if any(entry.suffix == ".rec" for entry in entries) or _holds_people(path):
        return None
    entries = [entry for entry in entries if not leftovers.take(entry)]
    others = [entry for entry in entries if entry.suffix.lower() != ".tar"]
    tars = [entry for entry in entries if entry.suffix.lower() == ".tar"]
    warnings = [f"{path}: {line}" for line in leftovers.told()]
    if not tars and (packed := [entry for entry in others if _COMPRESSED.search(entry.name)]):
        _tar_file(packed[0])
    held = [entry.name for entry in tars if is_held_out(entry.stem)]
    if tars and len(held) == len(tars):
        raise SourceError(
            f"{path}: only held-out sets in it ({first_few(held)}); name one with --source to train on it"
        )
    if held:
        warnings.append(f"{path}: leaves {', '.join(held)}, held-out sets by their names; --source names what to read")
    trained = [entry for entry in tars if not is_held_out(entry.stem)]
    read = [entry for entry in trained if entry.stat().st_size]
    empty = [entry.name for entry in trained if not entry.stat().st_size]
    if not read:
        if not tars:
            return None
        raise SourceError(f"{path}: the .tar files in it are empty: {first_few(empty)}")
    if empty:
        warnings.append(f"{path}: {len(empty)} .tar files are empty, left aside: {first_few(empty)}")
    warnings += _one_set(path, read) + _others(path, others)
    return [_tar_file(entry) for entry in read], warnings


def set_of(file: SourceFile) -> str:
    """Returns the folder of a .tar: all in it are one set, as SourceKind has it."""
    return os.path.dirname(file.path)


def _tar_file(path: Location) -> SourceFile:
    with open_file(path) as file:
        stat, head, is_tar = file.status, file.read_at(0, BLOCK), _begins(file)
    if stat.st_size == 0:
        raise SourceError(f"{path}: empty file")
    for magic, unpack in _UNPACK.items():
        if head.startswith(magic):
            raise SourceError(
                f"{path}: compressed; images are read back by their place in the file, which only a plain .tar has: "
                f"unpack it first ({unpack} {path.name})"
            )
    if not is_tar:
        raise SourceError(f"{path}: no .tar: no member begins in its first {min(stat.st_size, _SEARCHED)} bytes")
    return SourceFile(str(path), path.name, "webdataset", "", stat.st_size, stat.st_mtime_ns)


def _is_tar(path: Location) -> bool:
    """Returns whether a file is a .tar, whatever its name."""
    with open_file(path) as file:
        return _begins(file)


def _begins(file: OpenFile) -> bool:
    """Returns whether a member begins near the beginning of a file, or it is an archive without any."""
    tar = Tar(file, min(file.size, _SEARCHED))
    for member in tar.members():
        if not member.damage or member.damage.startswith("cut off: its contents"):
            return True
    return tar.ended


def _holds_people(path: Location) -> bool:
    """Returns whether pictures lie in sub-folders of a folder."""
    if isinstance(path, StoredPath):
        return any("/" in name and is_image(name) for name, _ in path.below())
    return any(
        is_image(name)
        for entry in os.scandir(path)
        if os.path.isdir(entry.path)  # DirEntry's own raises for a link to itself
        for _, _, names in os.walk(entry.path)
        for name in names
    )


def _one_set(path: Location, tars: Sequence[Location]) -> list[str]:
    """Returns a warning if the names of a folder's files, but for their numbers, are those of several sets."""
    kinds = Counter(re.sub(r"\d+", "*", entry.name) for entry in tars)
    if len(kinds) == 1:
        return []
    return [
        f"{path}: reads {first_few(kinds)} as one set, where a label is one person in all of them; name files with "
        "--source to read them alone"
    ]


def _others(path: Location, entries: Sequence[Location]) -> list[str]:
    """Returns a warning that counts what else is in a folder, by suffix."""
    if not entries:
        return []
    kinds = Counter(re.sub(r"^[^_.]*", "", entry.name) for entry in entries)  # 00000_stats.json: img2dataset's
    each = ", ".join(f"{kind or 'without a suffix'} {count}" for kind, count in kinds.most_common(_TOLD))
    return [f"{path}: {len(entries)} files that are no .tar, left aside: {each}"]

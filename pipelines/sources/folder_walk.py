"""What belongs to an image folder, and what is left aside: the walk over a disk, and the words that buckets share."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from faceshards.storage.location import Location
from pipelines.sources.leftovers import Leftovers, is_image

_TOLD = 8  # names in a warning


class Aside:
    """Counts what is left aside of one image folder, for its warnings.

    Args:
        root: the image folder.

    Attributes:
        leftovers: of systems and tools.
        loose: pictures beside the identities' folders.
        bare: folders without a picture, for no reason that is told.
    """

    def __init__(self, root: Location) -> None:
        self.leftovers, self.loose = Leftovers(), 0
        self.bare: list[str] = []
        self._root = root
        self._strays: Counter[str] = Counter()  # files that are no pictures, by suffix

    def stray(self, name: str) -> None:
        """Counts a file that is no picture."""
        self._strays[os.path.splitext(name)[1].lower() or "without a suffix"] += 1

    def told(self) -> list[str]:
        """Returns the warnings."""
        lines = []
        if self.loose:
            lines.append(f"{self.loose} pictures lie in the folder itself, of no identity, left aside")
        if self._strays:
            kinds = ", ".join(f"{suffix} {count}" for suffix, count in self._strays.most_common(_TOLD))
            lines.append(f"{self._strays.total()} files that are no .jpg or .png, left aside: {kinds}")
        if self.bare:
            more = f" and {len(self.bare) - _TOLD} more" if len(self.bare) > _TOLD else ""
            names = ", ".join(self.bare[:_TOLD])
            lines.append(f"{len(self.bare)} folders hold no picture and are no identities: {names}{more}")
        return [f"{self._root}: {line}" for line in (*lines, *self.leftovers.told())]


def walk_images(root: Path, warnings: list[str]) -> Iterator[tuple[str, str]]:
    """Yields (identity's folder, absolute path) of each image, in sorted order; every folder is entered once.

    Args:
        root: the image folder; one sub-folder per identity, images anywhere below it.
        warnings: gets lines for what is left aside, at the end of the walk.
    """
    seen = {os.path.realpath(root)}
    aside = Aside(root)

    def listed(folder: Path | str) -> list[os.DirEntry[str]]:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        foreign = [entry for entry in entries if not _is_utf8(entry.name)]
        # Parquet's strings are UTF-8.
        warnings.extend(f"{entry.path!a}: its name is not UTF-8, left aside" for entry in foreign)
        return [entry for entry in entries if entry not in foreign and not aside.leftovers.take(entry)]

    def below(folder: str) -> Iterator[str]:
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
            elif is_image(entry.name):
                yield entry.path
            else:
                aside.stray(entry.name)

    for entry in listed(root):
        if _is_dir(entry):
            count, told = 0, len(warnings)
            for file in below(entry.path):
                count += 1
                yield entry.name, file
            if not count and told == len(warnings):
                aside.bare.append(entry.name)
        elif is_image(entry.name):
            aside.loose += 1
        else:
            aside.stray(entry.name)
    warnings.extend(aside.told())


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

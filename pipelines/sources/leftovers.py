"""What names tell: pictures, words, and what systems and tools leave beside them, which is no person: previews,
resource forks, bins, checkpoints."""

from __future__ import annotations

import os
import re
from collections import Counter

from faceshards.storage.location import Location, StoredPath

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")

_NAMES = frozenset(
    (
        # Windows; macOS's archives and shares; Synology and QNAP; Linux and Android; Python.
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "recycler", "recycled", "found.000"),
        *("system volume information", "__macosx", "network trash folder", "temporary items", "icon\r"),
        *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "@__thumb", "#recycle", "#snapshot"),
        *("lost+found", "lost.dir", "__pycache__"),
        *("thumbs", "_thumbs", "thumbnails", "_thumbnails"),
    )
)
"""In lower case; whatever begins with a dot is one too."""

_HELD_OUT = frozenset(("val", "valid", "validation", "test", "testing", "eval", "evaluation", "query", "gallery"))
"""Words in the name of a .rec or .tar that no one trains on; im2rec --test-ratio writes x_train.rec, x_val.rec,
x_test.rec."""

_PREFIXES = (".", ":2e", "synophoto_thumb_", "synofile_thumb_")  # netatalk writes ":2e" for a leading dot
_TOLD = 24  # names in a warning


def is_leftover(name: str) -> bool:
    """Returns whether a file or folder of this name is none of the user's pictures."""
    name = name.lower()
    return name in _NAMES or name.startswith(_PREFIXES)


def is_image(name: str) -> bool:
    """Returns whether a file of this name is taken for a picture."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def words(name: str) -> set[str]:
    """Returns the words of a name in lower case: x_val, LfwTest, test2, train-images."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def is_held_out(stem: str) -> bool:
    """Returns whether the name of a packed file says that no one trains on it: x_val, LfwTest, test2."""
    found = words(stem)
    return bool(found & _HELD_OUT) and not found & {"train", "training"}


class Leftovers:
    """Counts what is left aside below one folder, for one warning."""

    def __init__(self) -> None:
        self._found: Counter[str] = Counter()
        self._pictures: Counter[str] = Counter()

    def take(self, entry: os.DirEntry[str] | Location) -> bool:
        """Returns whether an entry is a leftover, and counts it if so, with all that has a picture's name in it."""
        if not is_leftover(entry.name):
            return False
        if not isinstance(entry, StoredPath) and os.path.isdir(entry):
            self.add(entry.name, sum(is_image(file) for _, _, files in os.walk(entry) for file in files))
        else:
            self.add(entry.name, is_image(entry.name))
        return True

    def add(self, name: str, pictures: int, is_new: bool = True) -> None:
        """Counts a leftover.

        Args:
            name: of the file or folder.
            pictures: files in it that have a picture's name, or 1 for such a file.
            is_new: it was not counted before.
        """
        name = "._*" if name.startswith("._") else name
        self._found[name] += is_new
        self._pictures[name] += pictures

    def told(self) -> list[str]:
        """Returns what to say after a path: one line, or none if nothing was left aside."""
        if not self._found:
            return []
        # Those with pictures first: one of them may be a person's folder with an odd name.
        names = sorted(self._found, key=lambda name: (-self._pictures[name], name))
        each = [f"{name!r}{self._count(name)}" for name in names[:_TOLD]]
        more = [f"and {len(names) - _TOLD} other names"] if len(names) > _TOLD else []
        pictures = self._pictures.total()
        among = f" ({_counted(pictures)})" if pictures else ""
        return [
            f"{self._found.total()} hidden or system files and folders{among} are left aside, rename any that is "
            f"yours: {', '.join([*each, *more])}"
        ]

    def _count(self, name: str) -> str:
        found, pictures = self._found[name], self._pictures[name]
        return (f" x {found}" if found > 1 else "") + (f" ({_counted(pictures)})" if pictures else "")


def _counted(pictures: int) -> str:
    return f"{pictures} picture{'s' * (pictures != 1)}"

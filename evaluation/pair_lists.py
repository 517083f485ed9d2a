"""Verification sets from images in folders and the lists of pairs that LFW, CFP, CALFW and CPLFW come with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from faceshards.formats.verification_bin import SetError, VerificationSet

Pair = tuple[str, str, bool]  # two images below the root, whether they show one person
Place = tuple[Path, int]  # file and line


def make_set(root: Path, pairs: Path) -> VerificationSet:
    """Returns a verification set from images in folders and a list of pairs, in the list's order.

    Args:
        root: folder of the images.
        pairs: a text file with a line per pair: ``name i j`` or ``name1 i name2 j`` as LFW's pairs.txt
            (root/name/name_000i.jpg; a first line of numbers is passed over), ``image image 0|1``, or ``image image``,
            which is one person if both lie in one folder. Or, as CALFW and CPLFW have it, a line per image and two
            lines per pair: ``image n``, where n = 0 is two persons. Or a folder: CFP's Protocol with Pair_list_F.txt,
            Pair_list_P.txt and Split/FP/01 to 10, whose same.txt and diff.txt number the images of these lists from 1.

    Raises:
        SetError: a line that is none of these, or an image that is missing; file and line number are named.
    """
    images: list[bytes] = []
    same: list[bool] = []
    for (file, line), (first, second, flag) in _cfp(pairs) if pairs.is_dir() else _listed(pairs):
        for name in (first, second):
            if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
                raise SetError(f"{file}:{line}: {name[:80]!r} is not below {root}")
        try:
            images += [(root / name).read_bytes() for name in (first, second)]
        except OSError as error:
            raise SetError(f"{file}:{line}: {error.filename}: {error.strerror}") from None
        same.append(flag)
    if not same:
        raise SetError(f"{pairs}: holds no pairs")
    return VerificationSet(re.sub(r"[_-]?pairs$", "", pairs.stem) or root.name, tuple(images), np.array(same, bool))


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yields number and text of the lines that are not empty."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SetError(f"{file}: cannot be read: {error}") from None
    yield from ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip())


def _listed(file: Path) -> Iterator[tuple[Place, Pair]]:
    """Yields the pairs of a text file."""
    waiting: tuple[str, bool] | None = None  # the first image of a pair of two lines
    number = 0
    for number, line in _lines(file):
        words = line.split()
        numeric = [word.isdecimal() for word in words]
        if all(numeric) and number == 1:
            continue
        if waiting is None and len(words) == 2 and numeric == [False, True]:
            waiting = words[0], words[1] != "0"
        elif waiting is not None:
            if len(words) != 2 or numeric != [False, True] or (words[1] != "0") != waiting[1]:
                raise SetError(f"{file}:{number}: '{line[:80]}' is not the second image of the pair begun before")
            yield (file, number), (waiting[0], words[0], waiting[1])
            waiting = None
        elif (pair := _one_line(words, numeric)) is not None:
            yield (file, number), pair
        else:
            raise SetError(f"{file}:{number}: '{line[:80]}' is no pair")
    if waiting is not None:
        raise SetError(f"{file}:{number}: '{waiting[0][:80]}' is the first image of a pair without a second")


def _one_line(words: list[str], numeric: list[bool]) -> Pair | None:
    """Returns the pair of a line, None if it is none."""
    if numeric == [False, True, True]:
        return _lfw(words[0], words[1]), _lfw(words[0], words[2]), True
    if numeric == [False, True, False, True]:
        return _lfw(words[0], words[1]), _lfw(words[2], words[3]), False
    if numeric == [False, False, True] and words[2] in ("0", "1"):
        return words[0], words[1], words[2] == "1"
    if numeric == [False, False] and all("/" in word for word in words):
        return words[0], words[1], Path(words[0]).parent == Path(words[1]).parent
    return None


def _lfw(name: str, number: str) -> str:
    return f"{name}/{name}_{int(number):04d}.jpg"


def _cfp(protocol: Path) -> Iterator[tuple[Place, Pair]]:
    """Yields the frontal-profile pairs of CFP's Protocol folder: fold by fold, the same persons first."""
    lists = []
    for name in ("Pair_list_F.txt", "Pair_list_P.txt"):
        found: dict[int, str] = {}
        for number, line in _lines(protocol / name):
            words = line.split()
            if len(words) != 2 or not words[0].isdecimal():
                raise SetError(f"{protocol / name}:{number}: '{line[:80]}' is not a number and an image")
            # Given relative to the list, ../Data/Images/001/frontal/01.jpg; the root stands for Images.
            found[int(words[0])] = words[1].rpartition("Images/")[2]
        lists.append(found)
    folds = sorted(path for path in (protocol / "Split" / "FP").glob("*") if path.is_dir())
    for file, flag in ((fold / name, name == "same.txt") for fold in folds for name in ("same.txt", "diff.txt")):
        for number, line in _lines(file):
            words = [word.strip() for word in line.split(",")]
            if len(words) != 2 or not all(word.isdecimal() for word in words):
                raise SetError(f"{file}:{number}: '{line[:80]}' is not two numbers")
            images = [found.get(int(word)) for found, word in zip(lists, words, strict=True)]
            if None in images:
                raise SetError(f"{file}:{number}: '{line[:80]}' names an image that the lists of images have not")
            yield (file, number), (str(images[0]), str(images[1]), flag)

"""Verification sets from images in folders and lists of pairs."""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluation.pair_lists import Image, read_pairs
from evaluation.protocol.verification import VerificationError, check_pairs
from faceshards.formats.verification_bin import SetError, VerificationSet
from training.data.transforms import SIZE, ImageError, decode, header_size

log = logging.getLogger(__name__)

FOLDS = 10  # of the field's protocol


def make_set(root: Path, pairs: Path) -> VerificationSet:
    """Returns a verification set from images in folders and a list of pairs, in the list's order.

    What the set lacks to measure something is a warning: images that do not decode or have another size than a
    backbone takes, pairs of one kind, folds of unequal size.

    Args:
        root: folder of the images.
        pairs: a list; see read_pairs.

    Raises:
        SetError: a line of the list is no pair, an image is missing (file and line number are named), or none of the
            images can be decoded.
    """
    if not root.is_dir():
        raise SetError(f"{root}: no such folder")
    listed = read_pairs(pairs)
    paths, images = [], []
    for pair in listed:
        for image in pair.images:
            path, data = _read(root, image, f"{pair.file}:{pair.line}")
            paths.append(path)
            images.append(data)
    same = np.array([pair.same for pair in listed], bool)
    _check_images(root, paths, images)
    _check_pairs(pairs, paths, same)
    return VerificationSet(re.sub(r"[_-]?pairs$", "", pairs.stem) or root.name, tuple(images), same)


def _read(root: Path, image: Image, place: str) -> tuple[Path, bytes]:
    """Returns path and bytes of an image of a list; `place` is its line, for messages."""
    name, top = image[0], os.path.join(os.path.abspath(root), "")  # the others have another suffix
    if "\0" in name or ".." in name.split("/") or not os.path.join(top, name).startswith(top):
        raise SetError(f"{place}: {name[:80]!r} is not below {root}")
    path = next((path for path in (root / name for name in image) if os.path.isfile(path)), root / name)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a named pipe would wait for its writer for ever
            raise SetError(f"{place}: {path}: not a regular file")
        return path, path.read_bytes()
    except OSError as error:
        others = f" (nor {', '.join(Path(name).suffix for name in image[1:])})" if len(image) > 1 else ""
        raise SetError(f"{place}: {path}: {error.strerror}{others}") from None


def _check_images(root: Path, paths: Sequence[Path], images: Sequence[bytes]) -> None:
    """Warns of images that eval leaves out, and refuses a set of none but undecodable ones."""
    broken: dict[int, str] = {}
    other: dict[int, str] = {}
    for place, image in enumerate(images):
        try:
            height, width = header_size(image)
            if (height, width) == SIZE:
                decode(image, SIZE)
        except ImageError as error:
            broken[place] = str(error)
            continue
        if (height, width) != SIZE:
            other[place] = f"{height} x {width}"
    if len(broken) == len(images):
        raise SetError(f"{root}: none of the images can be decoded, the first: {paths[0]}: {broken[0]}")
    for what, found in (("do not decode", broken), (f"are not {SIZE[0]} x {SIZE[1]}", other)):
        if found:
            first, cause = next(iter(found.items()))
            pairs = len({place // 2 for place in found})
            counts = f"{len(found):,} of {len(images):,} images {what}, eval leaves their {pairs:,} pairs out"
            log.warning("%s: %s; the first: %s: %s", root, counts, paths[first], cause)


def _check_pairs(listed: Path, paths: Sequence[Path], same: np.ndarray) -> None:
    """Warns of pairs that measure nothing, or less than they seem to."""
    alike = same.all() or not same.any()
    if alike:
        kind = "one person" if same.all() else "two persons"
        log.warning("%s: all %s pairs are of %s: eval refuses such a set", listed, f"{len(same):,}", kind)
    else:
        try:
            check_pairs(same, FOLDS)
        except VerificationError as error:
            log.warning("%s: %s: eval refuses such a set", listed, error)
    if len(same) % FOLDS and (alike or len(same) > FOLDS):
        log.warning("%s: %s pairs do not make %d equal folds", listed, f"{len(same):,}", FOLDS)
    alone = [pair for pair in range(len(same)) if paths[2 * pair] == paths[2 * pair + 1]]
    if alone:
        log.warning("%s: %d pairs are of an image with itself, the first: %s", listed, len(alone), paths[2 * alone[0]])

"""The labels of an export: the dataset's own, the source's numbers, or names that any file system takes."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter

import numpy as np
import pyarrow as pa

from faceshards.errors import first_few
from pipelines.exports.base import ABOUT, IDENTITIES, ExportError
from pipelines.sources.leftovers import is_leftover

LARGEST = (1 << 63) - 1
LONGEST = 200  # bytes of a folder's name; file systems stop at 255, some that encrypt at 143 characters
_PREFIX = 96  # bytes of a long name that stay in front of its digest
_NEVER = re.compile(r'[\x00-\x1f\x7f-\x9f/\\:*?"<>|%]')  # refused by a file system, or our own mark
_NOT_PLAIN = re.compile(r"[^a-z0-9_.-]")
_CUT = re.compile(r"%[0-9A-F]?$")  # what is left of an escape
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)(\..*)?", re.IGNORECASE | re.DOTALL)
_OURS = (ABOUT, IDENTITIES)


def numbers(originals: pa.ChunkedArray) -> np.ndarray:
    """Returns the labels of the source as numbers, (C,) int64.

    Args:
        originals: (C,) label_original by label.

    Raises:
        ExportError: one is no number, or two are the same one.
    """
    texts = originals.to_pylist()
    for text in texts:
        if not (text.isascii() and text.isdecimal()) or int(text) > LARGEST:
            raise ExportError(
                f"--labels old: identity {text!r} is no whole number, as labels of this format are; "
                "--labels new counts from 0, --to folder takes names"
            )
    found = np.array([int(text) for text in texts], np.int64)
    values, counts = np.unique(found, return_counts=True)
    if len(values) < len(found):
        twice = values[counts > 1][0]
        both = first_few(repr(texts[i]) for i in np.flatnonzero(found == twice))
        raise ExportError(f"--labels old: identities {both} would all be the number {twice}; --labels new tells them")
    return found


def folder_names(originals: pa.ChunkedArray) -> list[str]:
    """Returns a folder's name for every identity: its own, as far as every file system takes it.

    No two are alike, not even where case or Unicode's forms of one letter do not count, and `original_name` undoes it.
    A byte of a letter is written %XX (UTF-8, capital hex) if it is

    - a control character, or one of / \\ : * ? " < > | %;
    - the first of a name that begins with a dot or a blank, that Windows keeps for a device (con, nul, lpt1), that
      faceshards takes for a system's leftover ("thumbs"), or that is a file of the export;
    - the last of a name that ends with a dot or a blank;
    - in a name of which another one differs in case, or in Unicode's forms, alone: all but a-z, 0-9, _, - and dot.

    A name that is longer than LONGEST bytes then is its beginning, "%~", and the SHA-256 of the original (hex).

    Args:
        originals: (C,) names, all different.
    """
    texts = originals.to_pylist()
    folded = [_folded(text) for text in texts]
    shared = {name for name, count in Counter(folded).items() if count > 1}
    return [_escape(text, fold in shared) for text, fold in zip(texts, folded, strict=True)]


def original_name(folder: str) -> str | None:
    """Returns the identity whose folder has this name; None if it was too long, and is in identities.parquet alone."""
    if "%~" in folder:
        return None
    data = folder.removesuffix("%") if folder == "%" else folder
    return re.sub(rb"%([0-9A-F]{2})", lambda found: bytes([int(found[1], 16)]), data.encode()).decode()


def _folded(text: str) -> str:
    """Returns what is the same for names that some file system takes for one."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold()).casefold()


def _escape(text: str, shared: bool) -> str:
    """Returns a folder's name; `shared`: other names are like it but for case or Unicode's forms."""
    name = (_NOT_PLAIN if shared else _NEVER).sub(_hexed, text)
    if text and text[-1] in ". " and name[-1] == text[-1]:
        name = name[:-1] + _hex(text[-1])
    # Windows takes the name of a device, whatever follows behind a dot.
    first = text[:1] in (".", " ") or _DEVICES.fullmatch(text) or is_leftover(text) or text.lower() in _OURS
    if first and name[0] == text[0]:
        name = _hex(text[0]) + name[1:]
    if len(name.encode()) <= LONGEST:
        return name or "%"
    begin = name.encode()[:_PREFIX].decode(errors="ignore")
    return f"{_CUT.sub('', begin)}%~{hashlib.sha256(text.encode()).hexdigest()}"


def _hexed(found: re.Match[str]) -> str:
    return _hex(found[0])


def _hex(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode())

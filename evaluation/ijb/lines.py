"""The lists of IJB-B and IJB-C: lines of words, as editors and pandas have left them."""

from __future__ import annotations

import codecs
import io
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv

from faceshards.errors import FaceshardsError
from faceshards.formats.pickles import shown

_AS = bytes.maketrans(b"\r\t\v\f", b"\n   ")
EXACT = 1 << 53  # whole numbers below this are exact as float64


class IjbError(FaceshardsError):
    """Files that are not the benchmark's, or embeddings from which nothing follows."""


@dataclass(frozen=True)
class Lines:
    """The lines of a list, blank ones apart: a row each.

    Args:
        path: of the file, for messages.
        text: of the file, one blank between words.
        table: a column a word.
    """

    path: Path
    text: bytes
    table: pa.Table

    def column(self, name: str) -> np.ndarray:
        """Returns the (N,) words of a column, as the type they were read as."""
        return np.asarray(self.table[name].to_numpy())

    def integers(self, name: str) -> np.ndarray:
        """Returns the (N,) int64 of a column of float64; 2.0 is 2, as it is to pandas.

        Raises:
            IjbError: names the first line whose word is no whole number.
        """
        found = self.column(name)
        with np.errstate(invalid="ignore"):
            self.refuse(~((np.floor(found) == found) & (np.abs(found) < EXACT)), f"a {name} that is no whole number")
        return found.astype(np.int64)

    def refuse(self, wrong: np.ndarray, what: str) -> None:
        """Names the first line that is wrong, if one is; `wrong` is (N,) bool."""
        if wrong.any():
            raise IjbError(f"{self.path}:{self.number(int(wrong.argmax()))}: {what}")

    def number(self, row: int) -> int:
        """Returns the number of a row's line in the file, from 1 on; of a row after the last, that of the next line."""
        filled = (number for number, line in enumerate(self.text.split(b"\n"), 1) if line)
        return next(itertools.islice(filled, row, None), self.text.rstrip(b"\n").count(b"\n") + 2)


def read_lines(path: Path, types: Mapping[str, pa.DataType]) -> Lines:
    """Returns a list: words between blanks, as ``pandas.read_csv(sep=" ", header=None)`` and ``str.split`` take them.

    Blanks at the ends of lines, several of them, tabs, blank lines, any kind of line end, marks of byte order and of
    the end, and quotation marks mean nothing: writers of such lists have left all of these.

    Args:
        path: the file.
        types: of the words of a line, by name: string, or a float.

    Raises:
        IjbError: it cannot be read, or has a line of other words; the message names the first.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise IjbError(f"{path}: {error.strerror}") from None
    if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in text:
        raise IjbError(f"{path}: no text in UTF-8; UTF-16, perhaps")
    text = _tidy(text)
    if not text.strip(b"\n"):
        raise IjbError(f"{path}: has no lines")
    try:
        table = csv.read_csv(
            pa.BufferReader(text),
            read_options=csv.ReadOptions(column_names=list(types), use_threads=False),
            parse_options=csv.ParseOptions(delimiter=" ", quote_char=False),
            convert_options=csv.ConvertOptions(column_types=types, null_values=[], strings_can_be_null=False),
        )
    except pa.ArrowException as error:
        raise IjbError(f"{path}{_cause(text, types) or ': ' + ' '.join(str(error).split())}") from None
    return Lines(path, text, table)


def _tidy(text: bytes) -> bytes:
    """Returns a text of as many lines with one blank between words, and nothing else that has no meaning."""
    text = text.removeprefix(codecs.BOM_UTF8)
    text = text.replace(b"\r\n", b"\n").translate(_AS, delete=b'"\x1a')  # the latter ends files of DOS
    while b"  " in text:
        text = text.replace(b"  ", b" ")
    return text.replace(b" \n", b"\n").replace(b"\n ", b"\n").strip(b" ")


def _cause(text: bytes, types: Mapping[str, pa.DataType]) -> str:
    """Returns which line is the first of other words, and why; nothing if none is found."""
    for number, line in enumerate(io.BytesIO(text), 1):
        words = line.rstrip(b"\n").split(b" ")
        if words == [b""]:
            continue
        if len(words) != len(types):
            return f":{number}: {len(words)} words, not {len(types)}: {' '.join(types)}"
        for word, (name, kind) in zip(words, types.items(), strict=True):
            if not _is(word, kind):
                what = "UTF-8" if kind == pa.string() else "number"
                return f":{number}: {name} '{shown(word.decode(errors='replace'), 20)}' is no {what}"
    return ""


def _is(word: bytes, kind: pa.DataType) -> bool:
    try:
        word.decode() if kind == pa.string() else float(word)
    except ValueError:
        return False
    return True

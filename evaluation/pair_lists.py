"""Lists of pairs of images, in the forms that LFW, CFP, CALFW, CPLFW and im2rec give them."""

from __future__ import annotations

import codecs
import csv
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from faceshards.formats.verification_bin import SetError

log = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")  # of LFW's images, in the order they are tried

# What the fields of a line may be, in their order. No line can be read in two of these forms.
FORMS = (
    *("name i j", "name i name j"),
    *("image image flag", "flag image image", "index image image flag", "index flag image image", "path path"),
    *("path number", "index label path"),  # half a pair
)
_SHAPES = {  # of a field, by the kinds that _kind gives
    **dict.fromkeys(("i", "j", "index", "number"), "[bn]"),
    **{"name": "[^p]", "image": "[pw]", "path": "p", "flag": "[bdf]", "label": "[bnd]"},
}
_PATH = re.compile(r".*[/\\].*|.*\.(jpe?g|png|bmp|webp|tiff?|p[gp]m)", re.IGNORECASE)
_TITLE = re.compile(r"name|ima?ge?|file|path|photo|pic|face|label|flag|same|match|target|pair|person", re.IGNORECASE)
_FLAGS = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "-1": False, "-1.0": False, "false": False}
_DELIMITERS = "\t,; "  # the last one stands for any white space
_NO_PAIR = "is no pair"

Image = tuple[str, ...]  # paths below the root, of which the first that is there is meant


@dataclass(frozen=True)
class Pair:
    """A pair of a list.

    Args:
        file: where it stands.
        line: of it, from 1; the second of a pair that has two.
        images: the two.
        same: whether they show one person.
    """

    file: Path
    line: int
    images: tuple[Image, Image]
    same: bool


class _LineError(Exception):
    """A line says nothing that fits the list: its number and why."""

    def __init__(self, line: int, cause: str) -> None:
        super().__init__(line, cause)
        self.line, self.cause = line, cause


@dataclass(frozen=True)
class _Line:
    """A line's number, its form, and its fields without blanks around them."""

    number: int
    form: str
    fields: list[str]

    def get(self, *words: str) -> list[str]:
        """Returns the fields that the form calls by these words."""
        return [field for word, field in zip(self.form.split(), self.fields, strict=True) if word in words]

    @property
    def images(self) -> list[Image]:
        """The images it names."""
        if names := self.get("name"):
            numbers = zip((names[0], names[-1]), map(int, self.get("i", "j")), strict=True)
            return [tuple(f"{name}/{name}_{i:04d}{suffix}" for suffix in SUFFIXES) for name, i in numbers]
        return [(text.replace("\\", "/"),) for text in self.get("image", "path")]  # Windows writes backslashes


def read_pairs(pairs: Path) -> list[Pair]:
    """Returns the pairs of a list, in its order.

    Args:
        pairs: a text file with tabs, commas, semicolons or blanks between the fields of a line, and quotes around a
            field if need be. Lines that begin with # are comments; a first line of one or two numbers (a count) or of
            column titles is passed over. All others have one form of FORMS: names and numbers as LFW's pairs.txt has
            them (name/name_000i.jpg, or another of SUFFIXES); two images, and whether they show one person; two images
            without a flag, which do if they lie in one folder; or a line an image and two lines a pair, as _joined()
            reads them.
            Or a folder: CFP's Protocol with Pair_list_F.txt, Pair_list_P.txt and Split/FP/01 to 10, whose same.txt and
            diff.txt number the images of these lists from 1.

    Raises:
        SetError: no pairs, or a line that is none or of another form than the others; it names file and line.
    """
    found = list(_cfp(pairs)) if pairs.is_dir() else _listed(pairs)
    if not found:
        raise SetError(f"{pairs}: holds no pairs")
    return found


def read_lines(file: Path) -> list[tuple[int, str]]:
    """Returns number and text of the lines of a list that are not empty.

    Raises:
        SetError: no text in UTF-8, or in UTF-16 with its mark, as PowerShell writes it.
    """
    try:
        data = file.read_bytes()
        wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except OSError as error:
        raise SetError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SetError(f"{file}: cannot be read: no text in UTF-8, {error.reason} at byte {error.start}") from None
    return [(number, line) for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1) if line.strip()]


def _listed(file: Path) -> list[Pair]:
    """Returns the pairs of a text file, by the first delimiter that makes sense of all its lines."""
    lines = [(number, line) for number, line in read_lines(file) if not line.lstrip().startswith("#")]
    failures = []
    for delimiter in _DELIMITERS:
        found = _split(file, lines, delimiter)
        if isinstance(found, list):
            return found
        failures.append(found)
    # Of the delimiter that got furthest; of several, the one that says more than that there is no pair.
    worst = max(failures, key=lambda failure: (failure.line, failure.cause != _NO_PAIR))
    text = dict(lines)[worst.line].strip()
    spaced = worst.cause == _NO_PAIR and len(text.split()) > 3
    hint = "; names with blanks need tabs or commas between the fields, or quotes" if spaced else ""
    raise SetError(f"{file}:{worst.line}: '{text[:80]}' {worst.cause}{hint}")


def _split(file: Path, lines: list[tuple[int, str]], delimiter: str) -> list[Pair] | _LineError:
    """Returns the pairs of lines whose fields a delimiter divides; the error of a line if it does not."""
    try:
        rows = [(number, _fields(number, line, delimiter)) for number, line in lines]
        return _parsed(file, [(number, fields) for number, fields in rows if fields])
    except _LineError as failure:
        return failure


def _fields(number: int, line: str, delimiter: str) -> list[str]:
    """Returns the fields of a line without blanks around them; empty ones at its end are none."""
    text = " ".join(line.split()) if delimiter == " " else line
    try:
        (row,) = csv.reader([text], delimiter=delimiter, skipinitialspace=delimiter != " ", strict=True)
    except csv.Error as error:
        raise _LineError(number, f"is no pair: {error}") from None
    fields = [field.strip() for field in row]
    while fields and not fields[-1]:
        fields.pop()
    return fields


def _parsed(file: Path, rows: list[tuple[int, list[str]]]) -> list[Pair]:
    """Returns the pairs that lines, as numbers and fields, are."""
    count = _count(rows[0][1]) if rows else ()
    if count or (rows and _are_titles(rows[0][1])):
        rows = rows[1:]
    lines = list(_lines(rows))
    halves = bool(lines) and len(lines[0].images) == 1
    pairs = list(_joined(file, lines)) if halves else _whole(file, lines)
    # LFW counts its folds and the pairs of a kind in each; with one number, lists count the pairs, or those of a kind.
    expected = {2 * count[0] * count[1]} if len(count) == 2 else {count[0], 2 * count[0]} if count else {len(pairs)}
    if len(pairs) not in expected:
        text = " or ".join(f"{number:,}" for number in sorted(expected))
        log.warning("%s: its first line counts %s pairs, the list has %s", file, text, f"{len(pairs):,}")
    return pairs


def _count(fields: list[str]) -> tuple[int, ...]:
    """Returns the numbers of a first line that counts the pairs, none for another."""
    return tuple(map(int, fields)) if re.fullmatch("[bn]{1,2}", "".join(map(_kind, fields))) else ()


def _are_titles(fields: list[str]) -> bool:
    """Returns whether a first line is of column titles: words, one of which a title may hold."""
    return len(fields) > 1 and {_kind(field) for field in fields} == {"w"} and any(map(_TITLE.search, fields))


def _lines(rows: Iterable[tuple[int, list[str]]]) -> Iterator[_Line]:
    """Yields the lines with their form, which is one for all; LFW's two are one."""
    first: _Line | None = None
    for number, fields in rows:
        form = _form(fields)
        if not form:
            raise _LineError(number, _NO_PAIR)
        line = _Line(number, form, fields)
        first = first or line
        if line.form != first.form and not (line.get("name") and first.get("name")):
            raise _LineError(number, f"reads as '{form}', but line {first.number} as '{first.form}'")
        yield line


def _form(fields: list[str]) -> str:
    """Returns the form of FORMS that fields have, "" for none."""
    kinds = "".join(map(_kind, fields))
    return next((form for form in FORMS if re.fullmatch("".join(_SHAPES[word] for word in form.split()), kinds)), "")


def _kind(field: str) -> str:
    """Returns what a field may be: b 0 or 1, n another whole number, d a decimal, f a flag, p a path, w a word."""
    if field.isdecimal() and len(field) < 20:
        return "b" if field in ("0", "1") else "n"
    if re.fullmatch(r"\d+\.\d*", field):
        return "d"
    return "f" if field.lower() in _FLAGS else "p" if _PATH.fullmatch(field) else "w"


def _whole(file: Path, lines: list[_Line]) -> list[Pair]:
    """Returns the pairs of lines that are one each."""
    pairs = []
    no = ""  # how the list writes the flag of two persons
    for line in lines:
        first, second = line.images
        if names := line.get("name"):
            same = names[0] == names[-1]
        elif flags := line.get("flag"):
            flag = flags[0].lower()
            if flag not in _FLAGS:
                raise _LineError(line.number, f"has no flag: {flag} is neither 1 nor 0, -1, true or false")
            same = _FLAGS[flag]
            no = no or ("" if same else flag)
            if not same and flag != no:
                raise _LineError(
                    line.number, f"has the flag {flag}, lines before it {no}: one of them says something else"
                )
        else:
            if not all("/" in name for name in (*first, *second)):
                raise _LineError(line.number, "has no flag, and its images lie in no folders that say who is who")
            same = Path(first[0]).parent == Path(second[0]).parent
        pairs.append(Pair(file, line.number, (first, second), same))
    return pairs


def _joined(file: Path, lines: list[_Line]) -> Iterator[Pair]:
    """Yields the pairs of lines that are two each.

    CALFW and CPLFW have a number behind an image, the same one for both, and 0 for two persons. In im2rec's .lst the
    label before an image is its identity, so that two persons have two. Where all pairs of an .lst have equal labels,
    these cannot be identities, since there would be one kind of pair only: they are numbers as in CALFW.
    """
    numbers = [float(line.get("number", "label")[0]) for line in lines]
    labelled = bool(lines) and lines[0].form == "index label path"
    if len(lines) % 2:
        raise _LineError(lines[-1].number, "is the first image of a pair without a second")
    identities = labelled and numbers[::2] != numbers[1::2]
    if labelled and not identities:
        log.warning("%s: both labels of every pair are equal: 0 is read as two persons, others as one", file)
    for k, (first, second) in enumerate(zip(lines[::2], lines[1::2], strict=True)):
        equal = numbers[2 * k] == numbers[2 * k + 1]
        if not equal and not identities:
            raise _LineError(second.number, f"is not the second image of the pair begun on line {first.number}")
        same = equal if identities else numbers[2 * k] != 0
        yield Pair(file, second.number, (first.images[0], second.images[0]), same)


def _cfp(protocol: Path) -> Iterator[Pair]:
    """Yields the frontal-profile pairs of CFP's Protocol folder: fold by fold, the same persons first."""
    lists = []
    for name in ("Pair_list_F.txt", "Pair_list_P.txt"):
        found: dict[int, str] = {}
        for number, line in read_lines(protocol / name):
            words = line.split()
            if len(words) != 2 or not words[0].isdecimal():
                raise SetError(f"{protocol / name}:{number}: '{line[:80]}' is not a number and an image")
            # Given relative to the list, ../Data/Images/001/frontal/01.jpg; the root stands for Images.
            found[int(words[0])] = words[1].rpartition("Images/")[2]
        lists.append(found)
    folds = sorted(path for path in (protocol / "Split" / "FP").glob("[!.]*") if path.is_dir())
    for file, flag in ((fold / name, name == "same.txt") for fold in folds for name in ("same.txt", "diff.txt")):
        for number, line in read_lines(file):
            words = [word.strip() for word in line.split(",")]
            if len(words) != 2 or not all(word.isdecimal() for word in words):
                raise SetError(f"{file}:{number}: '{line[:80]}' is not two numbers")
            images = [found.get(int(word)) for found, word in zip(lists, words, strict=True)]
            if None in images:
                raise SetError(f"{file}:{number}: '{line[:80]}' names an image that the lists of images have not")
            yield Pair(file, number, ((str(images[0]),), (str(images[1]),)), flag)

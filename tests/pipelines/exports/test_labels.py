"""Labels of an export: numbers that are the source's, names that no file system confuses."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.exports.base import ExportError
from pipelines.exports.labels import LONGEST, folder_names, numbers, original_name
from pipelines.sources.leftovers import is_leftover

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        "a",
        "A",
        "%41",
        "ä",
        "a\u0308",
        "Ä",
        ".",
        "..",
        "con",
        "CON.txt",
        "ß",
        "ss",
        "SS",
        "ﬁ",
        "fi",
        "thumbs",
        "a.",
        "a ",
    ]
)


def column(names: list[str]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(names, pa.string())])


def as_macos_compares(name: str) -> str:
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


@given(st.lists(NAMES, unique=True, max_size=12))
def test_names_stay_apart_and_come_back(names: list[str]) -> None:
    folders = folder_names(column(names))
    assert [original_name(folder) for folder in folders] == names
    for told_apart_by in (str.casefold, str.upper, as_macos_compares, lambda name: unicodedata.normalize("NFKC", name)):
        assert len({told_apart_by(folder) for folder in folders}) == len(names)
    for folder in folders:
        assert 0 < len(folder.encode()) <= LONGEST
        assert not set(folder) & set('/\\:*?"<>|\0\n')
        assert folder[0] not in ". "
        assert folder[-1] not in ". "
        assert not is_leftover(folder)


@settings(max_examples=30)
@given(st.lists(st.text(st.sampled_from("aAé%."), min_size=150, max_size=400), unique=True, max_size=6))
def test_long_names_stay_apart(names: list[str]) -> None:
    folders = folder_names(column(names))
    assert len({folder.casefold() for folder in folders}) == len(names)
    assert max((len(folder.encode()) for folder in folders), default=0) <= LONGEST
    assert {original_name(folder) for folder in folders} <= {None, *names}


def test_names_are_written_as_the_page_says(tmp_path: Path) -> None:
    names = {
        "Aaron_Eckhart": "Aaron_Eckhart",
        "José Ferrer": "José Ferrer",
        "ann": "ann",
        "Ann": "%41nn",
        "..": "%2E%2E",
        ".": "%2E",
        "a/b:c": "a%2Fb%3Ac",
        "50%": "50%25",
        "Con": "%43on",
        "aux.old": "%61ux.old",
        "thumbs": "%74humbs",
        "Jr.": "Jr%2E",
        "export.json": "%65xport.json",
        "tab\there": "tab%09here",
        "": "%",
    }
    assert folder_names(column(list(names))) == list(names.values())
    for name in names.values():
        os.mkdir(tmp_path / name)
    assert len(list(tmp_path.iterdir())) == len(names)


def test_numbers_are_those_of_the_source() -> None:
    assert numbers(column(["0", "0000045", "16777216", str((1 << 63) - 1)])).tolist() == [0, 45, 1 << 24, (1 << 63) - 1]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["1", "Ann"], "identity 'Ann' is no whole number"),
        (["1", "-2"], "identity '-2' is no whole number"),
        (["1.0"], "identity '1.0' is no whole number"),
        (["a.rec:1"], "identity 'a.rec:1' is no whole number"),
        (["²"], "identity '²' is no whole number"),
        (["٣"], "identity '٣' is no whole number"),
        ([""], "identity '' is no whole number"),
        ([str(1 << 63)], "identity '9223372036854775808' is no whole number"),
        (["7", "12", "007"], "identities '7', '007' would all be the number 7"),
    ],
)
def test_what_is_no_number_of_its_own_is_refused(names: list[str], said: str) -> None:
    with pytest.raises(ExportError, match=said):
        numbers(column(names))

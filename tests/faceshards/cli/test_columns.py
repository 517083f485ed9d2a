"""Columns: on a terminal they fit, and nothing of a cell is lost; piped they are plain; no cell commands a terminal."""

from __future__ import annotations

import contextlib
import io
import re
import sys

import pyarrow as pa
import pytest

from faceshards.cli.columns import Column, cell, cells, printer

COLUMNS = [Column("sid", True, 9), Column("label_original", False, 30), Column("max_images", True, 2)]
ROWS = [("123456789", "a" * 30, "10"), ("5", "-", "9"), ("7", "[red]b[/red]", "")]


class Terminal(io.StringIO):
    """What rich takes for a terminal."""

    def isatty(self) -> bool:
        return True


def printed(out: io.StringIO, *blocks: list[tuple[str, str, str]]) -> list[str]:
    """Returns the lines that rows are printed as, some of them after the others."""
    with contextlib.redirect_stdout(out):
        show = printer(COLUMNS)
        for rows in blocks:
            show(rows)
    return out.getvalue().splitlines()


@pytest.fixture(autouse=True)
def _a_usual_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")  # a "dumb" one is 80 wide for rich


@pytest.mark.parametrize("width", [80, 46, 40, 24])
def test_a_terminal_gets_all_of_every_cell(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = [re.sub(r"\x1b\[\d*m", "", line) for line in printed(Terminal(), ROWS[:2], ROWS[2:])]
    assert max(map(len, lines)) <= width
    (rule,) = (i for i, line in enumerate(lines) if "─" in line)  # under titles that come once
    assert "".join("".join(lines[:rule]).split()).count("sid") == 1
    numbers = [line[:9] for line in lines[rule + 1 :] if line[:9].strip()]
    assert numbers == ["123456789", "        5", "        7"]  # whole, and on the right
    rest = "".join("".join(line[9:] for line in lines[rule + 1 :]).split())
    assert rest.count("a") == 30
    assert "[red]b[/red]" in rest  # no markup


def test_a_terminal_too_narrow_for_its_numbers_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "15")
    lines = printed(Terminal(), ROWS)
    assert lines == printed(io.StringIO(), ROWS)
    assert lines[0].split() == ["sid", "label_original", "max_images"]
    assert lines[1].split() == list(ROWS[0])


def test_without_rich_lines_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)  # what an import of it then meets: no such module
    lines = printed(Terminal(), ROWS)
    assert lines == printed(io.StringIO(), ROWS[:1], ROWS[1:])
    assert {line.index(part) for line, part in zip(lines, ("label", "aaa", "-", "[red]"), strict=True)} == {11}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (b"\x00\xff", "00ff"),
        (True, "True"),
        ("Zoë 张", "Zoë 张"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\x1b]0;gotcha\x07", r"\x1b]0;gotcha\x07"),
        ("\u202egpj", r"\u202egpj"),
    ],
)
def test_a_cell_is_one_line_that_no_terminal_obeys(value: object, text: str) -> None:
    assert cell(value) == text


def test_cells_are_of_a_column() -> None:
    assert cells(pa.array([1, None])) == ["1", "-"]

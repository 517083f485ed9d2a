"""Columns of text: drawn by rich to the width of a terminal, or plain and aligned where there is none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from faceshards.cli.terminal import echo

Rows = Iterable[Sequence[str]]
Length = Callable[[str], int]

_GAP = 2  # between columns
_LEAST = 6  # characters, below which no text is folded


@dataclass
class Column:
    """What is known of a column before its first cell is printed.

    Args:
        name: its title.
        numeric: holds numbers: right on a terminal, and never folded.
        width: of its longest cell.
    """

    name: str
    numeric: bool = False
    width: int = 0


def cells(column: pa.Array) -> list[str]:
    """Returns the values of a column as text; see cell()."""
    return [cell(value) for value in column.to_pylist()]


def cell(value: object) -> str:
    """Returns a value as text on one line: what no terminal should obey is escaped."""
    text = "-" if value is None else value.hex() if isinstance(value, bytes) else str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def cell_length() -> Length:
    """Returns what measures cells: the places they take on a terminal, characters elsewhere."""
    if sys.stdout.isatty():
        try:
            from rich.cells import cell_len
        except ModuleNotFoundError:
            pass
        else:
            return cell_len
    return len


def printer(columns: Sequence[Column]) -> Callable[[Rows], None]:
    """Returns what prints rows of cells, as often as it is called; the titles come before the first.

    Args:
        columns: as wide as their widest cell among all rows to come.
    """
    return (sys.stdout.isatty() and _drawing(columns)) or _plain(columns)


def _plain(columns: Sequence[Column]) -> Callable[[Rows], None]:
    widths = [max(column.width, len(column.name)) for column in columns]

    def line(row: Sequence[str]) -> str:
        return (" " * _GAP).join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()

    echo(line([column.name for column in columns]))
    return lambda rows: echo("\n".join(map(line, rows)))


def _drawing(columns: Sequence[Column]) -> Callable[[Rows], None] | None:
    """Returns what draws rows with rich; None without it, or where columns are more than a terminal is wide."""
    try:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ModuleNotFoundError:
        return None
    console = Console(file=sys.stdout, highlight=False)
    widths = _fitted(columns, console.width - _GAP * (len(columns) - 1))
    if widths is None:
        return None
    header = True

    def draw(rows: Rows) -> None:
        nonlocal header
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), show_header=header)
        for column, width in zip(columns, widths, strict=True):
            title = column.name if len(column.name) <= width else "\n".join(_pieces(column.name))
            side: Literal["left", "right"] = "right" if column.numeric else "left"
            table.add_column(Text(title), width=width, overflow="fold", justify=side)
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)
        header = False

    draw([])
    return draw


def _pieces(title: str) -> list[str]:
    """Returns what a title is folded into: label_, original."""
    return title.replace("_", "_\n").split("\n")


def _fitted(columns: Sequence[Column], room: int) -> list[int] | None:
    """Returns widths of columns that fit: titles are folded first, then texts; None if numbers would have to be.

    Args:
        columns: as wide as their cells.
        room: characters for all of them.
    """
    folded = [max(min(column.width, _LEAST), column.width if column.numeric else 0, 1) for column in columns]
    cells_whole = [max(column.width, *map(len, _pieces(column.name))) for column in columns]
    all_whole = [max(column.width, len(column.name)) for column in columns]
    for least, most in ((cells_whole, all_whole), (folded, cells_whole)):
        if sum(least) <= room:
            cap = max(most)
            while sum(fit := [max(low, min(high, cap)) for low, high in zip(least, most, strict=True)]) > room:
                cap -= 1
            return fit
    return None

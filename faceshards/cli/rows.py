"""Prints rows of a table as they come: what is printed is never held as a whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence

import click
import pyarrow as pa
import pyarrow.dataset as ds

from faceshards.dataset.manifest import Manifest
from faceshards.dataset.schema import SCHEMAS

Batches = Callable[[], Iterator[pa.RecordBatch]]

BATCH = 8192  # rows that are made text at a time
FEW = 20  # rows on a terminal, unless --limit says otherwise

limit_option = click.option(
    "--limit",
    type=click.IntRange(min=0),
    help=f"Rows; 0: all. Without it {FEW}, and all with --json.",
)


def print_rows(names: Sequence[str], batches: Batches, total: int, limit: int | None, as_json: bool) -> None:
    """Prints rows as aligned columns, or as JSON with a row on each line; says on stderr how many it leaves out.

    Args:
        names: of the columns.
        batches: gives the rows, in order, as often as it is called.
        total: number of all rows.
        limit: of rows to print; 0: all; None: all of JSON, and FEW as columns.
        as_json: prints one JSON array, in which bytes are hex.
    """
    if limit is None:
        limit = 0 if as_json else FEW
    count = min(limit or total, total)
    if as_json:
        _print_json(_first(batches(), count))
    else:
        _print_columns(names, batches, count)
    if count < total:
        click.echo(f"({count} of {total} rows; --limit 0 for all)", err=True)


def print_table(
    found: Manifest,
    table: str,
    limit: int | None,
    as_json: bool,
    where: ds.Expression | None = None,
    columns: list[str] | None = None,
) -> None:
    """Prints rows of a dataset's table, as they are read; see print_rows().

    Args:
        found: the dataset.
        table: its table's name.
        limit: see print_rows().
        as_json: likewise.
        where: which rows; all without it.
        columns: which columns, in this order; all without it.
    """
    names = columns or SCHEMAS[table].names
    print_rows(names, lambda: found.batches(table, names, where), found.count(table, where), limit, as_json)


def _first(batches: Iterator[pa.RecordBatch], count: int) -> Iterator[pa.RecordBatch]:
    """Yields the first rows of batches; none of them is empty."""
    for batch in batches:
        if count <= 0:
            return
        if len(batch):
            yield batch.slice(0, count)
            count -= len(batch)


def _print_json(batches: Iterator[pa.RecordBatch]) -> None:
    before = "["
    for batch in batches:
        rows = (json.dumps(row, ensure_ascii=False, default=bytes.hex) for row in batch.to_pylist())
        click.echo(before + "\n" + ",\n".join(rows), nl=False)
        before = ","
    click.echo("[]" if before == "[" else "\n]")


def _print_columns(names: Sequence[str], batches: Batches, count: int) -> None:
    widths = list(map(len, names))
    for batch in _first(batches(), count):  # how wide they are, before the first is printed
        widths = [max(width, *map(len, _cells(column))) for width, column in zip(widths, batch.columns, strict=True)]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()

    click.echo(line(names))
    for batch in _first(batches(), count):
        click.echo("\n".join(map(line, zip(*map(_cells, batch.columns), strict=True))))


def _cells(column: pa.Array) -> list[str]:
    """Returns the values of a column as text."""
    return [
        "-" if value is None else value.hex() if isinstance(value, bytes) else str(value)
        for value in column.to_pylist()
    ]

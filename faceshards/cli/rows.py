"""Prints rows of a table as they come: what is printed is never held as a whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence

import click
import pyarrow as pa
import pyarrow.compute as pc

from faceshards.cli.columns import Column, cell_length, cells, printer
from faceshards.cli.terminal import echo
from faceshards.dataset.manifest import Manifest
from faceshards.errors import FaceshardsError

Batches = Callable[[], Iterator[pa.RecordBatch]]

BATCH = 8192  # rows that are made text at a time
FEW = 20  # rows on a terminal, unless --limit says otherwise

limit_option = click.option(
    "--limit",
    type=click.IntRange(min=0),
    help=f"Rows; 0: all. Without it {FEW}, and all with --json.",
)


def print_rows(
    names: Sequence[str], batches: Batches, total: int, limit: int | None, as_json: bool, end: str = "\n"
) -> None:
    """Prints rows as aligned columns, or as JSON with a row on each line; says on stderr how many it leaves out.

    Args:
        names: of the columns.
        batches: gives the rows, in order, as often as it is called.
        total: number of all rows.
        limit: of rows to print; 0: all; None: all of JSON, and FEW as columns.
        as_json: prints one JSON array, in which bytes are hex.
        end: what follows the array.
    """
    if limit is None:
        limit = 0 if as_json else FEW
    count = min(limit or total, total)
    if as_json:
        _print_json(_first(batches(), count), end)
    else:
        _print_columns(names, batches, count)
    if count < total:
        echo(f"({count} of {total} rows; --limit 0 for all)", err=True)
    elif not total and end:
        echo("(no rows)", err=True)


def print_table(
    found: Manifest,
    table: str,
    limit: int | None,
    as_json: bool,
    where: pc.Expression | None = None,
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
    names = columns or found.schema(table).names
    print_rows(names, lambda: found.batches(table, names, where), found.count(table, where), limit, as_json)


def check_identity(found: Manifest, label: str | None) -> None:
    """Refuses a label that no identity of the dataset has in its source; None is any.

    Raises:
        FaceshardsError: naming it.
    """
    if label is not None and not found.count("identities", pc.field("label_original") == label):
        raise FaceshardsError(f"{found.path}: no identity '{label}' (label_original) was scanned")


def print_list(table: pa.Table, limit: int | None, as_json: bool, end: str = "\n") -> None:
    """Prints the rows of a table that is held; see print_rows()."""
    batches = table.to_batches(max_chunksize=BATCH)
    print_rows(table.column_names, lambda: iter(batches), len(table), limit, as_json, end)


def print_sorted(
    table: pa.Table,
    order: list[tuple[str, str]],
    limit: int | None,
    as_json: bool,
    columns: Sequence[str] | None = None,
) -> None:
    """Prints rows in another order; the table is held, and rows are put together as they are printed.

    Args:
        table: all rows.
        order: columns and "ascending" or "descending"; among equal rows their order stays.
        limit: see print_rows().
        as_json: likewise.
        columns: which columns, in this order; all without it.
    """
    names = list(columns or table.column_names)
    places = pc.sort_indices(table, order)
    shown = table.select(names)

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(places), BATCH):
            yield from shown.take(places.slice(start, BATCH)).combine_chunks().to_batches()

    print_rows(names, batches, len(table), limit, as_json)


def _first(batches: Iterator[pa.RecordBatch], count: int) -> Iterator[pa.RecordBatch]:
    """Yields the first rows of batches, and reads no further; none of them is empty."""
    while count > 0 and (batch := next(batches, None)) is not None:
        if len(batch):
            yield batch.slice(0, count)
            count -= len(batch)


def row_json(row: object) -> str:
    """Returns a row as JSON, in which bytes are hex."""
    return json.dumps(row, ensure_ascii=False, default=bytes.hex)


def _print_json(batches: Iterator[pa.RecordBatch], end: str) -> None:
    before = "["
    for batch in batches:
        echo(before + "\n" + ",\n".join(map(row_json, batch.to_pylist())), nl=False)
        before = ","
    echo(("[]" if before == "[" else "\n]") + end, nl=False)


def _print_columns(names: Sequence[str], batches: Batches, count: int) -> None:
    """Prints rows as columns; reads them twice, unless they are few: widths are known before the first is printed."""
    few = list(_first(batches(), count)) if count <= BATCH else None
    columns, length = [Column(name) for name in names], cell_length()
    for batch in few or _first(batches(), count):
        for column, values in zip(columns, batch.columns, strict=True):
            column.numeric = pa.types.is_integer(values.type)
            column.width = max(column.width, *map(length, cells(values)))
    show = printer(columns)
    for batch in few or _first(batches(), count):
        show(zip(*map(cells, batch.columns), strict=True))

"""The command ``faceshards manifest query``."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click
import pyarrow as pa

from faceshards.cli.command import Command
from faceshards.cli.options import PATH, dataset_argument
from faceshards.cli.paths import OUT_FILE
from faceshards.cli.rows import FEW, print_rows
from faceshards.cli.terminal import binary_stdout, echo
from faceshards.dataset.manifest import Manifest
from faceshards.errors import FaceshardsError
from faceshards.storage.location import Location, lies_in

if TYPE_CHECKING:
    from faceshards.inspection.query import Answer

FORMATS = ("table", "csv", "json", "parquet")


@click.command(cls=Command)
@dataset_argument
@click.argument("sql")
@click.option("--format", "kind", type=click.Choice(FORMATS), help="Without it table, or what --out ends with.")
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option("--out", type=OUT_FILE, help="Write csv, json or parquet to this file, or object in a bucket.")
@click.option("--limit", type=click.IntRange(min=0), help=f"Rows; 0: all. Without it {FEW} as table, else all.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds that the query may take.")
@click.option("--memory", default="4GB", show_default=True, help="That the query may hold; more goes to disk.")
@click.option("--temp-dir", type=PATH, help="Where, in place of the system's temporary folder.")
def query(
    path: Location,
    sql: str,
    kind: str | None,
    as_json: bool,
    out: Location | None,
    limit: int | None,
    timeout: float | None,
    memory: str,
    temp_dir: Path | None,
) -> None:
    """Ask the manifest's tables in SQL (DuckDB's).

    They are images, identities, shards, dropped, conflicts and identity_links. SQL is one statement that reads; - takes
    it from stdin. Bytes are hex in what is printed, and from_hex('..') in SQL.

    \b
    Examples:
      faceshards manifest query data/shards/synthetic "SELECT reason, count(*) FROM dropped GROUP BY reason"
      faceshards manifest query data/shards/synthetic "FROM images WHERE bytes > 9000" --out large.parquet
      faceshards manifest query data/shards/synthetic - --format csv < question.sql
    """
    from faceshards.inspection.query import answer

    kind = _format(kind, as_json, out)
    if sql == "-":
        sql = sys.stdin.read()
    found = Manifest(path)
    if out is not None:
        _check_out(out, found)
    if temp_dir is not None and not temp_dir.is_dir():
        raise FaceshardsError(f"{temp_dir}: no folder, and --temp-dir takes one")
    with answer(found, sql, timeout, memory, temp_dir) as given:
        try:
            if kind == "table":
                _print_table(given, FEW if limit is None else limit)
            else:
                more = [False]
                _write(given, _first(given.batches, limit or sys.maxsize, more), kind, out)
                _say_more(more[0], limit or 0)
        except (OverflowError, ValueError, NotImplementedError) as error:  # Arrow's are of these kinds too
            raise FaceshardsError(
                f"a value that {kind} has no room for: {' '.join(str(error).split())}; CAST it in SQL"
            ) from None


def _format(kind: str | None, as_json: bool, out: Location | None) -> str:
    """Returns the format that the options ask for; UsageError if they contradict each other."""
    if as_json and kind not in (None, "json"):
        raise click.UsageError(f"--json and --format {kind}")
    suffix = out.suffix.lower().removeprefix(".") if out is not None else ""
    kind = "json" if as_json else kind or (suffix if suffix in FORMATS else None)
    if out is not None and kind in (None, "table"):
        raise click.UsageError(f"--out {out}: --format csv, json or parquet")
    if out is None and kind == "parquet":
        raise click.UsageError("--format parquet needs --out")
    return kind or "table"


def _check_out(out: Location, found: Manifest) -> None:
    """Refuses a file that must not be replaced."""
    if lies_in(out.resolve(), found.path.resolve()):
        raise FaceshardsError(f"{out}: inside the dataset, which stays as it was published")
    if out.exists() and not out.is_file():
        raise FaceshardsError(f"{out}: no regular file")


def _first(batches: Iterator[pa.RecordBatch], count: int, more: list[bool]) -> Iterator[pa.RecordBatch]:
    """Yields the first rows of batches, and notes in `more` whether there are more."""
    for batch in batches:
        if len(batch) > count:
            more[0] = True
        if count:
            yield batch.slice(0, count)
        if more[0]:
            return
        count -= len(batch)


def _say_more(more: bool, limit: int) -> None:
    if more:
        echo(f"(the first {limit} rows; --limit 0 for all)", err=True)


def _write(given: Answer, batches: Iterator[pa.RecordBatch], kind: str, out: Location | None) -> None:
    from faceshards.files import replacing
    from faceshards.inspection.plain import write_csv, write_json, write_parquet

    def write(file: BinaryIO) -> None:
        if kind == "csv":
            write_csv(given.schema, batches, file)
        else:
            write_json(batches, file)

    if out is None:
        stream = binary_stdout()
        write(stream)
        stream.flush()
        return
    try:
        with replacing(out, keep=True) as temporary:
            if kind == "parquet":
                write_parquet(given.schema, batches, temporary)
            else:
                with open(temporary, "wb") as file:
                    write(file)
    except OSError as error:
        raise FaceshardsError(f"{out}: {error.strerror}") from None


def _print_table(given: Answer, limit: int) -> None:
    """Prints rows as aligned columns; all of them are on disk first, since the widest cell may be the last."""
    from tempfile import TemporaryFile

    from faceshards.inspection.plain import as_text

    more = [False]
    batches = map(as_text, _first(given.batches, limit or sys.maxsize, more))
    if given.plan:
        for batch in batches:
            echo("\n".join(batch.column(1).to_pylist()))
        return
    first = next(batches, None)
    if first is None:
        echo("  ".join(given.schema.names))
        return
    with TemporaryFile(prefix="faceshards-query-") as file:
        total = 0
        with pa.ipc.new_stream(file, first.schema) as writer:
            for batch in itertools.chain([first], batches):
                writer.write_batch(batch)
                total += len(batch)

        def again() -> Iterator[pa.RecordBatch]:
            file.seek(0)
            return iter(pa.ipc.open_stream(file))

        print_rows(first.schema.names, again, total, 0, False)
    _say_more(more[0], limit)

"""Answers questions in SQL: DuckDB over the tables of one manifest, and over nothing else.

DuckDB sees a file system that holds the tables' files, each compared with its checksum, and cannot be written; any
other file is refused by its own configuration, which is locked before it reads the question. A list of forbidden
statements would not do: since DuckDB 2.0 a SELECT may hold a COPY.
"""

from __future__ import annotations

import itertools
import json
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from faceshards.dataset.manifest import Manifest
from faceshards.dataset.schema import LATER, SCHEMAS
from faceshards.errors import FaceshardsError
from faceshards.inspection.tables_only import PROTOCOL, tables_only
from faceshards.storage.faults import StorageError

BATCH = 65536  # rows handed on at a time
MEMORY = "4GB"
_GRACE = 1.0  # seconds that an interrupted query has to end; DuckDB does not look up while it folds constants
_READS = "one SELECT, WITH, FROM, VALUES, PIVOT, DESCRIBE, SUMMARIZE, SHOW or EXPLAIN"
_FIRST = {"SELECT", "WITH", "FROM", "VALUES", "TABLE", "PIVOT", "UNPIVOT"} | {
    *("DESCRIBE", "DESC", "SUMMARIZE", "SHOW", "EXPLAIN")
}
_KINDS = ("SELECT", "EXPLAIN", "MULTI")  # MULTI: a PIVOT that has to find its columns


Result = TypeVar("Result")


class QueryError(FaceshardsError):
    """A question that cannot be answered: its SQL is wrong, asks for more than the manifest, or takes too long."""


@dataclass(frozen=True)
class Answer:
    """What a question brings, as it comes.

    Attributes:
        schema: of the batches, no name in it twice.
        batches: the rows in order, to be read once.
        plan: whether the question was EXPLAIN, whose second column is a drawing.
    """

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]
    plan: bool


@contextmanager
def answer(
    found: Manifest, sql: str, seconds: float | None = None, memory: str = MEMORY, scratch: Path | None = None
) -> Iterator[Answer]:
    """Yields the answer to a question about a manifest, whose tables are views named as in docs/manifest.md.

    The tables that the question names are compared with their checksums first; all of them if it names none.

    Args:
        found: the dataset.
        sql: one statement that reads; bytes are BLOB.
        seconds: that DuckDB may take, the reader's own time not counted; None: any.
        memory: that it may hold, as DuckDB writes it; what is more goes to disk.
        scratch: folder for that; the system's temporary one without it. Nothing stays there.

    Raises:
        ManifestError: a table is missing or damaged.
        StorageError: a store does not give them.
        QueryError: see there.
    """
    import duckdb

    lost: list[StorageError] = []
    try:
        with tempfile.TemporaryDirectory(prefix="faceshards-query-", dir=scratch, ignore_cleanup_errors=True) as folder:
            with _questioning(sql):
                connection = duckdb.connect(":memory:", config=_config(folder, memory))
                connection.execute("SET errors_as_json = true")
                plan = _check_statement(duckdb, connection, sql)
            _show_tables(connection, found, sql, lost)
            clock = _Clock(connection, seconds)
            with _questioning(sql):
                reader = clock.run(lambda: _reader(connection, sql))
                yield Answer(_unique(reader.schema), _batches(reader, clock, sql), plan)
    except (QueryError, duckdb.Error):
        if lost:
            raise lost[0] from None
        raise
    except OSError as error:
        if error.filename is None or isinstance(error, BrokenPipeError):
            raise
        raise FaceshardsError(f"{error.filename}: {error.strerror}") from None


def _config(folder: str, memory: str) -> dict[str, Any]:
    return {
        "memory_limit": memory,
        "temp_directory": folder,
        "secret_directory": folder,
        "extension_directory": folder,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "allow_community_extensions": False,
        "python_enable_replacements": False,  # a name in SQL is never a variable of this program
    }


def _check_statement(duckdb: Any, connection: Any, sql: str) -> bool:
    """Returns whether a question is EXPLAIN; QueryError unless it is one statement that reads."""
    statements = connection.extract_statements(sql)
    if not statements:
        raise QueryError(f"no question in the SQL: it takes {_READS}")
    if len(statements) > 1:
        raise QueryError(f"{len(statements)} statements: a query is {_READS}")
    kind = statements[0].type.name
    first = _first_word(duckdb, sql)
    if kind not in _KINDS or first not in _FIRST:  # a MULTI can be COPY too
        raise QueryError(f"{first}: the manifest is read-only: a query is {_READS}")
    return first == "EXPLAIN"


def _first_word(duckdb: Any, sql: str) -> str:
    """Returns the word that a statement begins with, comments and brackets apart."""
    data = sql.encode()
    tokens = [*((start, kind) for start, kind in duckdb.tokenize(sql)), (len(data), None)]
    for (start, kind), (end, _) in itertools.pairwise(tokens):
        word = data[start:end].decode(errors="replace").strip(" \t\r\n(;")
        if kind != duckdb.token_type.comment and word:
            return word.split()[0].upper()
    return ""


def _show_tables(connection: Any, found: Manifest, sql: str, lost: list[StorageError]) -> None:
    """Makes the tables of a question known to DuckDB, each a view, and everything else unreachable."""
    named = [table for table in SCHEMAS if table in sql.lower()] or list(SCHEMAS)
    files: dict[str, str] = {}
    views = []
    for table in named:
        found.check_table(table)
        urls = {f"{PROTOCOL}://{table}/{number}": name for number, name in enumerate(found.files(table))}
        files |= urls
        present = found.table_files.columns(found.files(table)[0])
        later = [f", {value!r} AS {name}" for name, value in LATER.get(table, {}).items() if name not in present]
        views.append(f"CREATE VIEW {table} AS SELECT *{''.join(later)} FROM read_parquet({_listed(urls)})")
    connection.register_filesystem(tables_only(found.table_files, files, lost))
    connection.execute(f"SET allowed_paths = {_listed(files)}")
    for view in views:
        connection.execute(view)
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def _listed(names: dict[str, Any]) -> str:
    return "[" + ", ".join(f"'{name}'" for name in names) + "]"


class _Clock:
    """Runs what DuckDB has to do so that it can be interrupted: by Ctrl-C, or when its time is over."""

    def __init__(self, connection: Any, seconds: float | None) -> None:
        self._connection, self._seconds, self._left = connection, seconds, seconds

    def run(self, work: Callable[[], Result]) -> Result:
        """Returns what `work` returns, from a thread of its own: this one has to hear Ctrl-C."""
        outcome: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

        def do() -> None:
            try:
                outcome.put((work(), None))
            except BaseException as error:
                outcome.put((None, error))

        # A daemon, since a query that does not hear the interrupt must not keep the process.
        thread, start = threading.Thread(target=do, daemon=True), time.monotonic()
        thread.start()
        try:
            value, error = outcome.get(timeout=self._left)
        except (queue.Empty, KeyboardInterrupt) as reason:
            self._connection.interrupt()
            thread.join(_GRACE)
            if isinstance(reason, KeyboardInterrupt):
                raise
            raise QueryError(f"the query took longer than {self._seconds:g} s and was ended (--timeout)") from None
        if self._left is not None:
            self._left = max(0.0, self._left - (time.monotonic() - start))
        if error is not None:
            raise error
        return value


def _reader(connection: Any, sql: str) -> pa.RecordBatchReader:
    """Returns a statement's rows as they come."""
    import duckdb

    try:
        relation = connection.sql(sql)
    except (duckdb.BinderException, duckdb.CatalogException):
        connection.execute(sql)  # fails likewise, and says where in the SQL
        raise
    return relation.to_arrow_reader(BATCH)


def _batches(reader: pa.RecordBatchReader, clock: _Clock, sql: str) -> Iterator[pa.RecordBatch]:
    names = _unique(reader.schema).names
    while True:
        with _questioning(sql):
            batch = clock.run(lambda: next(reader, None))
        if batch is None:
            return
        yield pa.RecordBatch.from_arrays(batch.columns, names=names)


def _unique(schema: pa.Schema) -> pa.Schema:
    """Returns a schema with no name twice: the second sid becomes sid_1, as in DuckDB's subqueries."""
    names: dict[str, pa.Field] = {}
    for field in schema:
        name, number = field.name, 0
        while name in names:
            number += 1
            name = f"{field.name}_{number}"
        names[name] = field.with_name(name)
    return pa.schema(list(names.values()))


@contextmanager
def _questioning(sql: str) -> Iterator[None]:
    """Turns what DuckDB says of a question into one line with the place in it."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        raise QueryError(_one_line(str(error), sql)) from None
    except pa.ArrowException as error:
        raise QueryError(_one_line(str(error), sql)) from None


def _one_line(message: str, sql: str) -> str:
    start = message.find("{")
    try:
        said, _ = json.JSONDecoder().raw_decode(message[start:])
        text, place = str(said["exception_message"]), said.get("position")
    except (ValueError, KeyError, TypeError, AttributeError):
        text, place = message, None
    else:
        text = f"{message[:start].strip()} {text}"
    if "Traceback (most recent call last)" in text:
        text = text.strip().splitlines()[-1]  # of the file system above
    text = text.partition("\n\nLINE ")[0]
    text = " ".join(text.partition("Possible solutions")[0].split())[:500]
    if place is None:
        return text
    before = sql.encode()[: int(place)].decode(errors="replace")
    line = before.count("\n") + 1
    return f"{text} (line {line}, column {len(before) - before.rfind(chr(10))})"

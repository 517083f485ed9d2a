"""Compares a shard's index, which MindSpore trusts, with its data file."""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import numpy as np

from faceshards.errors import ShardError
from faceshards.formats.mindrecord.layout import TABLES, WITHOUT_ROWID
from faceshards.formats.mindrecord.reader import Shard
from faceshards.reading import fetch
from faceshards.storage.location import Location, StoredPath


def verify_index(path: Location, lengths: np.ndarray | None = None) -> None:
    """Checks that `path`.db says of every row what the data file says; of a partial one MindSpore dies by SIGSEGV.

    Args:
        path: data file.
        lengths: (N,) int, bytes of every image, where the data file was compared with them; without it that is read.

    Raises:
        ShardError: the index is missing, damaged, incomplete or differs, or the data file is no shard.
    """
    index = path.with_name(f"{path.name}.db")
    if not index.is_file() or index.with_name(f"{index.name}-journal").exists():
        raise ShardError(index, "is missing, or its journal says that writing it was interrupted")
    try:
        if not isinstance(index, StoredPath):
            return _verify(path, index, index, lengths)
        with tempfile.NamedTemporaryFile(prefix="faceshards-index-") as copy:
            fetch(index, Path(copy.name))
            _verify(path, index, Path(copy.name), lengths)
    except (OSError, sqlite3.Error, UnicodeDecodeError) as error:  # the last one for SQLite's messages of damaged names
        raise ShardError(index, f"cannot be read: {error!r}") from None


def _verify(path: Location, index: Location, copy: Path, lengths: np.ndarray | None) -> None:
    """Compares an index, that lies where SQLite can read it, with the data file."""
    names = ("table", "SHARD_NAME", "SHARD_NAME", TABLES[1])
    ours = [("table", "INDEXES", "INDEXES", TABLES[0] + WITHOUT_ROWID), names]
    theirs = [  # FileWriter's, and our own once
        ("index", "sqlite_autoindex_INDEXES_1", "INDEXES", None),
        ("table", "INDEXES", "INDEXES", TABLES[0]),
        names,
    ]
    source = f"file:{quote(str(copy.absolute()))}?mode=ro&immutable=1"  # immutable: takes no lock, leaves no files
    with Shard(path) as shard, closing(sqlite3.connect(source, uri=True)) as link:
        tables = link.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY 1, 2").fetchall()
        if tables not in (ours, theirs):
            raise ShardError(index, "does not have MindRecord's tables")
        if link.execute("PRAGMA integrity_check(1)").fetchall() != [("ok",)]:
            raise ShardError(index, "is damaged: SQLite's integrity_check fails")
        if link.execute("SELECT NAME FROM SHARD_NAME").fetchmany(2) != [(path.name,)]:
            raise ShardError(index, f"is not the index of {path.name}")
        order = "ROW_ID" if tables == ours else "rowid"
        found = link.execute(f"SELECT * FROM INDEXES NOT INDEXED ORDER BY {order}")
        for rows in shard.index_rows(lengths):
            if found.fetchmany(len(rows)) != rows:
                raise ShardError(index, f"differs from the data file in rows {rows[0][0]}..{rows[-1][0]}")
        if found.fetchone() is not None:
            raise ShardError(index, f"has more rows than the data file's {len(shard)}")

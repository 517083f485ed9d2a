"""Finds a few rows among millions by one column; compares with its checksum what it gives, not all it looks through.

The table `images` has several GB at 42 million rows: to compare all of it takes longer than to look through a column.
So the column is read as it lies there, and each file that a row comes from is compared before the row is read. That
there is no such row is said only after every file was compared.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Event

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from faceshards.dataset.content import sound
from faceshards.dataset.manifest import Manifest, ManifestError
from faceshards.dataset.schema import SCHEMAS

Matches = Callable[[pa.Array], npt.NDArray[np.bool_]]


def find(manifest: Manifest, table: str, column: str, matches: Matches, unique: bool = False) -> pa.Table:
    """Returns the rows of a table that one of its columns chooses, in the table's order, all columns of them.

    Args:
        manifest: the dataset.
        table: a name of SCHEMAS.
        column: the column to look through; no more than a row group of it is held by each of the threads.
        matches: says which values of a row group are meant, (n,) bool.
        unique: there is one at most: files are not looked through once it was found in another.

    Raises:
        ManifestError: a file is missing or of another size, one that has such a row is not what was published, or there
            is no such row and any file is not.
    """
    names = manifest.files(table)
    manifest.table_files.take_few(names)
    search = partial(_found, manifest, table, column=column, matches=matches)
    enough = Event()

    def has(name: str) -> bool:
        hit = not enough.is_set() and bool(search(name, columns=[column]))
        if hit and unique:
            enough.set()
        return hit

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        hits = threads.map(has, names)
        chosen = [name for name, hit in zip(names, hits, strict=True) if hit]
        list(threads.map(manifest.check_file, chosen or names))
    rows = (row for name in chosen for row in search(name, columns=SCHEMAS[table].names))
    return pa.concat_tables([SCHEMAS[table].empty_table(), *rows])


def rows_at(
    manifest: Manifest, table: str, columns: Sequence[str] | None, places: npt.NDArray[np.int64]
) -> Iterator[pa.RecordBatch]:
    """Yields rows of a table by their places in it, ascending; stops reading after the last.

    Args:
        manifest: the dataset.
        table: a name of SCHEMAS.
        columns: of the rows; None: all.
        places: (n,) ascending.

    Raises:
        ManifestError: the table is missing or damaged.
    """
    start = done = 0
    if not len(places):
        return
    for batch in manifest.batches(table, columns):
        stop = int(np.searchsorted(places, start + len(batch)))
        if stop > done:
            yield batch.take(pa.array(places[done:stop] - start))
            done = stop
            if done == len(places):
                return
        start += len(batch)


def _found(
    manifest: Manifest, table: str, name: str, column: str, matches: Matches, columns: Sequence[str]
) -> list[pa.Table]:
    """Returns such rows of one file, by row group, some columns of them; a file of another size is refused."""
    path = manifest.path / name
    try:
        with manifest.table_files.parquet(name) as file:
            found = []
            for group in range(file.num_row_groups):
                values = file.read_row_group(group, [column], use_threads=False)[column]
                values = values.chunk(0) if values.num_chunks == 1 else values.combine_chunks()
                if len(at := np.flatnonzero(matches(values))):
                    rows = file.read_row_group(group, columns, use_threads=False).take(at)
                    found.append(sound(manifest.schema(table), rows))
        return found
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        manifest.check_file(name)
        raise ManifestError(f"{path}: {' '.join(str(error).split())[:300]}") from None

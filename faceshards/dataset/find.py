"""Finds a few rows among millions by one column; compares with its checksum what it gives, not all it looks through.

The table `images` has several GB at 42 million rows: to compare all of it takes longer than to look through a column.
So the column is read as it lies there, and each file that a row comes from is compared before the row is read. That
there is no such row is said only after every file was compared.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from faceshards.dataset.manifest import Manifest, ManifestError
from faceshards.dataset.schema import SCHEMAS

Matches = Callable[[pa.Array], npt.NDArray[np.bool_]]


def find(manifest: Manifest, table: str, column: str, matches: Matches) -> pa.Table:
    """Returns the rows of a table that one of its columns chooses, in the table's order, all columns of them.

    Args:
        manifest: the dataset.
        table: a name of SCHEMAS.
        column: the column to look through; no more than a row group of it is held by each of the threads.
        matches: says which values of a row group are meant, (n,) bool.

    Raises:
        ManifestError: a file is missing or of another size, one that has such a row is not what was published, or there
            is no such row and any file is not.
    """

    names = manifest.files(table)
    search = partial(_found, manifest, column=column, matches=matches)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        hits = list(threads.map(lambda name: len(search(name, columns=[column])), names))
    chosen = [name for name, count in zip(names, hits, strict=True) if count]
    if not chosen:
        manifest.check_table(table)
    rows = [SCHEMAS[table].empty_table()]
    for name in chosen:
        manifest.check_file(name)
        rows.append(search(name, columns=SCHEMAS[table].names))
    return pa.concat_tables(rows)


def _found(manifest: Manifest, name: str, column: str, matches: Matches, columns: Sequence[str]) -> pa.Table:
    """Returns such rows of one file, some columns of them; a file of another size is refused."""
    path = manifest.path / name
    try:
        if path.stat().st_size != manifest.info["files"][name]["bytes"]:
            manifest.check_file(name)
        with pq.ParquetFile(path) as file:
            found = [file.schema_arrow.empty_table().select(columns)]
            for group in range(file.num_row_groups):
                values = file.read_row_group(group, [column], use_threads=False)[column]
                values = values.chunk(0) if values.num_chunks == 1 else values.combine_chunks()
                if len(at := np.flatnonzero(matches(values))):
                    found.append(file.read_row_group(group, columns, use_threads=False).take(at))
        return pa.concat_tables(found)
    except (OSError, KeyError, pa.ArrowException) as error:
        manifest.check_file(name)
        raise ManifestError(f"{path}: {' '.join(str(error).split())[:300]}") from None

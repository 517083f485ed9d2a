"""The .idx beside a .rec: which key lies at which byte."""

from __future__ import annotations

import io
import re
from array import array
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyarrow import csv

from faceshards.reading import for_arrow
from faceshards.storage.location import Location, StoredPath
from faceshards.storage.ranges import StoredFile


@dataclass(frozen=True)
class Index:
    """An .idx, sorted by offset.

    Args:
        offsets: (N,) int64 bytes.
        keys: (N,) int64.
        problems: what is wrong with it, a line each; bad lines are not among the entries.
    """

    offsets: np.ndarray
    keys: np.ndarray
    problems: list[str]


def read_index(path: Location) -> Index:
    """Returns the entries ``key<TAB>byte offset`` of an .idx; blank lines do no harm, bad ones are listed.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        table = csv.read_csv(
            for_arrow(path),
            csv.ReadOptions(column_names=["key", "offset"]),
            csv.ParseOptions(delimiter="\t", quote_char=False),
            csv.ConvertOptions(column_types={"key": pa.int64(), "offset": pa.int64()}, null_values=[]),
        )
        keys, offsets = table["key"].to_numpy(), table["offset"].to_numpy()
        problems: list[str] = []
    except pa.ArrowInvalid:  # empty, or some line is not two integers: slowly, line by line
        keys, offsets, problems = _read_index_lines(path)
    order = np.argsort(offsets, kind="stable")
    repeated = len(keys) - len(np.unique(keys))
    if repeated:
        problems.append(f"{path}: {repeated} of {len(keys)} entries repeat a key")
    return Index(offsets[order], keys[order], problems)


def _read_index_lines(path: Location) -> tuple[np.ndarray, np.ndarray, list[str]]:
    pairs, bad, first = array("q"), 0, 0  # a line of four bytes would be 150 as a tuple
    with io.BufferedReader(StoredFile(path)) if isinstance(path, StoredPath) else open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            match = re.fullmatch(rb"\s*([+-]?\d{1,18})\s+([+-]?\d{1,18})\s*", line)
            if match:
                pairs.extend((int(match[1]), int(match[2])))
            elif line.strip():
                bad, first = bad + 1, first or number
    problems = [f"{path}: {bad} lines are not 'key<TAB>offset', the first is line {first}"] if bad else []
    columns = np.frombuffer(pairs, np.int64).reshape(-1, 2)
    return columns[:, 0], columns[:, 1], problems

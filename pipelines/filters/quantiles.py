"""How the values that filters measured lie: quantiles over the record tables, a column of them at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipelines.filters.screen import MEASURED

SHARES = (0.0, 0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 1.0)
"""Of the images; a quantile is the value measured that so many do not exceed, and occurs."""


def quantiles(tables: Sequence[Path]) -> list[dict[str, Any]]:
    """Returns one row for each value that filters measured: filter, measure, images, quantiles (by share, as text).

    A threshold at a quantile drops that share of the images.

    Args:
        tables: the record tables that sign wrote; 4 bytes an image are held at a time.
    """
    names = [{name for name in pq.read_schema(path).names if name.startswith(MEASURED)} for path in tables]
    rows = []
    for name in sorted(set().union(*names)):
        parts = [_values(path, name) for path, own in zip(tables, names, strict=True) if name in own]
        values = np.concatenate(parts)
        found = np.quantile(values, SHARES, method="inverted_cdf")
        which, _, what = name.removeprefix(MEASURED).partition(".")
        shares = {f"{share:g}": float(value) for share, value in zip(SHARES, found, strict=True)}
        rows.append({"filter": which, "measure": what, "images": len(values), "quantiles": shares})
    return rows


def _values(path: Path, name: str) -> np.ndarray:
    """Returns the values of a column that were measured."""
    column = pq.read_table(path, columns=[name], use_threads=False)[name].to_numpy()
    return column[~np.isnan(column)]


def quantile_lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yields the table of quantiles for people."""
    if rows:
        yield f"{'value measured':<18}" + "".join(f"{share:>9.4g} %" for share in (100 * s for s in SHARES))
    for row in rows:
        cells = "".join(f"{value:>11.5g}" for value in row["quantiles"].values())
        yield f"{row['filter'] + ' ' + row['measure']:<18}{cells}"

"""How the values that filters measured lie: quantiles over the record tables, a column of them at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from faceshards.reading import for_arrow
from faceshards.storage.location import Location
from pipelines.filters.screen import MEASURED

SHARES = (0.0, 0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 1.0)
"""Of the images; a quantile is the value measured that so many do not exceed, and occurs."""

_SHOWN = tuple(share for share in SHARES if share not in (0.25, 0.75))  # what a line has room for


def quantiles(tables: Sequence[Location]) -> list[dict[str, Any]]:
    """Returns one row for each value that filters measured: filter, measure, images, quantiles (by share, as text).

    A threshold at a quantile drops that share of the images.

    Args:
        tables: the record tables that sign wrote; 4 bytes an image are held at a time.
    """
    names = [{name for name in pq.read_schema(for_arrow(path)).names if name.startswith(MEASURED)} for path in tables]
    rows = []
    for name in sorted(set().union(*names)):
        parts = [_values(path, name) for path, own in zip(tables, names, strict=True) if name in own]
        values = np.concatenate(parts)
        found = np.quantile(values, SHARES, method="inverted_cdf")
        which, _, what = name.removeprefix(MEASURED).partition(".")
        shares = {f"{share:g}": float(value) for share, value in zip(SHARES, found, strict=True)}
        rows.append({"filter": which, "measure": what, "images": len(values), "quantiles": shares})
    return rows


def _values(path: Location, name: str) -> np.ndarray:
    """Returns the values of a column that were measured."""
    column = pq.read_table(for_arrow(path), columns=[name], use_threads=False)[name].to_numpy()
    return column[~np.isnan(column)]


def quantile_lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yields the table of quantiles for people, on lines of 78 characters where names are short."""
    titles = ["value measured", *(f"{row['filter']} {row['measure']}" for row in rows)]
    width = max(map(len, titles)) + 1
    if rows:
        yield titles[0].ljust(width) + "".join(f"{f'{100 * share:.4g} %':>7}" for share in _SHOWN)
    for title, row in zip(titles[1:], rows, strict=True):
        values = (row["quantiles"][f"{share:g}"] for share in _SHOWN)
        yield title.ljust(width) + "".join(f"{_short(value):>7}" for value in values)


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"

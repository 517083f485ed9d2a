"""How large identities are, before and after the balance, as numbers and as bars."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np
import numpy.typing as npt

from faceshards.dataset.manifest import Manifest
from faceshards.inspection.sizes import spread

Sizes = npt.NDArray[np.int64]

WIDTH, HEIGHT = 640, 220  # of the chart's bars, in its own units


def identity_sizes(found: Manifest) -> dict[str, Sizes]:
    """Returns the images of each identity that has some: scanned, before the balance, and kept.

    The balance is what min_images and max_images do; before it are the images that deduplication left.
    """
    columns = ["label_original", "scanned", "kept", "min_images", "max_images"]
    rows = found.table("identities", columns)
    rows = rows.filter(rows["label_original"].is_valid())
    scanned, kept, few, many = (rows[name].to_numpy() for name in columns[1:])
    sizes = {"scanned": scanned, "before the balance": kept + few + many, "kept": kept}
    return {name: values[values > 0] for name, values in sizes.items()}


def quantiles(sizes: dict[str, Sizes]) -> list[dict[str, Any]]:
    """Returns a row for each of the distributions that is not empty: its name, number, and what `spread` says."""
    return [
        {"name": name, "identities": len(values), **found}
        for name, values in sizes.items()
        if (found := spread(values)) is not None
    ]


@dataclass(frozen=True)
class Bar:
    """A bar of a chart: where it is, in the chart's units, and what it says."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    text: str


@dataclass(frozen=True)
class Chart:
    """A histogram with bars of two kinds side by side.

    Args:
        bars: from left to right.
        ticks: (x, text) below them.
        most: what the highest bar counts.
    """

    bars: list[Bar]
    ticks: list[tuple[float, str]]
    most: int


def histogram(before: Sizes, after: Sizes) -> Chart:
    """Returns how many identities have how many images, in steps of half an octave."""
    largest = max(int(before.max(initial=1)), int(after.max(initial=1)))
    steps = np.unique(np.ceil(2 ** (np.arange(2 * int(largest).bit_length() + 2) / 2)).astype(np.int64))
    edges = steps[: int(np.searchsorted(steps, largest, "right")) + 1]  # the last is beyond the largest
    counts = [np.histogram(values, edges)[0] for values in (before, after)]
    most = max(int(count.max(initial=0)) for count in counts)
    pitch = WIDTH / (len(edges) - 1)
    bars, ticks = [], []
    for i, (low, high) in enumerate(zip(edges[:-1].tolist(), (edges[1:] - 1).tolist(), strict=True)):
        for kind, count in enumerate(counts):
            height = HEIGHT * int(count[i]) / max(most, 1)
            images = f"{low:,}" if low == high else f"{low:,} to {high:,}"
            text = f"{images} images: {int(count[i]):,} identities {('before the balance', 'kept')[kind]}"
            x = pitch * (i + 0.1 + 0.4 * kind)
            left, top, width, tall = (round(value, 2) for value in (x, HEIGHT - height, 0.4 * pitch, height))
            bars.append(Bar(left, top, width, tall, ("before", "after")[kind], text))
        if low & (low - 1) == 0:
            ticks.append((round(pitch * (i + 0.5), 2), f"{low:,}"))
    return Chart(bars, ticks, most)


_SOURCES = 20  # that the page names
# What a reason means, for people; docs/manifest.md says it at length.
_MEANS = {
    "damaged": "the file is broken here",
    "missing": "listed, and not there",
    "undecodable": "no image, or a broken one",
    "too_large": "too many pixels",
    "wrong_size": "not of the set's size",
    "bad_label": "no usable label",
    "quarantined": "decoding it kills the process",
    "exact_duplicate": "the same bytes, same identity",
    "near_duplicate": "the same photograph, same identity",
    "label_conflict": "the same photograph, another identity",
    "min_images": "of an identity with too few images",
    "max_images": "of an identity with too many images",
    "test_overlap": "a picture of a verification set",
    "held_out": "of an identity that was split off",
}
_FILTERED = "sorted out by a filter"  # whatever other reason there is


def figures(found: Manifest, facts: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Returns what the page says besides its pictures.

    Args:
        found: the dataset.
        facts: what `manifest summary` says of it.
        seed: that chose the pictures.
    """
    info, totals, sizes = found.info, found.totals, identity_sizes(found)
    scanned = max(totals["scanned"], 1)
    dropped = [
        {"reason": reason, "means": _MEANS.get(reason, _FILTERED), "count": count, "share": 100 * count / scanned}
        for reason, count in sorted(totals["dropped"].items(), key=lambda entry: -entry[1])
    ]
    published = datetime.fromtimestamp((found.path / "dataset.json").stat().st_mtime, timezone.utc)
    return {
        "name": info["name"],
        "fingerprint": found.fingerprint,
        "published": f"{published:%Y-%m-%d %H:%M} UTC",
        "schema": found.schema_version,
        "totals": totals,
        "lost": totals["scanned"] - totals["kept"],
        "dropped": dropped,
        "most_dropped": max((entry["count"] for entry in dropped), default=1),
        "sizes": quantiles(sizes),
        "chart": histogram(sizes["before the balance"], sizes["kept"]),
        "chart_size": (WIDTH, HEIGHT),
        "sources": info.get("sources", [])[:_SOURCES],
        "more_sources": max(0, len(info.get("sources", [])) - _SOURCES),
        "excluded": info.get("exclude", []),
        "terms": facts["terms"],
        "parent": _parent(info),
        "changed": {name: json.dumps(value) for name, value in facts["settings"].items()},
        "settings": {name: json.dumps(value) for name, value in info["config"].items()},
        "versions": info.get("versions", {}),
        "unsound": facts["unsound"],
        "odd": [line for line in facts["warnings"] if line not in facts["unsound"]],
        "seed": seed,
    }


def _parent(info: Mapping[str, Any]) -> str | None:
    """Returns in a line which dataset this one was made from, and how; None of one that was built from sources."""
    how = info.get("split")
    parent = how.get("parent") if isinstance(how, dict) else info.get("parent")
    if not parent:
        return None
    line = f"the dataset with fingerprint {parent['fingerprint']}" if "fingerprint" in parent else json.dumps(parent)
    if not isinstance(how, dict):
        return line
    asked = ", ".join(f"{name}={value}" for name, value in how.items() if name != "parent")
    return f"{line}, by a split ({asked})"

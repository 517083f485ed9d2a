"""What speaks against a set before it is published: broken records, counts that disagree, people lost whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.sources.base import SourceFile
from pipelines.sources.catalog import Dataset
from pipelines.sources.registry import claims

BROKEN = ("damaged", "missing", "undecodable", "too_large", "wrong_size", "bad_label", "quarantined")
"""Reasons that lie in the source; the others are choices of the build."""

_TOLD = 5  # names in a warning


def broken(name: str, totals: Mapping[str, Any]) -> list[str]:
    """Returns a line with the broken records by reason, or none.

    Args:
        name: of the dataset.
        totals: scanned, and dropped by reason.
    """
    counts = {reason: totals["dropped"][reason] for reason in BROKEN if totals["dropped"].get(reason)}
    if not counts:
        return []
    each = ", ".join(f"{reason} {count}" for reason, count in counts.items())
    return [f"{name}: {sum(counts.values())} of {totals['scanned']} records are broken and left out ({each})"]


def disagreements(
    files: Sequence[SourceFile],
    images: np.ndarray,
    unindexed: np.ndarray,
    scanned: int,
    identities: int,
    expected: Dataset | None,
) -> list[str]:
    """Returns a line for each count that is not what a file says of itself, or the publisher of a known set.

    Args:
        files: the build's files.
        images: (files,) image records that each holds, damaged ones too.
        unindexed: (files,) sound image records that the .idx of each does not name.
        scanned, identities: in all.
        expected: the known set.
    """
    lines = []
    for file, found, lacking in zip(files, images.tolist(), unindexed.tolist(), strict=True):
        said = claims(file)
        if said.images is not None and found not in said.images:
            lines.append(f"{file.name}: {found} images found, its header record says {said.images[0]}")
        if lacking:
            lines.append(f"{file.name}: its .idx lacks {lacking} of the images that are there")
        if said.identities is not None and len(files) == 1 and identities != said.identities:
            lines.append(f"{file.name}: {identities} identities found, the file property says {said.identities}")
    if expected and expected.images and scanned != expected.images:
        lines.append(f"{expected.name}: {scanned} images scanned, {expected.images} expected")
    if expected and expected.identities and identities != expected.identities:
        lines.append(f"{expected.name}: {identities} identities scanned, {expected.identities} expected")
    return lines


def lost_people(identities: pa.Table) -> list[str]:
    """Returns warnings about people of whom nothing is left for another reason than a setting, and a lone identity.

    Args:
        identities: the manifest's table.
    """
    column = {name: identities[name].to_numpy() for name in ("kept", "label_conflict", "test_overlap", *BROKEN)}
    gone = (column["kept"] == 0) & ~identities["label_original"].is_null().to_numpy()
    tested = gone & (column["test_overlap"] > 0)
    shared = gone & ~tested & (column["label_conflict"] > 0)
    unsound = gone & ~tested & ~shared & (sum(column[reason] for reason in BROKEN) > 0)
    causes = (
        (tested, "they are in the sets kept out (test_overlap), and too few of their photographs are not"),
        (shared, "their photographs stand under other identities too (label_conflict); one may be a copy of the other"),
        (unsound, "too few of their records are sound"),
    )
    lines = [
        f"{rows.sum()} identities are left out whole ({_some(identities['label_original'].filter(rows))}): {cause}"
        for rows, cause in causes
        if rows.any()
    ]
    if np.count_nonzero(column["kept"]) == 1:
        lines.append("only one identity is left, and nothing can be learned from one: is there a folder per person?")
    return lines


def _some(names: pa.ChunkedArray) -> str:
    more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    return ", ".join(names[:_TOLD].to_pylist()) + more

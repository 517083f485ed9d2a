"""A run's verification numbers as a table: the field's sets in the field's order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.protocol.verification import Interval, Verification
from evaluation.report.published import published, rank


@dataclass(frozen=True)
class Entry:
    """What was measured on one set.

    Args:
        name: of the set.
        result: with the mirror images.
        plain: without them; None for embeddings from elsewhere.
        distances: (P,) of the pairs that were measured.
        same: (P,) bool.
        pictures: (2P,) encoded images of these pairs; empty for none.
        problems: what was left out, one line a pair.
        numbers: (P,) places of these pairs in the set; empty if they are all of it.
    """

    name: str
    result: Verification
    plain: Verification | None
    distances: np.ndarray
    same: np.ndarray
    pictures: Sequence[bytes] = ()
    problems: tuple[str, ...] = ()
    numbers: Sequence[int] = ()


def table(entries: Sequence[Entry], backbone: str = "", trained_on: str = "") -> list[str]:
    """Returns the table as lines of text: the field's sets in the field's order, then the others.

    Args:
        entries: what was measured, a set each.
        backbone: of the model, for published figures; "" for none.
        trained_on: its dataset, likewise.
    """
    head, rows = table_rows(entries, backbone, trained_on)
    cells = [head, *([text for text, _ in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return ["  ".join(cell.rjust(width) if i else cell.ljust(width)
                      for i, (cell, width) in enumerate(zip(row, widths, strict=True))) for row in cells]  # fmt: skip


def table_rows(
    entries: Sequence[Entry], backbone: str, trained_on: str
) -> tuple[list[str], list[list[tuple[str, Interval | None]]]]:
    """Returns the table's headings, and a row a set of figures with their intervals (as fractions)."""
    fars = [1e-3, *([1e-4] if any(entry.result.tar.get(1e-4) is not None for entry in entries) else [])]
    prints = [published(backbone, trained_on, entry.name) for entry in ordered(entries)]
    sources = sorted({source for known in prints for source in known}, reverse=True)
    head = ["set", "pairs", "accuracy %", "95 %", "1 view", "VAL@1e-3", *(f"TAR@1e-{3 + i}" for i in range(len(fars))),
            "EER", "AUC", "XNorm", "cosine", *sources]  # fmt: skip
    rows = []
    for entry, known in zip(ordered(entries), prints, strict=True):
        got = entry.result
        plain = ("", None) if entry.plain is None else (f"{100 * entry.plain.accuracy:.2f}", entry.plain.interval)
        row: list[tuple[str, Interval | None]] = [
            (entry.name, None), (f"{got.pairs:,}", None), (f"{100 * got.accuracy:.2f} +- {100 * got.std:.2f}", None),
            (interval_text(got.interval), None), plain,
            (f"{100 * got.val:.2f}", got.val_interval),
            *((rate(got.tar.get(far)), got.tar_intervals.get(far)) for far in fars),
            (f"{100 * got.eer:.2f}", got.eer_interval), (f"{100 * got.auc:.2f}", got.auc_interval),
            (f"{got.xnorm:.2f}", None), (f"{got.threshold_cosine:.3f}", None),
        ]  # fmt: skip
        for source in sources:
            value = known.get(source)
            row.append(("" if value is None else f"{value:.2f} {100 * got.accuracy - value:+.2f}", None))
        rows.append(row)
    return head, rows


def ordered(entries: Sequence[Entry]) -> list[Entry]:
    """Returns the field's sets in the field's order, then the others."""
    return sorted(entries, key=lambda entry: rank(entry.name))


def rate(value: float | None) -> str:
    """Returns a rate in %, n/m where it was not measurable."""
    return "n/m" if value is None else f"{100 * value:.2f}"  # not measurable: too few impostor pairs


def interval_text(found: Interval | None) -> str:
    """Returns an interval in %, nothing for none."""
    return "" if found is None else f"{100 * found[0]:.2f}-{100 * found[1]:.2f}"

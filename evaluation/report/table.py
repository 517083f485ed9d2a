"""A run's verification numbers as a table: the field's sets in the field's order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.origin import MARK, NOTE, Origin
from evaluation.protocol.figures import Figure, Interval, by_far, tar_name
from evaluation.protocol.verification import Verification
from evaluation.report.published import published, rank

Cell = tuple[str, Interval | None]
# Figures of the table, by heading.
VAL = {"VAL@1e-3": "val"}
TARS = {"TAR@1e-3": tar_name(1e-3), "TAR@1e-4": tar_name(1e-4)}  # unless others were asked for
RARE = {tar_name(1e-4)}  # shown where a set can measure it
CURVE = {"EER": "eer", "AUC": "auc"}


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
        digest: SHA-256 (hex) of the set's pairs; "" for none.
        fars: false accept rates at which the table shows the true accept rate; empty for the usual ones.
    """

    name: str
    result: Verification
    plain: Verification | None
    distances: np.ndarray
    same: np.ndarray
    pictures: Sequence[bytes] = ()
    problems: tuple[str, ...] = ()
    numbers: Sequence[int] = ()
    digest: str = ""
    fars: tuple[float, ...] = ()


def table(entries: Sequence[Entry], origin: Origin) -> list[str]:
    """Returns the table as lines of text: the field's sets in the field's order, then the others; then of what it is.

    Args:
        entries: what was measured, a set each.
        origin: of the model, also for published figures.
    """
    head, rows = table_rows(entries, origin)
    cells = [head, *([text for text, _ in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = []
    for row in cells:
        first, *others = zip(row, widths, strict=True)
        lines.append("  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]))
    return [*lines, *notes(entries, origin), *origin.lines()]


def notes(entries: Sequence[Entry], origin: Origin) -> list[str]:
    """Returns what a table says of its marks; nothing if it has none."""
    return [NOTE] if any(origin.chosen_by(entry.name, entry.digest) for entry in entries) else []


def marked(entry: Entry, origin: Origin) -> str:
    """Returns a set's name, marked if the set chose the model."""
    return entry.name + (MARK if origin.chosen_by(entry.name, entry.digest) else "")


def table_rows(entries: Sequence[Entry], origin: Origin) -> tuple[list[str], list[list[Cell]]]:
    """Returns the table's headings, and a row a set of figures with their intervals (as fractions)."""
    columns = _columns(entries)
    prints = [published(origin.backbone, origin.trained_on, entry.name) for entry in ordered(entries)]
    sources = sorted({source for known in prints for source in known}, reverse=True)
    head = ["set", "pairs", "accuracy %", "95 %", "1 view", *columns, "XNorm", "cosine", *sources]
    rows = []
    for entry, known in zip(ordered(entries), prints, strict=True):
        got, accuracy = entry.result, 100 * entry.result.value("accuracy")
        cells = [
            _bare(marked(entry, origin)),
            _bare(f"{got.pairs:,}"),
            _bare(f"{accuracy:.2f} +- {100 * got.std:.2f}"),
            _bare(interval_text(got.figures["accuracy"].interval)),
            _bare("") if entry.plain is None else _cell(entry.plain.figures["accuracy"]),
            *(_cell(_figure(got, name)) for name in columns.values()),
            _bare(f"{got.xnorm:.2f}"),
            _bare(f"{got.threshold_cosine:.3f}"),
        ]
        for source in sources:
            value = known.get(source)
            cells.append(_bare("" if value is None else f"{value:.2f} {accuracy - value:+.2f}"))
        rows.append(cells)
    return head, rows


def _columns(entries: Sequence[Entry]) -> dict[str, str]:
    """Returns the names of the figures by their headings; those that other packages measure come last."""
    asked = {f"TAR@{far_text(far)}": tar_name(far) for entry in entries for far in entry.fars}
    columns = VAL | (asked or TARS) | CURVE
    found = {name: figure for entry in entries for name, figure in entry.result.figures.items()}
    tars = {tar_name(far) for far in by_far(found)}
    others = {name: name for name in found if name not in {"accuracy", *columns.values(), *tars}}
    rare = RARE - set(asked.values())
    measured = {name for entry in entries for name, figure in entry.result.figures.items() if figure.value is not None}
    return {heading: name for heading, name in (columns | others).items() if name not in rare or name in measured}


def far_text(far: float) -> str:
    """Returns a false accept rate as the field writes it: 1e-4, 0.05."""
    text = f"{far:.0e}".replace("e-0", "e-")
    return text if float(text) == far and far < 0.01 else f"{far:g}"


def _figure(result: Verification, name: str) -> Figure:
    """Returns a figure, one without a value where it was not wanted."""
    return result.figures.get(name, Figure(None))


def _cell(figure: Figure) -> Cell:
    return rate(figure.value), figure.interval


def _bare(text: str) -> Cell:
    return text, None


def ordered(entries: Sequence[Entry]) -> list[Entry]:
    """Returns the field's sets in the field's order, then the others."""
    return sorted(entries, key=lambda entry: rank(entry.name))


def rate(value: float | None) -> str:
    """Returns a rate in %, n/m where it was not measurable."""
    return "n/m" if value is None else f"{100 * value:.2f}"  # not measurable: too few impostor pairs


def interval_text(found: Interval | None) -> str:
    """Returns an interval in %, nothing for none."""
    return "" if found is None else f"{100 * found[0]:.2f}-{100 * found[1]:.2f}"

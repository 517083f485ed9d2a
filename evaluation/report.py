"""One table of a run's verification numbers: as text, as JSON, and as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from evaluation.published import published, rank
from evaluation.report_page import PAGE
from evaluation.verification import Interval, Verification, fold_of
from pipelines.errors import FaceshardsError
from pipelines.shards import replacing

HARDEST = 5  # pairs of each kind that the page shows
POINTS = 400  # of a ROC curve on the page, whatever the number of pairs
_INK = "#123457"  # stands for the page's text colour while a figure is drawn


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
    head, rows = _rows(entries, backbone, trained_on)
    cells = [head, *([text for text, _ in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return ["  ".join(cell.rjust(width) if i else cell.ljust(width)
                      for i, (cell, width) in enumerate(zip(row, widths, strict=True))) for row in cells]  # fmt: skip


def _rows(
    entries: Sequence[Entry], backbone: str, trained_on: str
) -> tuple[list[str], list[list[tuple[str, Interval | None]]]]:
    """Returns the table's headings, and a row a set of figures with their intervals (as fractions)."""
    fars = [1e-3, *([1e-4] if any(entry.result.tar.get(1e-4) is not None for entry in entries) else [])]
    prints = [published(backbone, trained_on, entry.name) for entry in _ordered(entries)]
    sources = sorted({source for known in prints for source in known}, reverse=True)
    head = ["set", "pairs", "accuracy %", "95 %", "1 view", "VAL@1e-3", *(f"TAR@1e-{3 + i}" for i in range(len(fars))),
            "EER", "AUC", "XNorm", "cosine", *sources]  # fmt: skip
    rows = []
    for entry, known in zip(_ordered(entries), prints, strict=True):
        got = entry.result
        plain = ("", None) if entry.plain is None else (f"{100 * entry.plain.accuracy:.2f}", entry.plain.interval)
        row: list[tuple[str, Interval | None]] = [
            (entry.name, None), (f"{got.pairs:,}", None), (f"{100 * got.accuracy:.2f} +- {100 * got.std:.2f}", None),
            (_interval(got.interval), None), plain,
            (f"{100 * got.val:.2f}", got.val_interval),
            *((_rate(got.tar.get(far)), got.tar_intervals.get(far)) for far in fars),
            (f"{100 * got.eer:.2f}", got.eer_interval), (f"{100 * got.auc:.2f}", got.auc_interval),
            (f"{got.xnorm:.2f}", None), (f"{got.threshold_cosine:.3f}", None),
        ]  # fmt: skip
        for source in sources:
            value = known.get(source)
            row.append(("" if value is None else f"{value:.2f} {100 * got.accuracy - value:+.2f}", None))
        rows.append(row)
    return head, rows


def _ordered(entries: Sequence[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: rank(entry.name))


def _rate(value: float | None) -> str:
    return "n/m" if value is None else f"{100 * value:.2f}"  # not measurable: too few impostor pairs


def _interval(found: Interval | None) -> str:
    return "" if found is None else f"{100 * found[0]:.2f}-{100 * found[1]:.2f}"


def write(out: Path, entries: Sequence[Entry], backbone: str = "", trained_on: str = "") -> None:
    """Writes report.json and report.html into `out`, each whole or not at all.

    Args:
        out: a folder, made if need be.
        entries: what was measured, a set each.
        backbone: of the model, for published figures; "" for none.
        trained_on: its dataset, likewise.

    Raises:
        FaceshardsError: the folder cannot be written.
    """
    content = [
        {"set": entry.name, **dataclasses.asdict(entry.result), "threshold_cosine": entry.result.threshold_cosine,
         "best_threshold_cosine": entry.result.best_threshold_cosine,
         "accuracy_without_mirror": entry.plain and entry.plain.accuracy,
         "accuracy_without_mirror_interval": entry.plain and entry.plain.interval,
         "excluded": list(entry.problems), "published": published(backbone, trained_on, entry.name)}
        for entry in _ordered(entries)
    ]  # fmt: skip
    head, rows = _rows(entries, backbone, trained_on)
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(PAGE).render(
        title=f"Verification of {backbone or 'embeddings'}", trained_on=trained_on, head=head,
        rows=[[(text, _interval(interval)) for text, interval in row] for row in rows],
        roc=_svg(_roc(entries), "roc"), sets=[_section(entry) for entry in _ordered(entries)],
    )  # fmt: skip
    try:
        out.mkdir(parents=True, exist_ok=True)
        data = json.dumps(_plain(content), indent=1, allow_nan=False)
        for name, text in (("report.json", data), ("report.html", page)):
            with replacing(out / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise FaceshardsError(f"{out}: the report cannot be written: {error.strerror}") from None


def _plain(value: Any) -> Any:
    """Returns a value as JSON has it: null for what is not a number."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _section(entry: Entry) -> dict[str, Any]:
    """Returns what the page shows of a set."""
    got = entry.result
    tar = [(f"{far:g}", _rate(value), _interval(got.tar_intervals.get(far))) for far, value in got.tar.items()]
    facts = [
        ("Pairs", f"{got.pairs:,}, {got.impostors:,} of them two persons"),
        ("Threshold", f"cosine {got.threshold_cosine:.4f}, squared distance {got.threshold:.4f}: mean of the folds'"),
        ("Best threshold", f"cosine {got.best_threshold_cosine:.4f}, squared distance {got.best_threshold:.2f}: "
                           f"{100 * got.best_accuracy:.2f} % of all pairs, the same it was chosen on"),
        ("VAL at FAR 1e-3", f"{100 * got.val:.2f} +- {100 * got.val_std:.2f} %, FAR met {got.far:.2e}"),
    ]  # fmt: skip
    folds = [
        (f"{100 * accuracy:.2f}", f"{threshold:.2f}", _fold_rate(val), _fold_rate(far))
        for accuracy, threshold, val, far in zip(
            got.fold_accuracies, got.fold_thresholds, got.fold_vals, got.fold_fars, strict=True
        )
    ]
    return {"name": entry.name, "histogram": _svg(_histogram(entry), entry.name), "hardest": hardest(entry),
            "problems": entry.problems, "warnings": got.warnings, "tar": tar, "facts": facts,
            "folds": folds}  # fmt: skip


def _fold_rate(value: float) -> str:
    return f"{100 * value:.2f}" if math.isfinite(value) else "none"


def hardest(entry: Entry, count: int = HARDEST) -> list[dict[str, Any]]:
    """Returns the pairs of each kind that were judged wrong at their fold's threshold, the most wrong first.

    Where a kind has none, its pairs nearest to their threshold, and `wrong` is 0.
    """
    thresholds = np.array(entry.result.fold_thresholds)
    limit = thresholds[fold_of(len(entry.same), len(thresholds))]  # (P,)
    found = []
    for false, right, kind, sign in (
        ("Two persons judged one", "two persons", ~entry.same, 1),
        ("One person judged two", "one person", entry.same, -1),
    ):  # fmt: skip
        error = np.where(kind, sign * (limit - entry.distances), -np.inf)  # (P,): how far on the wrong side
        wrong = kind & ((entry.distances < limit) != entry.same)
        pairs = np.flatnonzero(wrong if wrong.any() else kind)
        pairs = pairs[np.argsort(-error[pairs], kind="stable")[:count]]
        shown = [
            {"number": int(entry.numbers[pair]) if len(entry.numbers) else int(pair),
             "cosine": f"{1 - entry.distances[pair] / 2:.3f}", "limit": f"{1 - limit[pair] / 2:.3f}",
             "images": [_image(data) for data in entry.pictures[2 * pair : 2 * pair + 2]]}
            for pair in map(int, pairs)
        ]  # fmt: skip
        found.append({"title": false, "kind": right, "wrong": int(wrong.sum()), "pairs": shown})
    return found


def roc_points(distances: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns at most POINTS false accept rates, from one impostor pair on, and the true accept rates there."""
    genuine, impostor = np.sort(distances[same]), np.sort(distances[~same])
    accepted = np.unique(np.geomspace(1, len(impostor), POINTS).round().astype(np.int64))
    # Everything nearer than the first impostor pair beyond is accepted.
    beyond = np.append(impostor, np.inf)[accepted]
    return accepted / len(impostor), np.searchsorted(genuine, beyond) / len(genuine)


def _roc(entries: Sequence[Entry]) -> Figure:
    figure, axes = _figure(3.6, xlabel="false accept rate", ylabel="true accept rate", xscale="log", ylim=(None, 1.005))
    for entry in _ordered(entries):
        far, tar = roc_points(entry.distances, entry.same)
        axes.plot(far, tar, label=f"AUC {entry.result.auc:.4f}  {entry.name}", drawstyle="steps-post")
    axes.grid(alpha=0.25)
    _legend(axes, "lower right")
    return figure


def _histogram(entry: Entry) -> Figure:
    figure, axes = _figure(2.6, xlabel="cosine", ylabel="pairs")
    cosine = 1 - entry.distances / 2
    edges = np.linspace(min(-0.2, cosine.min()), 1, 81)
    for kind, name in ((entry.same, "same person"), (~entry.same, "two persons")):
        axes.stairs(np.histogram(cosine[kind], edges)[0], edges, fill=True, alpha=0.6, label=name)
    for i, threshold in enumerate(sorted(set(entry.result.fold_thresholds))):
        label = "" if i else "the folds' thresholds"
        axes.axvline(1 - threshold / 2, color=_INK, linewidth=0.8, linestyle="--", label=label)
    _legend(axes, "upper left")
    return figure


def _figure(height: float, **settings: Any) -> tuple[Figure, Any]:
    """Returns a figure and its axes in the page's colours."""
    colours = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
    style: Any = dict.fromkeys(colours, _INK)
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(6.4, height), layout="constrained")
        axes = figure.add_subplot(**settings)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_facecolor("none")
    return figure, axes


def _legend(axes: Any, place: str) -> None:
    for text in axes.legend(loc=place, framealpha=0, labelcolor=_INK).get_texts():
        text.set_parse_math(False)  # a set may be called a$b


def _svg(figure: Figure, salt: str) -> Markup:
    """Returns a figure as an element of the page, in whose colours and font it is; `salt` makes its marks' names."""
    file = io.StringIO()
    none: Any = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.family": "sans-serif"}):
        figure.savefig(file, format="svg", transparent=True, metadata=none)
    text = file.getvalue()
    text = re.sub(r' xmlns(:xlink)?="[^"]*"|(?<=<g) id="[^"]*"', "", text[text.index("<svg") :])
    return Markup(text.replace(_INK, "currentColor"))  # matplotlib escapes names


def _image(encoded: bytes) -> str:
    kind = "png" if encoded.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(encoded).decode()

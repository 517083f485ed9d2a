"""One table of a run's verification numbers: as text, as JSON, and as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from evaluation.protocol.verification import fold_of
from evaluation.report.figures import histogram, roc, svg
from evaluation.report.published import published
from evaluation.report.table import Entry, interval_text, ordered, rate, table_rows
from faceshards.errors import FaceshardsError
from faceshards.files import replacing

HARDEST = 5  # pairs of each kind that the page shows


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
        for entry in ordered(entries)
    ]  # fmt: skip
    head, rows = table_rows(entries, backbone, trained_on)
    page = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=jinja2.PackageLoader("evaluation", "report")
    ).get_template("page.html.j2").render(
        title=f"Verification of {backbone or 'embeddings'}", trained_on=trained_on, head=head,
        rows=[[(text, interval_text(interval)) for text, interval in row] for row in rows],
        roc=svg(roc(entries), "roc"), sets=[_section(entry) for entry in ordered(entries)],
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
    tar = [(f"{far:g}", rate(value), interval_text(got.tar_intervals.get(far))) for far, value in got.tar.items()]
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
    return {"name": entry.name, "histogram": svg(histogram(entry), entry.name), "hardest": hardest(entry),
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


def _image(encoded: bytes) -> str:
    kind = "png" if encoded.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(encoded).decode()

"""One table of a run's verification numbers: as text, as JSON, and as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from typing import Any

import jinja2
import numpy as np

from evaluation.origin import Origin
from evaluation.protocol.figures import by_far, tar_name
from evaluation.protocol.verification import fold_of
from evaluation.report.figures import histogram, roc, svg
from evaluation.report.published import published
from evaluation.report.table import Entry, far_text, interval_text, marked, notes, ordered, rate, table_rows
from faceshards.errors import FaceshardsError
from faceshards.files import replacing
from faceshards.storage.location import Location

NEAREST = 5  # pairs of a kind that the page shows where none was judged wrong
PAGE = 20  # pairs that it shows at once
PICTURED = 2000  # wrong pairs of a kind that it has the pictures of; the others are listed without
# What report.json has of a Verification besides its figures.
FACTS = (
    *("pairs", "impostors", "std", "val_std", "far", "xnorm", "warnings"),
    *("fold_accuracies", "fold_thresholds", "fold_vals", "fold_fars"),
    *("threshold", "threshold_cosine", "best_threshold", "best_threshold_cosine", "best_accuracy"),
)
# The order in which report.json has what it says of a set.
KEYS = (
    *("set", "pairs", "accuracy", "std", "interval", "fold_accuracies", "fold_thresholds", "val", "val_std", "far"),
    *("tar", "auc", "eer", "xnorm", "warnings", "impostors", "threshold", "best_threshold", "best_accuracy"),
    *("fold_vals", "fold_fars", "val_interval", "tar_intervals", "eer_interval", "auc_interval"),
    *("threshold_cosine", "best_threshold_cosine", "accuracy_without_mirror", "accuracy_without_mirror_interval"),
    *("excluded", "published", "chose_the_model"),
)


def content(entries: Sequence[Entry], origin: Origin) -> dict[str, Any]:
    """Returns what report.json has: model, versions and date (see Origin.facts), and `sets` in the table's order."""
    return {**origin.facts(), "sets": [_plain(_set(entry, origin)) for entry in ordered(entries)]}


def write(out: Location, entries: Sequence[Entry], origin: Origin) -> None:
    """Writes report.json and report.html into `out`, each whole or not at all.

    Args:
        out: a folder, made if need be, or a prefix in a bucket.
        entries: what was measured, a set each.
        origin: of the model, also for published figures.

    Raises:
        FaceshardsError: the folder cannot be written.
    """
    texts = {
        "report.json": json.dumps(content(entries, origin), indent=1, allow_nan=False),
        "report.html": _page(entries, origin),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            with replacing(out / name, keep=True) as temporary:
                temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise FaceshardsError(f"{out}: the report cannot be written: {error.strerror}") from None


def _set(entry: Entry, origin: Origin) -> dict[str, Any]:
    """Returns what report.json has of a set, in the order that its readers know; a new figure comes last by itself."""
    got, plain, tars = entry.result, entry.plain and entry.plain.figures["accuracy"], by_far(entry.result.figures)
    single = {name: figure for name, figure in got.figures.items() if name not in map(tar_name, tars)}
    found = {
        "interval": got.figures["accuracy"].interval,
        "tar": {far: figure.value for far, figure in tars.items()},
        "tar_intervals": {far: figure.interval for far, figure in tars.items()},
        **{name: figure.value for name, figure in single.items()},
        **{f"{name}_interval": figure.interval for name, figure in single.items() if name != "accuracy"},
        **{name: getattr(got, name) for name in FACTS},
        "set": entry.name,
        "accuracy_without_mirror": plain and plain.value,
        "accuracy_without_mirror_interval": plain and plain.interval,
        "excluded": entry.problems,
        "published": published(origin.backbone, origin.trained_on, entry.name),
        "chose_the_model": origin.chosen_by(entry.name, entry.digest),
    }
    return {name: found.pop(name) for name in KEYS} | found


def _page(entries: Sequence[Entry], origin: Origin) -> str:
    """Returns report.html."""
    head, rows = table_rows(entries, origin)
    loader = jinja2.PackageLoader("evaluation", "report")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=loader)
    return environment.get_template("page.html.j2").render(
        title=f"Verification of {origin.backbone or 'embeddings'}",
        origin=origin.lines(),
        notes=notes(entries, origin),
        head=head,
        rows=[[(_signed(text), interval_text(interval)) for text, interval in row] for row in rows],
        roc=svg(roc(entries), "roc", "ROC: true accept rate against false accept rate, for each set"),
        sets=[{"place": place, **_section(entry, origin)} for place, entry in enumerate(ordered(entries))],
    )


def _plain(value: Any) -> Any:
    """Returns a value as JSON has it: null for what is not a number."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _section(entry: Entry, origin: Origin) -> dict[str, Any]:
    """Returns what the page shows of a set."""
    got = entry.result
    best = f"{100 * got.best_accuracy:.2f} % of all pairs, the same it was chosen on"
    facts = [
        ("Pairs", f"{got.pairs:,}, {got.impostors:,} of them two persons"),
        ("Threshold", f"{_limit(got.threshold_cosine, f'{got.threshold:.4f}')}: mean of the folds'"),
        ("Best threshold", f"{_limit(got.best_threshold_cosine, f'{got.best_threshold:.2f}')}: {best}"),
        ("VAL at FAR 1e-3", f"{100 * got.value('val'):.2f} ± {100 * got.val_std:.2f} %, FAR met {got.far:.2e}"),
    ]
    folds = [
        (f"{100 * accuracy:.2f}", f"{threshold:.2f}", _fold_rate(val), _fold_rate(far))
        for accuracy, threshold, val, far in zip(
            got.fold_accuracies, got.fold_thresholds, got.fold_vals, got.fold_fars, strict=True
        )
    ]
    return {
        "name": marked(entry, origin),
        "histogram": svg(histogram(entry), entry.name, f"Histogram of the cosines of {entry.name}'s pairs, by kind"),
        "wrong": wrong_pairs(entry),
        "problems": entry.problems,
        "warnings": [*notes([entry], origin), *got.warnings],
        "tar": [
            (far_text(far), rate(figure.value), interval_text(figure.interval))
            for far, figure in by_far(got.figures).items()
        ],
        "facts": facts,
        "folds": folds,
    }


def _limit(cosine: float, distance: str) -> str:
    return f"cosine {cosine:.4f}, squared distance {distance}"


def _fold_rate(value: float) -> str:
    return f"{100 * value:.2f}" if math.isfinite(value) else "none"


def _signed(text: str) -> str:
    """Returns a cell of the table as a page has it."""
    return text.replace(" +- ", " ± ")


def wrong_pairs(entry: Entry) -> list[dict[str, Any]]:
    """Returns the pairs of each kind that were judged wrong at their fold's threshold, the most wrong first, in pages.

    Where a kind has none, its pairs nearest to their threshold, and `wrong` is 0.
    """
    thresholds = np.array(entry.result.fold_thresholds)
    limit = thresholds[fold_of(len(entry.same), len(thresholds))]  # (P,)
    found = []
    for false, right, kind, sign in (
        ("Two persons judged one", "two persons", ~entry.same, 1),
        ("One person judged two", "one person", entry.same, -1),
    ):
        error = np.where(kind, sign * (limit - entry.distances), -np.inf)  # (P,): how far on the wrong side
        wrong = kind & ((entry.distances < limit) != entry.same)
        pairs = np.flatnonzero(wrong if wrong.any() else kind)
        pairs = pairs[np.argsort(-error[pairs], kind="stable")][: None if wrong.any() else NEAREST]
        shown = [_pair(entry, pair, limit[pair], place < PICTURED) for place, pair in enumerate(map(int, pairs))]
        pages = [shown[start : start + PAGE] for start in range(0, len(shown), PAGE)]
        about = {"title": false, "kind": right, "wrong": int(wrong.sum()), "pictured": PICTURED, "page": PAGE}
        found.append({**about, "pages": pages})
    return found


def _pair(entry: Entry, pair: int, limit: float, pictured: bool) -> dict[str, Any]:
    """Returns what the page shows of a pair.

    Args:
        entry: of the set.
        pair: its place among those measured.
        limit: its fold's threshold.
        pictured: with its pictures.
    """
    pictures = entry.pictures[2 * pair : 2 * pair + 2] if pictured else ()
    return {
        "number": int(entry.numbers[pair]) if len(entry.numbers) else pair,
        "cosine": f"{1 - entry.distances[pair] / 2:.3f}",
        "limit": f"{1 - limit / 2:.3f}",
        "images": [_image(data) for data in pictures],
    }


def _image(encoded: bytes) -> str:
    kind = "png" if encoded.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(encoded).decode()

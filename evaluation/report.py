"""One table of a run's verification numbers: as text, as JSON, and as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from evaluation.verification import Verification
from pipelines.errors import FaceshardsError

# Accuracies in %, of the backbone trained on the set: mindface's table (mindspore-lab/mindface, README).
SETS = ("lfw", "cfp_fp", "agedb_30", "calfw", "cplfw")
PUBLISHED = {
    ("mbf", "casia"): (98.48, 86.84, 90.13, 90.92, 81.22),
    ("r50", "casia"): (98.67, 90.36, 91.75, 92.03, 83.67),
    ("r100", "casia"): (98.95, 90.94, 91.83, 92.43, 84.97),
    ("vit_t", "casia"): (98.40, 83.23, 87.28, 90.67, 80.70),
    ("vit_s", "casia"): (98.55, 85.56, 87.85, 91.08, 82.50),
    ("vit_b", "casia"): (98.33, 85.83, 87.42, 90.80, 81.40),
    ("vit_l", "casia"): (97.60, 84.54, 85.32, 89.73, 79.55),
    ("mbf", "ms1mv2"): (98.70, 88.21, 90.95, 91.75, 82.63),
    ("r50", "ms1mv2"): (99.77, 97.19, 97.78, 96.07, 92.03),
    ("r100", "ms1mv2"): (99.38, 96.80, 93.77, 93.27, 89.15),
    ("vit_t", "ms1mv2"): (99.72, 92.71, 96.72, 95.60, 89.95),
    ("vit_s", "ms1mv2"): (99.77, 95.77, 97.62, 95.80, 91.27),
    ("vit_b", "ms1mv2"): (99.82, 94.20, 97.52, 96.00, 90.97),
    ("vit_l", "ms1mv2"): (99.75, 93.71, 96.48, 95.82, 90.45),
}
HARDEST = 5  # false pairs of each kind that the page shows


@dataclass(frozen=True)
class Entry:
    """What was measured on one set.

    Args:
        name: of the set.
        result: with the mirror images.
        plain: accuracy without them; None for embeddings from elsewhere.
        distances: (P,) of the pairs that were measured.
        same: (P,) bool.
        pictures: (2P,) encoded images of these pairs; empty for none.
        problems: what was left out, one line a pair.
    """

    name: str
    result: Verification
    plain: float | None
    distances: np.ndarray
    same: np.ndarray
    pictures: Sequence[bytes] = ()
    problems: tuple[str, ...] = ()


def published(backbone: str, trained_on: str, name: str) -> float | None:
    """Returns mindface's accuracy in % of a backbone and training set on a set, if it has one."""
    row = PUBLISHED.get((backbone, trained_on))
    return row[SETS.index(name)] if row and name in SETS else None


def table(entries: Sequence[Entry], backbone: str = "", trained_on: str = "") -> list[str]:
    """Returns the table as lines of text."""
    head = [
        "set",
        "pairs",
        "accuracy %",
        "95 %",
        "no mirror",
        "VAL@1e-3",
        "TAR@1e-3",
        "TAR@1e-4",
        "EER",
        "AUC",
        "XNorm",
    ]
    head += ["mindface", "difference"] if any(published(backbone, trained_on, e.name) for e in entries) else []
    rows = [head]
    for entry in entries:
        got, known = entry.result, published(backbone, trained_on, entry.name)
        low, high = got.interval or (float("nan"), float("nan"))
        row = [entry.name, f"{got.pairs:,}", f"{got.accuracy:.2%} +- {got.std:.2%}".replace("%", ""),
               f"{100 * low:.2f}-{100 * high:.2f}", "" if entry.plain is None else f"{100 * entry.plain:.2f}",
               f"{100 * got.val:.2f}", _rate(got.tar.get(1e-3)), _rate(got.tar.get(1e-4)), f"{100 * got.eer:.2f}",
               f"{got.auc:.4f}", f"{got.xnorm:.2f}"]  # fmt: skip
        if len(head) > len(row):
            row += [f"{known:.2f}", f"{100 * got.accuracy - known:+.2f}"] if known else ["", ""]
        rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return ["  ".join(cell.rjust(width) if i else cell.ljust(width)
                      for i, (cell, width) in enumerate(zip(row, widths, strict=True))) for row in rows]  # fmt: skip


def _rate(value: float | None) -> str:
    return "n/m" if value is None else f"{100 * value:.2f}"  # not measurable: too few impostor pairs


def write(out: Path, entries: Sequence[Entry], backbone: str = "", trained_on: str = "") -> None:
    """Writes report.json and report.html into `out`, each whole or not at all.

    Raises:
        FaceshardsError: the folder cannot be written.
    """
    content = [
        {**dataclasses.asdict(entry.result), "set": entry.name, "accuracy_without_mirror": entry.plain,
         "impostor_pairs": int(np.count_nonzero(~entry.same)), "excluded": list(entry.problems),
         "published": published(backbone, trained_on, entry.name)}
        for entry in entries
    ]  # fmt: skip
    page = _PAGE.render(
        title=f"Verification of {backbone or 'embeddings'}", lines=table(entries, backbone, trained_on),
        roc=_picture(_roc(entries)), sets=[_section(entry) for entry in entries],
    )  # fmt: skip
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in (("report.json", json.dumps(content, indent=1)), ("report.html", page)):
            partial = out / f".{name}.partial"
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, out / name)
    except OSError as error:
        raise FaceshardsError(f"{out}: the report cannot be written: {error.strerror}") from None


def _roc(entries: Sequence[Entry]) -> Figure:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="FAR", ylabel="TAR", xlim=(1e-4, 1), ylim=(0, 1.01))
    for entry in entries:
        far, tar, _ = roc_curve(entry.same, -entry.distances)
        axes.plot(
            np.maximum(far, 1e-4), tar, label=f"{entry.name} (AUC {entry.result.auc:.4f})", drawstyle="steps-post"
        )
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    return figure


def _section(entry: Entry) -> dict[str, Any]:
    """Returns what the page shows of a set."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.add_subplot(xlabel="cosine", ylabel="pairs")
    cosine = 1 - entry.distances / 2
    for kind, name in ((entry.same, "same person"), (~entry.same, "two persons")):
        axes.hist(cosine[kind], np.linspace(-1, 1, 81).tolist(), alpha=0.6, label=name)
    for threshold in sorted(set(entry.result.fold_thresholds)):
        axes.axvline(1 - threshold / 2, color="black", linewidth=0.7)
    axes.legend()
    hardest = []
    for title, kind, order in (
        ("Two persons, most alike", ~entry.same, entry.distances),
        ("One person, least alike", entry.same, -entry.distances),
    ):
        pairs = np.flatnonzero(kind)[np.argsort(order[kind], kind="stable")[:HARDEST]]
        shown = [
            {"number": int(pair), "cosine": f"{cosine[pair]:.3f}", "images": [_image(p) for p in pictures]}
            for pair in pairs
            if (pictures := entry.pictures[2 * pair : 2 * pair + 2])
        ]
        hardest.append((title, shown))
    facts = dataclasses.asdict(entry.result)
    tar = {f"{far:g}": _rate(value) for far, value in facts["tar"].items()}
    return {"name": entry.name, "histogram": _picture(figure), "hardest": hardest, "problems": entry.problems,
            "warnings": entry.result.warnings, "tar": tar, "impostors": int(np.count_nonzero(~entry.same))}  # fmt: skip


def _picture(figure: Figure) -> str:
    """Returns a figure as a data URL."""
    file = io.BytesIO()
    figure.savefig(file, format="svg")
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()


def _image(encoded: bytes) -> str:
    kind = "png" if encoded.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(encoded).decode()


_PAGE = jinja2.Environment(autoescape=True).from_string("""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{ title }}</title>
<style>body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}pre{overflow-x:auto}
figure{display:inline-block;margin:0 1em 1em 0}figcaption{font-size:13px}</style>
<h1>{{ title }}</h1>
<pre>{{ lines | join("\\n") }}</pre>
<p>Accuracy: mean and deviation over 10 folds. 95 %: interval by resampling pairs. n/m: too few impostor pairs.</p>
<img alt="ROC curves" src="{{ roc }}">
{% for set in sets %}<h2>{{ set.name }}</h2>
{% for line in set.warnings %}<p><strong>{{ line }}</strong></p>{% endfor %}
<p>TAR at FAR, {{ set.impostors }} impostor pairs:
{% for far, tar in set.tar.items() %}{{ far }}: {{ tar }}{{ ", " if not loop.last }}{% endfor %}</p>
<img alt="Histogram of cosines" src="{{ set.histogram }}">
{% for title, pairs in set.hardest if pairs %}<h3>{{ title }}</h3>
{% for pair in pairs %}<figure>{% for image in pair.images %}<img alt="" src="{{ image }}">{% endfor %}
<figcaption>pair {{ pair.number }}, cosine {{ pair.cosine }}</figcaption></figure>{% endfor %}{% endfor %}
{% if set.problems %}<h3>Left out</h3><ul>{% for line in set.problems %}<li>{{ line }}</li>{% endfor %}</ul>{% endif %}
{% endfor %}</html>
""")

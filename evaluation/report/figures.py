"""The figures of a report, as SVG that takes the page's colours."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure as Plot

from evaluation.report.table import Entry, ordered

POINTS = 400  # of a ROC curve on the page, whatever the number of pairs
_INK = "#123457"  # stands for the page's text colour while a figure is drawn


def roc_points(distances: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns at most POINTS false accept rates, from one impostor pair on, and the true accept rates there."""
    genuine, impostor = np.sort(distances[same]), np.sort(distances[~same])
    accepted = np.unique(np.geomspace(1, len(impostor), POINTS).round().astype(np.int64))
    # Everything nearer than the first impostor pair beyond is accepted.
    beyond = np.append(impostor, np.inf)[accepted]
    return accepted / len(impostor), np.searchsorted(genuine, beyond) / len(genuine)


def roc(entries: Sequence[Entry]) -> Plot:
    """Returns the ROC curves of all sets."""
    figure, axes = _figure(3.6, xlabel="false accept rate", ylabel="true accept rate", xscale="log", ylim=(None, 1.005))
    for entry in ordered(entries):
        far, tar = roc_points(entry.distances, entry.same)
        axes.plot(far, tar, label=f"AUC {entry.result.value('auc'):.4f}  {entry.name}", drawstyle="steps-post")
    axes.grid(alpha=0.25)
    _legend(axes, "lower right")
    return figure


def histogram(entry: Entry) -> Plot:
    """Returns how the cosines of the two kinds of pairs lie, beside the threshold."""
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


def _figure(height: float, **settings: Any) -> tuple[Plot, Any]:
    """Returns a figure and its axes in the page's colours."""
    colours = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
    style: Any = dict.fromkeys(colours, _INK)
    with matplotlib.rc_context(style):
        figure = Plot(figsize=(6.4, height), layout="constrained")
        axes = figure.add_subplot(**settings)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_facecolor("none")
    return figure, axes


def _legend(axes: Any, place: str) -> None:
    for text in axes.legend(loc=place, framealpha=0, labelcolor=_INK).get_texts():
        text.set_parse_math(False)  # a set may be called a$b


def svg(figure: Plot, salt: str) -> Markup:
    """Returns a figure as an element of the page, in whose colours and font it is; `salt` makes its marks' names."""
    file = io.StringIO()
    none: Any = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.family": "sans-serif"}):
        figure.savefig(file, format="svg", transparent=True, metadata=none)
    text = file.getvalue()
    text = re.sub(r' xmlns(:xlink)?="[^"]*"|(?<=<g) id="[^"]*"', "", text[text.index("<svg") :])
    return Markup(text.replace(_INK, "currentColor"))  # matplotlib escapes names

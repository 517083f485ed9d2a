"""The figures of a report, as SVG that takes the page's colours."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure as Plot

from evaluation.report.table import Entry, ordered

POINTS = 400  # of a ROC curve on the page, whatever the number of pairs
LEAST_FAR = 1e-6  # where the axis of a ROC begins
SAMPLES = 200  # resamples of the pairs for a curve's band
_INK, _PAPER = "#123457", "#fedcb9"  # stand for the page's own two colours while a figure is drawn


def roc_points(distances: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns at most POINTS false accept rates, from one impostor pair on, and the true accept rates there."""
    genuine, impostor = np.sort(distances[same]), np.sort(distances[~same])
    accepted = _accepted(len(impostor))
    # Everything nearer than the first impostor pair beyond is accepted.
    beyond = np.append(impostor, np.inf)[accepted]
    return accepted / len(impostor), np.searchsorted(genuine, beyond) / len(genuine)


def roc_band(distances: np.ndarray, same: np.ndarray, samples: int = SAMPLES, seed: int = 0) -> np.ndarray:
    """Returns (2, points) between which 95 % of the resamples' true accept rates lie at the rates of roc_points().

    Pairs of one person and of two are drawn apart, each as often as there are.

    Args:
        distances: (P,) of the pairs.
        same: (P,) bool.
        samples: how often they are drawn.
        seed: of the drawings.
    """
    genuine, impostor = np.sort(distances[same]), np.sort(distances[~same])
    nearer = np.searchsorted(genuine, np.append(impostor, np.inf))  # (I + 1,) genuine pairs nearer than an impostor
    accepted, rng = _accepted(len(impostor)), np.random.default_rng(seed)
    found = np.empty((samples, len(accepted)))
    for row in found:
        impostors, genuines = (
            np.cumsum(np.bincount(rng.integers(size, size=size), minlength=size))
            for size in (len(impostor), len(genuine))
        )
        beyond = np.searchsorted(impostors, accepted, side="right")  # the first drawn impostor that is not accepted
        row[:] = np.append(0, genuines)[nearer[beyond]] / len(genuine)
    return np.quantile(found, (0.025, 0.975), axis=0)


def _accepted(impostors: int) -> np.ndarray:
    """Returns at most POINTS numbers of impostor pairs, from one to all, evenly spread over the logarithm."""
    return np.unique(np.geomspace(1, impostors, POINTS).round().astype(np.int64))


def roc(entries: Sequence[Entry]) -> Plot:
    """Returns the ROC curves of all sets, each with its band of 95 %."""
    limits: Any = {"xscale": "log", "xlim": (LEAST_FAR, 1), "ylim": (None, 1.005)}
    figure, axes = _figure(3.8, xlabel="false accept rate", ylabel="true accept rate", **limits)
    for entry in ordered(entries):
        far, tar = roc_points(entry.distances, entry.same)
        label = f"AUC {entry.result.value('auc'):.4f}  {entry.name}"
        (line,) = axes.plot(far, tar, label=label, drawstyle="steps-post")
        low, high = roc_band(entry.distances, entry.same)
        axes.fill_between(far, low, high, step="post", alpha=0.2, linewidth=0, color=line.get_color())
    axes.grid(alpha=0.25)
    _legend(axes)
    return figure


def histogram(entry: Entry) -> Plot:
    """Returns how the cosines of the two kinds of pairs lie, beside the threshold."""
    figure, axes = _figure(2.6, xlabel="cosine", ylabel="pairs")
    cosine = 1 - entry.distances / 2
    edges = np.linspace(min(-0.2, cosine.min()), 1, 81)
    for kind, name in ((entry.same, "same person"), (~entry.same, "two persons")):
        axes.stairs(np.histogram(cosine[kind], edges)[0], edges, fill=True, alpha=0.6, label=name)
    threshold = entry.result.threshold_cosine
    axes.axvline(threshold, color=_INK, linewidth=1.2, linestyle="--", label=f"threshold {threshold:.3f}")
    _legend(axes)
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


def _legend(axes: Any) -> None:
    """Adds a legend where it hides least, legible where a curve is below it all the same."""
    look: Any = {"facecolor": _PAPER, "edgecolor": "none", "framealpha": 0.8, "labelcolor": _INK}
    for text in axes.legend(loc="best", **look).get_texts():
        text.set_parse_math(False)  # a set may be called a$b


def svg(figure: Plot, salt: str, label: str) -> Markup:
    """Returns a figure as an element of the page, in whose colours and font it is.

    Args:
        figure: to be drawn.
        salt: makes the names of its marks.
        label: what it shows, for those who do not see it.
    """
    file = io.StringIO()
    none: Any = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.family": "sans-serif"}):
        figure.savefig(file, format="svg", transparent=True, metadata=none)
    text = file.getvalue()
    text = re.sub(r' xmlns(:xlink)?="[^"]*"|(?<=<g) id="[^"]*"', "", text[text.index("<svg") :])
    text = text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
    return Markup(text.replace(_INK, "currentColor").replace(_PAPER, "Canvas"))  # matplotlib escapes names

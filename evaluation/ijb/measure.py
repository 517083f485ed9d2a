"""IJB-B and IJB-C, 1:1 verification of templates (sets of photographs and video frames), as InsightFace computes it.

The equations: an image's embedding (image and mirror image added) times its detection score; the mean over the images
of one medium in a template; the sum over a template's media, divided by its length; a pair's score is the dot product.
TAR is read off the ROC curve at the point whose FAR is nearest to the one wanted. Source: deepinsight/insightface,
recognition/arcface_torch/eval_ijbc.py; the benchmark: Maze et al., IARPA Janus Benchmark-C, ICB 2018.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score, roc_curve

from evaluation.ijb.lines import IjbError
from evaluation.ijb.protocol import Protocol
from evaluation.protocol.figures import Figure, Interval, middle, tar_name

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
PAIRS = 1 << 15  # whose features are multiplied at once: 2 x 128 MiB at 512 components
TEMPLATES = 1 << 11  # whose images are weighted at once
CELLS, RESAMPLES = 2000, 1000  # of the intervals


@dataclass(frozen=True)
class DroppedTemplates:
    """Templates without a feature.

    Args:
        cause: why they have none, as one says it of one of them.
        templates: how many.
        pairs: that go with them; a pair of two such templates is counted under the first cause.
    """

    cause: str
    templates: int
    pairs: int


@dataclass(frozen=True)
class IjbResult:
    """What was measured.

    Args:
        pairs: that were scored.
        impostors: those of two persons among them.
        dropped_images: without an embedding.
        dropped_templates: without a feature, by cause.
        dropped_pairs: that went with them; pairs + dropped_pairs are all of the benchmark.
        figures: by name: the true accept rate at each false accept rate, and auc, which has no interval.
    """

    pairs: int
    impostors: int
    dropped_images: int
    dropped_templates: tuple[DroppedTemplates, ...]
    dropped_pairs: int
    figures: dict[str, Figure]


def template_features(
    embeddings: np.ndarray, template: np.ndarray, media: np.ndarray, score: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the templates (T,) int64, ascending, and their features (T, D) float64 of length 1.

    A template whose images add up to nothing, since their scores are 0 perhaps, has no direction and is not there.

    Args:
        embeddings: (N, D) float; rows that are not finite are left out.
        template: (N,) int64.
        media: (N,) int64.
        score: (N,) float, the weight of each image.
    """
    order = np.lexsort((media, template))
    order = order[_finite(embeddings)[order]]
    template, media = template[order], media[order]
    first = np.flatnonzero(np.diff(template, prepend=template[:1] - 1))  # (T,) of each template
    features = np.empty((len(first), embeddings.shape[1]))
    for low in range(0, len(first), TEMPLATES):
        begin, high = first[low], min(low + TEMPLATES, len(first))
        part = slice(begin, first[high] if high < len(first) else len(order))
        rows = embeddings[order[part]].astype(np.float64) * score[order[part], None]  # (n, D)
        changes = np.diff(template[part], prepend=template[begin] - 1) != 0
        changes |= np.diff(media[part], prepend=media[begin] - 1) != 0
        starts = np.flatnonzero(changes)  # of each medium of a template
        means = np.add.reduceat(rows, starts) / np.diff(starts, append=len(rows))[:, None]
        features[low:high] = np.add.reduceat(means, np.searchsorted(starts, first[low:high] - begin))
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    kept = (lengths[:, 0] > 0) & (lengths[:, 0] < np.inf)
    if not kept.all():
        first, features, lengths = first[kept], features[kept], lengths[kept]
    features /= lengths
    return template[first], features


def _finite(embeddings: np.ndarray) -> np.ndarray:
    """Returns (N,) bool, whether an embedding is one; a block at a time."""
    blocks = [np.isfinite(embeddings[low : low + PAIRS]).all(axis=1) for low in range(0, len(embeddings), PAIRS)]
    return np.concatenate(blocks) if blocks else np.zeros(0, bool)


def pair_scores(templates: np.ndarray, features: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Returns (P,) float64, the dot products of pairs' features; NaN for a pair with a template that is not there.

    Args:
        templates: (T,) int64, ascending.
        features: (T, D) float64.
        pairs: (P, 2) int64, templates.
    """
    scores = np.full(len(pairs), np.nan)
    if not len(templates):
        return scores
    places = np.searchsorted(templates, pairs).clip(max=len(templates) - 1)  # (P, 2)
    there = np.flatnonzero((templates[places] == pairs).all(axis=1))
    for low in range(0, len(there), PAIRS):
        part = there[low : low + PAIRS]
        scores[part] = np.einsum("pd,pd->p", features[places[part, 0]], features[places[part, 1]])
    return scores


def measure(protocol: Protocol, embeddings: np.ndarray, fars: tuple[float, ...] = FARS, seed: int = 0) -> IjbResult:
    """Returns what embeddings (N, D) give on the benchmark; rows that are not finite are images without one.

    Raises:
        IjbError: as many embeddings as images are not there, none of them is finite, or all pairs left are of one kind.
    """
    if len(embeddings) != len(protocol.names):
        raise IjbError(f"{len(embeddings)} embeddings for {len(protocol.names)} images")
    dropped = int(np.count_nonzero(~_finite(embeddings)))
    if dropped == len(embeddings) or not embeddings.shape[1]:
        raise IjbError(f"{protocol.name}: none of the {len(embeddings)} images has an embedding")
    templates, features = template_features(embeddings, protocol.template, protocol.media, protocol.score)
    scores = pair_scores(templates, features, protocol.pairs)
    kept = np.isfinite(scores)
    lost = tuple(_dropped(protocol, embeddings, templates, protocol.pairs[~kept]))
    scores, same = scores[kept], protocol.same[kept]
    impostors = int(np.count_nonzero(~same))
    if impostors in (0, len(same)):
        causes = "; ".join(f"{part.pairs:,} pairs are left out: a template {part.cause}" for part in lost)
        raise IjbError(
            f"{protocol.name}: the {len(same):,} pairs left are all of one kind" + "; " * bool(lost) + causes
        )
    far, tar = (rates[::-1] for rates in roc_curve(same, scores)[:2])  # of equal FARs the largest TAR comes first
    figures = {}
    for wanted, interval in zip(fars, _intervals(scores, same, fars, seed), strict=True):
        value = float(tar[np.argmin(np.abs(far - wanted))])
        # Too few pairs of two persons cannot show the rate.
        figures[tar_name(wanted)] = Figure(value, interval) if wanted * impostors >= 1 else Figure(None)
    figures["auc"] = Figure(float(roc_auc_score(same, scores)))
    return IjbResult(
        pairs=len(same),
        impostors=impostors,
        dropped_images=dropped,
        dropped_templates=lost,
        dropped_pairs=int(np.count_nonzero(~kept)),
        figures=figures,
    )


def _dropped(
    protocol: Protocol, embeddings: np.ndarray, scored: np.ndarray, pairs: np.ndarray
) -> Iterator[DroppedTemplates]:
    """Yields which templates have no feature, by cause, those causes alone that there are.

    Args:
        protocol: the benchmark.
        embeddings: (N, D) float.
        scored: (T,) int64, the templates that have one.
        pairs: (Q, 2) int64, those that go with the others.
    """
    listed, embedded = np.unique(protocol.template), np.unique(protocol.template[_finite(embeddings)])
    for cause, templates in (
        ("that no image is of", np.setdiff1d(pairs, listed)),
        ("none of whose images has an embedding", np.setdiff1d(listed, embedded)),
        ("whose images, weighted by their scores, add up to nothing", np.setdiff1d(embedded, scored)),
    ):
        with_them = np.isin(pairs, templates).any(axis=1)
        if len(templates):
            yield DroppedTemplates(cause, len(templates), int(np.count_nonzero(with_them)))
        pairs = pairs[~with_them]


def _intervals(scores: np.ndarray, same: np.ndarray, fars: tuple[float, ...], seed: int) -> Iterator[Interval | None]:
    """Yields the middle 95 % of the TAR at each of `fars` over resampled pairs.

    Scores are counted in cells whose borders are impostor scores, close together where FARs are low; resampling pairs
    is then a Poisson draw for each cell.
    """
    impostor = np.sort(scores[~same])[::-1]
    ranks = np.unique(np.geomspace(1, len(impostor), CELLS).round().astype(np.int64)) - 1
    borders = np.append(impostor[ranks], -np.inf)[::-1]  # ascending; a cell goes from a border to the next
    rng = np.random.default_rng(seed)
    rates = []  # FAR and TAR, (R, cells) each, of accepting what is in a cell or above
    for kind in (~same, same):
        counts = np.bincount(np.searchsorted(borders, scores[kind], side="right") - 1, minlength=len(borders))
        drawn = rng.poisson(counts, (RESAMPLES, len(borders)))[:, ::-1].cumsum(axis=1)
        rates.append(drawn / np.maximum(drawn[:, -1:], 1))
    far, tar = rates
    for wanted in fars:
        nearest = np.abs(far - wanted).argmin(axis=1)  # (R,)
        yield middle(tar[np.arange(RESAMPLES), nearest])

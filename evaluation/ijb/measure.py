"""IJB-B and IJB-C, 1:1 verification of templates (sets of photographs and video frames), as InsightFace computes it.

The equations: an image's embedding (image and mirror image added) times its detection score; the mean over the images
of one medium in a template; the sum over a template's media, divided by its length; a pair's score is the dot product.
TAR is read off the ROC curve at the point whose FAR is nearest to the one wanted. Source: deepinsight/insightface,
recognition/arcface_torch/eval_ijbc.py; the benchmark: Maze et al., IARPA Janus Benchmark-C, ICB 2018.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score, roc_curve

from evaluation.embedder import Embedder, Forward
from evaluation.ijb.alignment import AlignmentError, align
from evaluation.ijb.protocol import IjbError, Protocol
from evaluation.protocol.figures import Figure, Interval, middle, tar_name
from training.data.transforms import ImageError, decode

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
PAIRS = 1 << 15  # whose features are multiplied at once: 2 x 128 MiB at 512 components
TEMPLATES = 1 << 11  # whose images are weighted at once
CELLS, RESAMPLES = 2000, 1000  # of the intervals


@dataclass(frozen=True)
class IjbResult:
    """What was measured.

    Args:
        pairs: that were scored.
        impostors: those of two persons among them.
        dropped_images: without an embedding.
        dropped_pairs: with a template that has no image left; pairs + dropped_pairs are all of the benchmark.
        figures: by name: the true accept rate at each false accept rate, and auc, which has no interval.
    """

    pairs: int
    impostors: int
    dropped_images: int
    dropped_pairs: int
    figures: dict[str, Figure]


def embed_protocol(protocol: Protocol, forward: Forward, places: Iterable[int]) -> tuple[np.ndarray, dict[int, str]]:
    """Returns (N, D) float32, image and mirror image added, of the aligned faces; and, by place, why one is NaN.

    Args:
        protocol: the benchmark.
        forward: (B, 3, 112, 112) float32 to (B, D).
        places: 0 to N - 1, in order; a progress bar around them, perhaps.

    Raises:
        IjbError: there is no folder of images.
        EmbeddingError: see Embedder.batches.
    """
    if not protocol.images.is_dir():
        raise IjbError(f"{protocol.images}: no such folder of images")

    def load(place: int) -> np.ndarray:
        try:
            image = decode((protocol.images / protocol.names[place]).read_bytes())
            return align(image, protocol.points[place])
        except OSError as error:
            raise ImageError(f"{protocol.names[place]}: {error.strerror}") from None
        except (ImageError, AlignmentError) as error:
            raise ImageError(f"{protocol.names[place]}: {error}") from None

    rows, problems, start = [], {}, 0
    for views, bad in Embedder(forward, load=load).batches(places):
        rows.append(views[0] + views[1])
        problems.update({start + place: cause for place, cause in bad.items()})
        start += len(rows[-1])
    return np.concatenate(rows), problems


def template_features(
    embeddings: np.ndarray, template: np.ndarray, media: np.ndarray, score: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the templates (T,) int64, ascending, and their features (T, D) float64 of length 1.

    Args:
        embeddings: (N, D) float; rows that are not finite are left out.
        template: (N,) int64.
        media: (N,) int64.
        score: (N,) float, the weight of each image.

    Raises:
        IjbError: a template's feature has no length.
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
    if not (lengths > 0).all():
        raise IjbError(f"template {template[first[int((~(lengths > 0)).argmax())]]}: its images add up to nothing")
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
    places = np.searchsorted(templates, pairs).clip(max=len(templates) - 1)  # (P, 2)
    scores = np.full(len(pairs), np.nan)
    there = np.flatnonzero((templates[places] == pairs).all(axis=1))
    for low in range(0, len(there), PAIRS):
        part = there[low : low + PAIRS]
        scores[part] = np.einsum("pd,pd->p", features[places[part, 0]], features[places[part, 1]])
    return scores


def measure(protocol: Protocol, embeddings: np.ndarray, fars: tuple[float, ...] = FARS, seed: int = 0) -> IjbResult:
    """Returns what embeddings (N, D) give on the benchmark; rows that are not finite are images without one.

    Raises:
        IjbError: as many embeddings as images are not there, none of them is finite, a template's add up to nothing, or
            all pairs left are of one kind.
    """
    if len(embeddings) != len(protocol.names):
        raise IjbError(f"{len(embeddings)} embeddings for {len(protocol.names)} images")
    dropped = int(np.count_nonzero(~_finite(embeddings)))
    if dropped == len(embeddings) or not embeddings.shape[1]:
        raise IjbError(f"{protocol.name}: none of the {len(embeddings)} images has an embedding")
    templates, features = template_features(embeddings, protocol.template, protocol.media, protocol.score)
    scores = pair_scores(templates, features, protocol.pairs)
    kept = np.isfinite(scores)
    scores, same = scores[kept], protocol.same[kept]
    impostors = int(np.count_nonzero(~same))
    if impostors in (0, len(same)):
        raise IjbError(f"{protocol.name}: the {len(same)} pairs left are all of one kind")
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
        dropped_pairs=int(np.count_nonzero(~kept)),
        figures=figures,
    )


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

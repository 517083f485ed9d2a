"""The field's verification numbers, exactly as InsightFace's protocol computes them, without its loops.

For every pair the squared L2 distance of the normalised embeddings; 10 folds in order; on each fold the first of the
thresholds 0, 0.01, ..., 3.99 that is best on the nine others, a pair counting as the same person below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import KFold

from pipelines.errors import FaceshardsError

THRESHOLDS = np.arange(0, 4, 0.01)  # of the accuracy
FINE = np.arange(0, 4, 0.001)  # of VAL at FAR


class VerificationError(FaceshardsError):
    """Embeddings or pairs from which no number with a meaning follows."""


@dataclass(frozen=True)
class Verification:
    """What was measured on a set.

    Args:
        pairs: their number.
        accuracy: mean over the folds, 0 to 1.
        std: population standard deviation over the folds.
        interval: 95 % confidence interval of the accuracy, or None.
        fold_accuracies: (folds,).
        fold_thresholds: (folds,) squared distances.
        val: mean true accept rate at the false accept rate 1e-3 of the other folds.
        val_std: over the folds.
        far: mean false accept rate met.
        tar: true accept rate at false accept rates, over all pairs; None where too few impostor pairs measure it.
        auc: area under the ROC curve.
        eer: equal error rate.
        xnorm: mean norm of the embeddings.
        warnings: what to bear in mind.
    """

    pairs: int
    accuracy: float
    std: float
    interval: tuple[float, float] | None
    fold_accuracies: tuple[float, ...]
    fold_thresholds: tuple[float, ...]
    val: float
    val_std: float
    far: float
    tar: dict[float, float | None]
    auc: float
    eer: float
    xnorm: float
    warnings: tuple[str, ...] = ()


def distances(embeddings: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the pairs' squared distances (P,) and the mean norm of the embeddings.

    Args:
        embeddings: (2P, D), of image and mirror image added, not normalised; rows 2k and 2k + 1 are a pair.

    Raises:
        VerificationError: a row is not finite or has no length.
    """
    norms = np.sqrt(np.einsum("nd,nd->n", embeddings, embeddings))  # (2P,)
    for what, wrong in (("not finite", ~np.isfinite(norms)), ("zero", norms == 0)):
        if wrong.any():
            raise VerificationError(f"embedding {int(wrong.argmax())} is {what}")
    unit = embeddings / norms[:, None]
    return np.sum(np.square(np.subtract(unit[0::2], unit[1::2])), axis=1), float(norms.mean())


def verify(
    embeddings: np.ndarray,
    same: np.ndarray,
    *,
    folds: int = 10,
    fars: Sequence[float] = (1e-3, 1e-4),
    bootstrap: int = 1000,
    seed: int = 0,
) -> Verification:
    """Returns what the protocol measures.

    Args:
        embeddings: (2P, D) float; see distances().
        same: (P,) bool.
        folds: of the pairs in their order.
        fars: false accept rates at which the true accept rate is wanted.
        bootstrap: samples of the confidence interval, 0 for none. A sample draws pairs with replacement among the
            test pairs' outcomes, each judged at its own fold's threshold.
        seed: of these samples.

    Raises:
        VerificationError: an accuracy would be meaningless: all pairs alike, fewer pairs than folds, a fold whose
            other folds hold one kind only, or an embedding that is not finite.
    """
    same = np.asarray(same, bool)
    if len(embeddings) != 2 * len(same):
        raise VerificationError(f"{len(embeddings)} embeddings for {len(same)} pairs")
    if len(same) < folds:
        raise VerificationError(f"{len(same)} pairs do not make {folds} folds")
    if same.all() or not same.any():
        raise VerificationError(f"all {len(same)} pairs are {'the same person' if same.all() else 'two persons'}")
    parts = [(train, test) for train, test in KFold(folds, shuffle=False).split(np.arange(len(same)))]
    for number, (train, _) in enumerate(parts, 1):
        if same[train].all() or not same[train].any():
            raise VerificationError(f"without fold {number} all pairs are of one kind")
    dist, xnorm = distances(embeddings)
    fold = np.empty(len(same), np.int64)
    for number, (_, test) in enumerate(parts):
        fold[test] = number
    accepted, rejected = _below(dist, same, fold, folds, THRESHOLDS), np.bincount(fold[~same], minlength=folds)
    right = accepted[0] + rejected[:, None] - accepted[1]  # (folds, thresholds)
    best = (right.sum(axis=0) - right).argmax(axis=1)  # (folds,): the first of the best
    sizes = np.bincount(fold, minlength=folds)
    accuracies = right[np.arange(folds), best] / sizes
    correct = (dist < THRESHOLDS[best][fold]) == same  # (P,)
    val, val_std, far = _val(dist, same, fold, folds, 1e-3)
    warnings = []
    if len(same) % folds:
        warnings.append(f"{len(same)} pairs do not make {folds} equal folds")
    if dist.max() < 1e-6:
        warnings.append("all embeddings are alike: the model says nothing, and 50 % is what guessing gives")
    rates, true_rates, _ = roc_curve(same, -dist, drop_intermediate=False)
    tar: dict[float, float | None] = {}
    for wanted in fars:
        measurable = wanted * np.count_nonzero(~same) >= 1
        tar[wanted] = float(true_rates[np.searchsorted(rates, wanted, side="right") - 1]) if measurable else None
    crossing = int(np.argmin(np.abs(1 - true_rates - rates)))
    return Verification(
        len(same), float(np.mean(accuracies)), float(np.std(accuracies)), _interval(correct, bootstrap, seed),
        tuple(accuracies.tolist()), tuple(THRESHOLDS[best].tolist()), val, val_std, far, tar,
        float(roc_auc_score(same, -dist)), float((1 - true_rates[crossing] + rates[crossing]) / 2), xnorm,
        tuple(warnings),
    )  # fmt: skip


def _below(dist: np.ndarray, same: np.ndarray, fold: np.ndarray, folds: int, thresholds: np.ndarray) -> np.ndarray:
    """Returns (2, folds, thresholds): pairs of one person, and of two, that are below each threshold."""
    counts = np.zeros((2, folds, len(thresholds) + 1), np.int64)
    # The first threshold above a distance; a distance equal to a threshold is not below it.
    np.add.at(counts, (1 - same.astype(np.int64), fold, np.searchsorted(thresholds, dist, side="right")), 1)
    return counts.cumsum(axis=2)[:, :, :-1]


def _val(dist: np.ndarray, same: np.ndarray, fold: np.ndarray, folds: int, target: float) -> tuple[float, float, float]:
    """Returns mean and deviation of the true accept rate, and the mean false accept rate, at a training FAR.

    The threshold is interpolated linearly; where several thresholds meet the rate exactly it is the largest (the
    protocol's interp1d(kind="slinear") refuses such repetitions in today's SciPy).
    """
    below = _below(dist, same, fold, folds, FINE)
    totals = np.stack([np.bincount(fold[kind], minlength=folds) for kind in (same, ~same)])  # (2, folds)
    found = np.zeros((2, folds))
    for test in range(folds):
        far = (below[1].sum(axis=0) - below[1, test]) / (totals[1].sum() - totals[1, test])  # (thresholds,)
        threshold = float(np.interp(target, far, FINE)) if far.max() >= target else 0.0
        mine = fold == test
        for kind, flags in enumerate((same, ~same)):
            chosen = mine & flags
            found[kind, test] = np.count_nonzero(dist[chosen] < threshold) / max(1, np.count_nonzero(chosen))
    return float(found[0].mean()), float(found[0].std()), float(found[1].mean())


def _interval(correct: np.ndarray, samples: int, seed: int) -> tuple[float, float] | None:
    """Returns the middle 95 % of the accuracies of resampled pairs; drawing P outcomes is a binomial draw."""
    if not samples:
        return None
    drawn = np.random.default_rng(seed).binomial(len(correct), correct.mean(), samples) / len(correct)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def raw_pixels(images: np.ndarray) -> np.ndarray:
    """Returns what images are as embeddings without any training: (N, H * W * 3) float32, each less its mean.

    Args:
        images: (N, H, W, 3) uint8.
    """
    flat = images.reshape(len(images), -1).astype(np.float32)
    return flat - flat.mean(axis=1, keepdims=True)

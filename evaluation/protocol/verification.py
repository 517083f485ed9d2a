"""The field's verification numbers, exactly as InsightFace's protocol computes them, without its loops.

For every pair the squared L2 distance of the normalised embeddings; 10 folds in order; on each fold the first of the
thresholds 0, 0.01, ..., 3.99 that is best on the nine others, a pair counting as the same person below it.

Source: the equations of deepinsight/insightface, recognition/arcface_torch/eval/verification.py, and of
davidsandberg/facenet, src/facenet.py, from which they come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from evaluation.protocol.intervals import EXACT, THRESHOLDS, Cells, Figures
from faceshards.errors import FaceshardsError

Interval = tuple[float, float]
_ROWS = 256  # pairs normalised at a time: 2 MB of float64 at 512 components, which stays in a core's cache


class VerificationError(FaceshardsError):
    """Embeddings or pairs from which no number with a meaning follows."""


@dataclass(frozen=True)
class Verification:
    """What was measured on a set. Rates are 0 to 1, thresholds squared distances, intervals 95 % or None.

    Args:
        pairs: their number.
        accuracy: mean over the folds.
        std: population standard deviation over the folds.
        interval: of the accuracy.
        fold_accuracies: (folds,).
        fold_thresholds: (folds,).
        val: mean true accept rate at the false accept rate 1e-3 of the other folds.
        val_std: over the folds.
        far: mean false accept rate met.
        tar: true accept rate at false accept rates, over all pairs; None where too few impostor pairs measure it.
        auc: area under the ROC curve.
        eer: equal error rate.
        xnorm: mean norm of the embeddings.
        warnings: what to bear in mind.
        impostors: pairs of two persons.
        threshold: mean of the folds' thresholds.
        best_threshold: the first threshold that is best for all pairs together.
        best_accuracy: of all pairs at it; it was chosen on these pairs, so it flatters.
        fold_vals: (folds,), NaN for a fold without a pair of one person.
        fold_fars: (folds,) false accept rates met, NaN for a fold without a pair of two persons.
        val_interval: of val.
        tar_intervals: of tar, by false accept rate.
        eer_interval: of eer.
        auc_interval: of auc.
    """

    pairs: int
    accuracy: float
    std: float
    interval: Interval | None
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
    impostors: int = 0
    threshold: float = 0.0
    best_threshold: float = 0.0
    best_accuracy: float = 0.0
    fold_vals: tuple[float, ...] = ()
    fold_fars: tuple[float, ...] = ()
    val_interval: Interval | None = None
    tar_intervals: dict[float, Interval | None] = field(default_factory=dict)
    eer_interval: Interval | None = None
    auc_interval: Interval | None = None

    @property
    def threshold_cosine(self) -> float:
        """The cosine above which a pair is judged one person: of `threshold`."""
        return 1 - self.threshold / 2

    @property
    def best_threshold_cosine(self) -> float:
        """The cosine of `best_threshold`."""
        return 1 - self.best_threshold / 2


def fold_of(pairs: int, folds: int) -> np.ndarray:
    """Returns (P,) int64, the fold of each pair: runs of equal length, the first ones longer by one if need be.

    Source: sklearn.model_selection.KFold(folds, shuffle=False).
    """
    return np.repeat(np.arange(folds), pairs // folds + (np.arange(folds) < pairs % folds))


def mean_norm(embeddings: np.ndarray) -> float:
    """Returns the mean L2 norm of embeddings (..., D).

    XNorm as InsightFace prints it is that of the images' and the mirror images' embeddings, (2, 2P, D), before they
    are added.
    """
    rows = embeddings.reshape(-1, embeddings.shape[-1])
    blocks = [rows[first : first + 2 * _ROWS].astype(np.float64) for first in range(0, len(rows), 2 * _ROWS)]
    return float(np.mean(np.sqrt(np.concatenate([np.einsum("nd,nd->n", block, block) for block in blocks]))))


def distances(embeddings: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the pairs' squared distances (P,) float64 and the mean norm of the embeddings.

    Whatever the embeddings' dtype, this is computed in float64: the protocol keeps a network's outputs in float64
    arrays before anything else. To be equal to it to the last digit, add float32 views as float64.

    Args:
        embeddings: (2P, D) float, of image and mirror image added, not normalised; rows 2k and 2k + 1 are a pair.

    Raises:
        VerificationError: no such array; a row is not finite, or has no length.
    """
    if embeddings.ndim != 2 or embeddings.dtype.kind != "f" or len(embeddings) % 2:
        raise VerificationError(f"embeddings are {embeddings.dtype} {list(embeddings.shape)}, not floats [2 P, D]")
    norms, dist = np.empty(len(embeddings)), np.empty(len(embeddings) // 2)
    for first in range(0, len(dist), _ROWS):
        # Widened, divided, subtracted, squared: the protocol's operations in its order, block by block.
        rows = embeddings[2 * first : 2 * (first + _ROWS)].astype(np.float64)  # (2 * _ROWS, D)
        length = norms[2 * first : 2 * (first + _ROWS)]
        np.sqrt(np.einsum("nd,nd->n", rows, rows), out=length)
        # sklearn.preprocessing.normalize leaves what is shorter than this as it is: no length to divide by.
        for what, wrong in (("not finite", ~np.isfinite(length)), ("zero", length < 10 * np.finfo(np.float64).eps)):
            if wrong.any():
                raise VerificationError(f"embedding {2 * first + int(wrong.argmax())} is {what}")
        rows /= length[:, None]
        difference = rows[0::2]
        difference -= rows[1::2]
        np.sum(np.square(difference), axis=1, out=dist[first : first + _ROWS])
    return dist, float(norms.mean())


def verify(
    embeddings: np.ndarray,
    same: np.ndarray,
    *,
    folds: int = 10,
    fars: Sequence[float] = (1e-3, 1e-4),
    bootstrap: int = 1000,
    seed: int = 0,
    xnorm: float | None = None,
) -> Verification:
    """Returns what the protocol measures.

    Args:
        embeddings: (2P, D) float; see distances().
        same: (P,) bool.
        folds: of the pairs in their order.
        fars: false accept rates at which the true accept rate is wanted.
        bootstrap: resamples of the intervals, 0 for none. A resample draws pairs with replacement within each fold, and
            the whole protocol runs on it, choice of thresholds included.
        seed: of these draws.
        xnorm: mean norm to report, see mean_norm(); that of `embeddings` if None.

    Raises:
        VerificationError: an accuracy would be meaningless: all pairs alike, fewer pairs than folds, a fold whose
            other folds hold one kind only, or an embedding that is not finite.
    """
    same = np.asarray(same, bool)
    if len(embeddings) != 2 * len(same):
        raise VerificationError(f"{len(embeddings)} embeddings for {len(same)} pairs")
    check_pairs(same, folds)
    dist, norm = distances(np.asarray(embeddings))
    return verify_distances(
        dist, same, folds=folds, fars=fars, bootstrap=bootstrap, seed=seed, xnorm=norm if xnorm is None else xnorm
    )


def verify_distances(
    dist: np.ndarray,
    same: np.ndarray,
    *,
    folds: int = 10,
    fars: Sequence[float] = (1e-3, 1e-4),
    bootstrap: int = 1000,
    seed: int = 0,
    xnorm: float = 0.0,
) -> Verification:
    """Returns what the protocol measures from squared distances (P,) float64; the rest as in verify().

    Raises:
        VerificationError: as verify(); or a distance is not between 0 and 4, which none of unit vectors is.
    """
    check_pairs(same, folds)
    if len(dist) != len(same):
        raise VerificationError(f"{len(dist)} distances for {len(same)} pairs")
    if not (dist.min() >= 0 and dist.max() < 4.001):  # 4 and rounding; NaN is refused, too
        raise VerificationError(f"squared distances from {dist.min()} to {dist.max()}, not from 0 to 4")
    fold = fold_of(len(same), folds)
    cells = Cells(dist, same, fold, folds, exact=True)
    got, impostors = cells.measure(fars), int(np.count_nonzero(~same))
    measurable = [wanted * impostors >= 1 for wanted in fars]
    tar = {wanted: float(got.tar[0, i]) if measurable[i] else None for i, wanted in enumerate(fars)}
    intervals: dict[str, Interval | None] = dict.fromkeys(("accuracy", "val", "eer", "auc"))
    tar_intervals: dict[float, Interval | None] = dict.fromkeys(fars)
    if bootstrap:
        if len(same) > EXACT:
            cells = Cells(dist, same, fold, folds, exact=False)
        drawn = cells.resample(fars, bootstrap, seed)
        intervals = {
            "accuracy": _middle(drawn.accuracies.mean(axis=1)),
            "val": _middle(_mean(drawn.vals)),
            "eer": _middle(drawn.eer),
            "auc": _middle(drawn.auc),
        }
        tar_intervals = {wanted: _middle(drawn.tar[:, i]) if measurable[i] else None for i, wanted in enumerate(fars)}
    accuracies, thresholds = got.accuracies[0], THRESHOLDS[got.chosen[0]]
    vals = got.vals[0][np.isfinite(got.vals[0])]
    met = got.met[0][np.isfinite(got.met[0])]
    return Verification(
        len(same), float(np.mean(accuracies)), float(np.std(accuracies)), intervals["accuracy"],
        tuple(accuracies.tolist()), tuple(thresholds.tolist()), float(np.mean(vals)), float(np.std(vals)),
        float(np.mean(met)), tar, float(got.auc[0]), float(got.eer[0]), xnorm,
        tuple(_warnings(dist, same, folds, got, intervals["accuracy"])), impostors, float(np.mean(thresholds)),
        float(THRESHOLDS[got.best[0]]), float(got.best_accuracy[0]), tuple(got.vals[0].tolist()),
        tuple(got.met[0].tolist()), intervals["val"], tar_intervals, intervals["eer"], intervals["auc"],
    )  # fmt: skip


def check_pairs(same: np.ndarray, folds: int = 10) -> None:
    """Refuses pairs of which an accuracy would mean nothing.

    Args:
        same: (P,) bool.
        folds: of the pairs in their order.

    Raises:
        VerificationError: all pairs alike, fewer pairs than folds, or a fold whose other folds hold one kind only.
    """
    if folds < 2:
        raise VerificationError(f"{folds} folds: a threshold is chosen on other folds, so it takes two")
    if len(same) < folds:
        raise VerificationError(f"{len(same)} pairs do not make {folds} folds")
    if same.all() or not same.any():
        raise VerificationError(f"all {len(same)} pairs are {'the same person' if same.all() else 'two persons'}")
    genuine = np.bincount(fold_of(len(same), folds)[same], minlength=folds)  # (folds,)
    sizes = np.bincount(fold_of(len(same), folds))
    for number in range(folds):
        others = genuine.sum() - genuine[number]
        if others in (0, len(same) - sizes[number]):
            raise VerificationError(f"without fold {number + 1} all pairs are of one kind")


def _warnings(
    dist: np.ndarray, same: np.ndarray, folds: int, got: Figures, interval: Interval | None
) -> list[str]:  # fmt: skip
    """Returns what to bear in mind about a measurement."""
    found = []
    if len(same) % folds:
        found.append(f"{len(same)} pairs do not make {folds} equal folds")
    for what, rates in (("the same person", got.vals[0]), ("two persons", got.met[0])):
        if lacking := int(np.count_nonzero(np.isnan(rates))):
            found.append(f"{lacking} of {folds} folds hold no pair of {what}; VAL and its FAR are of the others")
    # The share that is right when every pair gets the same answer: 0.5 for the field's sets.
    guess = max(same.mean(), 1 - same.mean())
    accuracy = got.accuracies[0].mean()
    low = interval[0] if interval else accuracy - 1.96 * np.sqrt(guess * (1 - guess) / len(same))
    if dist.max() < 1e-6:
        found.append(
            f"all embeddings are alike: the model says nothing, and {100 * guess:.4g} % is what guessing gives"
        )
    elif low <= guess:
        found.append(
            f"an accuracy of {100 * accuracy:.2f} % is not told from the {100 * guess:.4g} % that guessing gives"
        )
    return found


def _mean(rates: np.ndarray) -> np.ndarray:
    """Returns (R,), the means of (R, F) over the folds that have a rate."""
    known = np.isfinite(rates)
    with np.errstate(invalid="ignore"):
        return np.where(known, rates, 0).sum(axis=1) / known.sum(axis=1)


def _middle(drawn: np.ndarray) -> Interval | None:
    """Returns the middle 95 % of a figure's resamples (R,), None if none of them has it."""
    known = drawn[np.isfinite(drawn)]
    if not len(known):
        return None
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)

"""The field's verification numbers, exactly as InsightFace's protocol computes them, without its loops.

For every pair the squared L2 distance of the normalised embeddings; 10 folds in order; on each fold the first of the
thresholds 0, 0.01, ..., 3.99 that is best on the nine others, a pair counting as the same person below it.

Source: the equations of deepinsight/insightface, recognition/arcface_torch/eval/verification.py, and of
davidsandberg/facenet, src/facenet.py, from which they come.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.protocol.figures import Figure
from evaluation.protocol.intervals import EXACT, THRESHOLDS, Cells, Weighted
from evaluation.protocol.metrics import figures, measure, resample
from faceshards.errors import FaceshardsError

_ROWS = 256  # pairs normalised at a time: 2 MB of float64 at 512 components, which stays in a core's cache


class VerificationError(FaceshardsError):
    """Embeddings or pairs from which no number with a meaning follows."""


@dataclass(frozen=True)
class Verification:
    """What was measured on a set. Rates are 0 to 1, thresholds squared distances.

    Args:
        figures: by name; see evaluation.protocol.metrics.
        pairs: their number.
        impostors: pairs of two persons.
        fold_accuracies: (folds,).
        fold_thresholds: (folds,).
        fold_vals: (folds,), NaN for a fold without a pair of one person.
        fold_fars: (folds,) false accept rates met, NaN for a fold without a pair of two persons.
        best_threshold: the first threshold that is best for all pairs together.
        best_accuracy: of all pairs at it; it was chosen on these pairs, so it flatters.
        xnorm: mean norm of the embeddings.
        warnings: what to bear in mind.
    """

    figures: dict[str, Figure]
    pairs: int
    impostors: int
    fold_accuracies: tuple[float, ...]
    fold_thresholds: tuple[float, ...]
    fold_vals: tuple[float, ...]
    fold_fars: tuple[float, ...]
    best_threshold: float
    best_accuracy: float
    xnorm: float
    warnings: tuple[str, ...]

    def value(self, name: str) -> float:
        """Returns a figure's value, NaN where it was not measurable."""
        value = self.figures[name].value
        return math.nan if value is None else value

    @property
    def std(self) -> float:
        """Population standard deviation of the accuracy over the folds."""
        return float(np.std(self.fold_accuracies))

    @property
    def val_std(self) -> float:
        """Of VAL over the folds that have it, likewise."""
        return float(np.std(_known(self.fold_vals)))

    @property
    def far(self) -> float:
        """Mean false accept rate met at VAL's thresholds, over the folds that have it."""
        return float(np.mean(_known(self.fold_fars)))

    @property
    def threshold(self) -> float:
        """Mean of the folds' thresholds."""
        return float(np.mean(self.fold_thresholds))

    @property
    def threshold_cosine(self) -> float:
        """The cosine above which a pair is judged one person: of `threshold`."""
        return 1 - self.threshold / 2

    @property
    def best_threshold_cosine(self) -> float:
        """The cosine of `best_threshold`."""
        return 1 - self.best_threshold / 2


def _known(rates: tuple[float, ...]) -> np.ndarray:
    """Returns the rates that are numbers."""
    found = np.array(rates)
    return found[np.isfinite(found)]


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
    one = Weighted(cells, cells.counts[None], fars)
    measured, judged, (vals, met) = measure(one), one.judged, one.vals
    del one  # its running sums are as long as the pairs
    resampled = None
    if bootstrap:
        if len(same) > EXACT:
            cells = Cells(dist, same, fold, folds, exact=False)
        resampled = resample(cells, fars, bootstrap, seed)
    found = figures(measured, resampled)
    return Verification(
        figures=found,
        pairs=len(same),
        impostors=cells.impostors,
        fold_accuracies=tuple(judged.accuracies[0].tolist()),
        fold_thresholds=tuple(THRESHOLDS[judged.chosen[0]].tolist()),
        fold_vals=tuple(vals[0].tolist()),
        fold_fars=tuple(met[0].tolist()),
        best_threshold=float(THRESHOLDS[judged.best[0]]),
        best_accuracy=float(judged.best_accuracy[0]),
        xnorm=xnorm,
        warnings=tuple(_warnings(dist, same, found["accuracy"], vals[0], met[0])),
    )


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
    dist: np.ndarray, same: np.ndarray, measured: Figure, vals: np.ndarray, fars: np.ndarray
) -> Iterator[str]:
    """Yields what to bear in mind about a measurement.

    Args:
        dist: (P,) squared distances.
        same: (P,) bool.
        measured: the accuracy.
        vals: (folds,) of VAL, NaN for none.
        fars: (folds,) the false accept rates met, likewise.
    """
    folds = len(vals)
    if len(same) % folds:
        yield f"{len(same)} pairs do not make {folds} equal folds"
    for what, rates in (("the same person", vals), ("two persons", fars)):
        if lacking := int(np.count_nonzero(np.isnan(rates))):
            yield f"{lacking} of {folds} folds hold no pair of {what}; VAL and its FAR are of the others"
    # The share that is right when every pair gets the same answer: 0.5 for the field's sets.
    guess = max(same.mean(), 1 - same.mean())
    accuracy = measured.value or 0.0
    low = measured.interval[0] if measured.interval else accuracy - 1.96 * np.sqrt(guess * (1 - guess) / len(same))
    if dist.max() < 1e-6:
        yield f"all embeddings are alike: the model says nothing, and {100 * guess:.4g} % is what guessing gives"
    elif low <= guess:
        yield f"an accuracy of {100 * accuracy:.2f} % is not told from the {100 * guess:.4g} % that guessing gives"

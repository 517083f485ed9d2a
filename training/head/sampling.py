"""Which classes a step trains: every class of the batch, and negatives drawn to fill up a fixed number.

The labels alone decide the sample, so it is drawn on the host before the step, and every step has the same shapes.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from faceshards.errors import ConfigError, FaceshardsError

Ids = npt.NDArray[np.int64]


class LabelError(FaceshardsError):
    """A label names no class."""


class Sampler:
    """Draws the classes of a slice that a step trains: always the same number, a pure function of (seed, step, rank).

    Args:
        start: the first class of the slice.
        count: number of classes in the slice.
        rate: share of the slice trained in a step, above 0 and at most 1; 1 takes every class.
        seed: of the run.
        rank: so that two slices draw differently.
        classes: number of classes over all ranks; labels from there on are refused. Without it only negative labels
            are, since a label behind this slice may be another rank's.

    Source: Partial FC, arXiv 2010.05222, section 3: positives always, negatives at random.
    """

    def __init__(
        self, start: int, count: int, rate: float, seed: int, rank: int = 0, classes: int | None = None
    ) -> None:
        if not 0 < rate <= 1:
            raise ConfigError(f"sample rate {rate!r} is not above 0 and at most 1")
        self.start = start
        self.count = count
        self.rate = rate
        self.seed = seed
        self.rank = rank
        self.classes = classes
        self.size = count if rate == 1 else max(1, int(rate * count))  # S

    def check(self, global_batch: int) -> None:
        """Refuses a rate at which a batch of so many labels could hold more of these classes than the sample.

        One process of many gets but a share of the labels. Allowed for are twice the share that its classes are of all,
        as identities differ in images, and twelve deviations more: by Chernoff's bound less than 1e-15 a step. Should
        it come to that all the same, sample() refuses.

        Args:
            global_batch: number of labels in a batch over all ranks.

        Raises:
            ConfigError: names the smallest rate that works.
        """
        share = 2 * global_batch * self.count / (self.classes or self.count)
        need = min(global_batch, self.count, math.ceil(share + 12 * math.sqrt(share) + 12))
        if self.size < need:
            rate = math.ceil(need / self.count * 1e6) / 1e6
            while rate < 1 and int(rate * self.count) < need:
                rate = round(rate + 1e-6, 6)
            raise ConfigError(
                f"sample_rate: {self.rate:g} of {self.count} classes a process is {self.size} rows, but a batch of "
                f"{global_batch} can hold {need} of these classes: the smallest rate that works is {rate:g}"
            )

    def sample(self, labels: npt.NDArray[np.integer], step: int) -> tuple[Ids, npt.NDArray[np.int32]]:
        """Returns the classes that this step trains and where the labels stand among them.

        Args:
            labels: (G,) integer, the global classes of the whole batch of all ranks.
            step: of the run.

        Returns:
            ids (S,) int64, sorted, distinct, all in this slice, every label of the slice among them; targets (G,)
            int32, the place of each label in ids, -1 when another rank holds it.

        Raises:
            LabelError: a label below 0 or, with `classes` given, beyond the last class.
            ConfigError: the batch holds more of these classes than the sample has rows.
        """
        labels = np.asarray(labels)
        wrong = labels < 0
        if self.classes is not None:
            wrong |= labels >= self.classes
        if wrong.any():
            row = int(wrong.argmax())
            known = "" if self.classes is None else f" of the {self.classes} from 0 to {self.classes - 1}"
            raise LabelError(f"label {labels[row]} (row {row} of the batch) is not a class{known}")
        local = labels.astype(np.int64) - self.start  # (G,)
        mine = (local >= 0) & (local < self.count)
        positives = np.unique(local[mine])
        if len(positives) > self.size:
            raise ConfigError(
                f"step {step}: the batch holds {len(positives)} of this process's classes, but the sample has "
                f"{self.size} rows (rate {self.rate:g} of {self.count} classes): use a larger rate"
            )
        ids = self._fill(positives, step)  # (S,) local
        targets = np.where(mine, np.searchsorted(ids, local), -1).astype(np.int32)
        return ids + self.start, targets

    def _fill(self, positives: Ids, step: int) -> Ids:
        """Returns the sorted positives and as many other classes as bring them to S, every choice equally likely."""
        if self.size == self.count:
            return np.arange(self.count, dtype=np.int64)
        if self.size == len(positives):
            return positives
        rng = np.random.default_rng([self.seed, step, self.rank])
        missing, others = self.size - len(positives), self.count - len(positives)
        if 2 * missing <= others:
            ids = np.concatenate([positives, self._draw(rng, missing, positives)])
            ids.sort()
            return ids
        absent = self._draw(rng, others - missing, positives)  # fewer to leave out than to take
        stays = np.ones(self.count, bool)  # O(count), which is at most twice S here
        stays[absent] = False
        return np.flatnonzero(stays)

    def _draw(self, rng: np.random.Generator, wanted: int, without: Ids) -> Ids:
        """Returns `wanted` distinct classes of the slice that are not in the sorted `without`, in O(wanted) work.

        Equal draws are thrown away, then what is too many, at random: neither prefers a class. `wanted` is at most
        half of the candidates, so a few rounds are enough.
        """
        drawn = np.empty(0, np.int64)
        while len(drawn) < wanted:
            lack = wanted - len(drawn)
            share = (len(drawn) + len(without) + lack / 2) / self.count  # of the new draws that hit a known one
            fresh = rng.integers(0, self.count, int(lack / max(0.25, 1 - share)) + 16)
            drawn = np.unique(np.concatenate([drawn, fresh]))
            if len(without):
                drawn = drawn[without[np.searchsorted(without, drawn).clip(max=len(without) - 1)] != drawn]
        surplus = len(drawn) - wanted
        return np.delete(drawn, rng.choice(len(drawn), surplus, replace=False)) if surplus else drawn

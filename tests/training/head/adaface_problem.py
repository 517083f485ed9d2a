"""A small problem that AdaFace trains, and the same training written down in float64: one matrix and class centres.

It shares no code with the training: the centres are dense, every row moves at every step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tests.training.head.head_oracle import AdaFace, head
from tests.training.linear import DIM, INPUTS, linear_step
from training.centers.class_centers import ClassCenters, slice_of
from training.centers.first_values import initial_rows
from training.centers.rules import Sgd
from training.head.margins.adaface import AdaFaceMargin
from training.head.sampling import Sampler

CLASSES, BATCH, STEPS = 41, 16, 200  # 41: slices of 21 and 20 classes; BATCH: over all ranks
LR, MOMENTUM, DECAY, SCALE = 0.02, 0.9, 5e-4, 16.0
UNIT = 2.0**-23  # between 1 and the next float32
NUDGES, FACTOR = 3, 10  # see worst()

_rng = np.random.default_rng(3)
_faces = _rng.normal(size=(CLASSES, INPUTS))
LABELS = _rng.integers(0, CLASSES, (STEPS, BATCH))
# A factor of its own makes some embeddings long and others short, as good and poor pictures are.
IMAGES = _faces[LABELS] + 0.3 * _rng.normal(size=(STEPS, BATCH, INPUTS))
IMAGES = (IMAGES * _rng.uniform(0.2, 3, (STEPS, BATCH, 1))).astype(np.float32)
WEIGHT = (3 * _rng.normal(size=(DIM, INPUTS))).astype(np.float32)
FIRST = initial_rows(4, np.arange(CLASSES), DIM, 1)  # of the class centres


@dataclass
class Course:
    """What is compared: loss, mean and deviation after each step, and where matrix and centres end."""

    steps: list[tuple[float, float, float]] = field(default_factory=list)
    weight: np.ndarray | None = None
    centers: np.ndarray | None = None


class Training:
    """The project's: a step over one matrix, with the AdaFace margin and this rank's class centres."""

    def __init__(self, group, rate=1.0, store="memory", **settings):
        settings = {"amp": "O0", "momentum": MOMENTUM, "weight_decay": DECAY, **settings}
        self.parts = settings.get("accumulate", 1)
        self.step, self.weight = linear_step(WEIGHT, group, AdaFaceMargin(scale=SCALE), **settings)
        self.group = group
        rule = Sgd(momentum=MOMENTUM, weight_decay=DECAY)
        self.centers = ClassCenters(
            CLASSES, DIM, rank=group.rank, world=group.world, seed=4, rule=rule, store=store, std=1
        )
        slices = [slice_of(rank, group.world, CLASSES) for rank in range(group.world)]
        self.samplers = [Sampler(*part, rate, 9, rank, CLASSES) for rank, part in enumerate(slices)]
        self.samples = []  # of all ranks, by step
        self.course = Course()

    def run(self, first, last):
        """Does the steps from `first` on; returns the course so far."""
        own = BATCH // self.group.world
        own = slice(self.group.rank * own, (self.group.rank + 1) * own)
        for number in range(first, last):
            samples = [sampler.sample(LABELS[number], number) for sampler in self.samplers]
            self.samples.append(np.concatenate([ids for ids, _ in samples]))
            ids, targets = samples[self.group.rank]
            rows = self.centers.gather(ids)
            loss, _, d_rows = self.step(IMAGES[number][own], rows, targets.reshape(self.parts, -1), LR, number)
            if d_rows is not None:
                self.centers.update(ids, d_rows, LR)
            mean, deviation = (float(self.step.slots[f"margin.{name}"].asnumpy()) for name in ("mean", "deviation"))
            self.course.steps.append((loss, mean, deviation))
        self.course.weight = self.weight.asnumpy()
        self.course.centers = np.concatenate([block for _, block in self.centers.export_blocks()])
        return self.course


def transcription(samples, seed=None):
    """Returns the course in float64, over as many steps as there are samples.

    Args:
        samples: class ids of each step, of all ranks.
        seed: of roundings: every value is changed by one unit of float32 in its last place before each step.
    """
    rng = np.random.default_rng(seed)

    def rounded(array):
        return array if seed is None else array * (1 + UNIT * rng.choice([-1, 1], np.shape(array)))

    w, c = WEIGHT.astype(np.float64), FIRST.astype(np.float64)
    w_speed, c_speed = np.zeros_like(w), np.zeros_like(c)
    margin, course = AdaFace(), Course()
    for number, ids in enumerate(samples):
        w, c, x = rounded(w), rounded(c), rounded(IMAGES[number].astype(np.float64))
        margin.mean, margin.deviation = rounded(margin.mean), rounded(margin.deviation)
        embeddings = x @ w.T
        targets = np.searchsorted(ids, LABELS[number])
        loss, d_embeddings, d_rows = head(embeddings, c[ids], targets, scale=SCALE, margin=margin(embeddings))
        d_centers = np.zeros_like(c)
        d_centers[ids] = d_rows
        w_speed = MOMENTUM * w_speed + d_embeddings.T @ x + DECAY * w
        c_speed = MOMENTUM * c_speed + d_centers + DECAY * c
        w, c = w - LR * w_speed, c - LR * c_speed
        course.steps.append((loss, margin.mean, margin.deviation))
    course.weight, course.centers = w, c
    return course


def worst(training):
    """Returns by what is compared the largest distance to float64, as a multiple of what roundings of float32 make.

    A training may have gone on from a checkpoint; then its last steps are compared.

    One rounding of every value and step is measured; a step has several, so the multiple is some units.
    """
    course, centers = training.course, training.centers
    want, *changed = (transcription(training.samples, seed) for seed in (None, *range(NUDGES)))
    found = {}
    for i, name in enumerate(("loss", "mean", "deviation")):
        done = len(course.steps)
        exact, got, *others = (np.array([step[i] for step in one.steps[-done:]]) for one in (want, course, *changed))
        apart = np.maximum.accumulate(np.abs(np.array(others) - exact).max(axis=0))
        found[name] = float((np.abs(got - exact) / np.maximum(apart, UNIT * np.abs(exact))).max())
    own = slice(centers.start, centers.start + centers.count)
    for name, rows in (("weight", slice(None)), ("centers", own)):
        exact, *others = (getattr(one, name)[rows] for one in (want, *changed))
        apart = max(UNIT * np.abs(exact).max(), *(np.abs(other - exact).max() for other in others))
        found[name] = float(np.abs(getattr(course, name) - exact).max() / apart)
    return found

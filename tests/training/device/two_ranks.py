"""Run by msrun in test_distributed: two ranks train a few steps, and one process alone repeats them.

Writes, per rank, rank-R.json with the differences to one process and what the collectives returned.

The sums of two ranks are added up in another order than one rank's, so that what should be the same differs by float32
rounding, whose size depends on the processor. So it is measured here too: as what one process makes of values that are
changed by one unit in their last place.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from hashlib import sha256
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from tests.training.head.adaface_problem import CLASSES as ADAFACE_CLASSES
from tests.training.head.adaface_problem import STEPS as ADAFACE_STEPS
from tests.training.head.adaface_problem import Training, worst
from tests.training.linear import DIM as LINEAR
from tests.training.linear import INPUTS, integers, linear_step, momentum
from tests.training.tiny_backbone import tiny_backbone
from training import checkpoint
from training.centers.class_centers import ClassCenters, slice_of
from training.centers.rules import RULES
from training.config import TrainConfig
from training.device.distributed import Group, init
from training.device.prepare import prepare
from training.head.margins.combined import CombinedMargin
from training.head.partial_fc import Head
from training.head.sampling import Sampler
from training.state import Meta, RunState
from training.step import Reduce, Step

CLASSES, DIM, BATCH, STEPS = 203, 32, 8, 5  # 203: slices of 102 and 101 classes
MARGIN = CombinedMargin(1, 0.5, 0, 64.0, 0.3)
UNIT, HALF = 2.0**-23, 2.0**-10  # between 1 and the next float32, and float16
HALFWAY = ADAFACE_STEPS // 2
LEVELS = ("O0", "O2")  # of mixed precision
NUDGES = 3  # other roundings of one process
LONG, SEARCH = (400, 500), 30  # numbers; calls, after which MindSpore has tried every cut of an array


class Matrix(nn.Cell):
    """Backbone (one matrix), head and the backbone's gradient in one graph."""

    def __init__(self, group, matrix):
        super().__init__()
        self.head = Head(group, MARGIN)
        self.group = group
        self.matrix = ms.Parameter(ms.Tensor(matrix), name="matrix")
        self.slope = ops.grad(self.project, None, ms.ParameterTuple([self.matrix]))

    def project(self, x, d_embeddings):
        return (ops.matmul(x, self.matrix) * ops.stop_gradient(d_embeddings)).sum()

    @ms.jit
    def construct(self, x, rows, targets):
        loss, d_embeddings, d_rows = self.head(ops.stop_gradient(ops.matmul(x, self.matrix)), rows, targets)
        return loss, d_embeddings, d_rows, self.group.sum(self.slope(x, d_embeddings)[0])


class Collectives(nn.Cell):
    """Every collective inside a graph."""

    def __init__(self, group):
        super().__init__()
        self.group = group

    @ms.jit
    def construct(self, x):
        return self.group.gather(x), self.group.sum(x), self.group.max(x)


def nudged(array, rng, unit=UNIT):
    """Returns a float32 array of which every value is changed by one unit in its last place, up or down."""
    return (array * (1 + unit * rng.choice([-1, 1], array.shape))).astype(np.float32)


class Differences:
    """The largest differences to one process by what was compared, in units of what rounding makes of one process."""

    def __init__(self, unit=UNIT):
        self.unit = unit
        self.worst: dict[str, float] = {}

    def add(self, name, got, alone, changed):
        """Args: got: of several ranks; alone: of one; changed: of one, from other roundings."""
        rounding = max([self.unit * np.abs(alone).max(), *(np.abs(other - alone).max() for other in changed)])
        self.worst[name] = max(self.worst.get(name, 0.0), float(np.abs(got - alone).max() / rounding))


def train(group, many, one, rate, kind):
    """Returns the differences of a few steps of the centres.

    Args:
        group: the ranks.
        many: a Matrix on all ranks.
        one: the same in this process alone.
        rate: of the sample.
        kind: of the centres' updates.
    """
    rng = np.random.default_rng(0)
    rule = RULES[kind]()
    mine = ClassCenters(CLASSES, DIM, rank=group.rank, world=group.world, seed=4, rule=rule)
    others = [ClassCenters(CLASSES, DIM, seed=4, rule=rule) for _ in range(1 + NUDGES)]  # the first as it is
    sampler = Sampler(mine.start, mine.count, rate, 9, group.rank, CLASSES)
    sampler.check(BATCH * group.world)
    found = Differences()
    for step in range(STEPS):
        labels = rng.integers(0, CLASSES, BATCH * group.world)
        x = rng.normal(size=(BATCH * group.world, DIM)).astype(np.float32)  # (G, D), the same on both
        own = slice(group.rank * BATCH, (group.rank + 1) * BATCH)
        ids, targets = sampler.sample(labels, step)
        got = many(ms.Tensor(x[own]), ms.Tensor(mine.gather(ids)), ms.Tensor(targets))
        loss, d_embeddings, d_rows, slope = (part.asnumpy() for part in got)
        union = np.concatenate(group.gather_object(ids))
        places = ms.Tensor(np.searchsorted(union, labels).astype(np.int32))
        alone = []
        for number, centers in enumerate(others):
            rows, images = centers.gather(union), x
            if number:
                rows, images = nudged(rows, rng), nudged(x, rng)
            alone.append([part.asnumpy() for part in one(ms.Tensor(images), ms.Tensor(rows), places)])
        losses, all_embeddings, all_rows, slopes = zip(*alone, strict=True)
        lr = (0.02 if kind == "sgd" else 1e-3) / (step + 1)
        mine.update(ids, d_rows, lr)
        for centers, gradient in zip(others, all_rows, strict=True):
            centers.update(union, gradient, lr)
        found.add("loss", loss, losses[0], losses[1:])
        found.add("d_embeddings", d_embeddings, all_embeddings[0][own], [part[own] for part in all_embeddings[1:]])
        here = np.isin(union, ids)
        found.add("d_rows", d_rows, all_rows[0][here], [part[here] for part in all_rows[1:]])
        found.add("d_backbone", slope, slopes[0], slopes[1:])
    here = slice(mine.start, mine.start + mine.count)
    ends = [np.concatenate([block for _, block in centers.export_blocks(64)])[here] for centers in others]
    found.add("rows", np.concatenate([block for _, block in mine.export_blocks(40)]), ends[0], ends[1:])
    return found.worst


class WholeStep:
    """A backbone with batch norm, head and centres, put together as the training loop does.

    Calling it returns what one step from the first values gives, by kind and name.
    """

    def __init__(self, group, amp):
        self.group = group
        self.unit = UNIT if amp == "O0" else HALF
        backbone = tiny_backbone(DIM, 1, False)
        scale = 1 if amp == "O0" else 1024
        # Without clipping and weight decay the optimiser's momentum is the gradient.
        config = TrainConfig(clip=0, weight_decay=0, sync_bn=True, amp=amp, loss_scale=scale)
        prepare(backbone, config, group)
        self.step = Step(config, backbone, Head(group, CombinedMargin(1, 0.5, 0, 16.0)), group)
        self.weights = backbone.parameters_dict()
        self.momentum = self.step.slots
        self.first = {name: found.asnumpy().copy() for name, found in (self.weights | self.momentum).items()}

    def __call__(self, images, labels, seed=None):
        """Args: images (G, 3, 112, 112); labels (G,); seed: of a nudge of all first values, or None."""
        rng = np.random.default_rng(seed)
        change = (lambda array: array) if seed is None else partial(nudged, rng=rng, unit=self.unit)
        for name, found in (self.weights | self.momentum).items():
            ops.assign(found, ms.Tensor(change(self.first[name])))
        group = self.group
        centers = ClassCenters(CLASSES, DIM, rank=group.rank, world=group.world, seed=4, rule=RULES["sgd"]())
        ids, targets = Sampler(centers.start, centers.count, 1.0, 9, group.rank, CLASSES).sample(labels, 0)
        rows = change(centers.gather(ids))
        own = len(images) // group.world
        images = images[group.rank * own : (group.rank + 1) * own]
        loss, norm, d_rows = self.step(images, rows, targets.reshape(1, -1), 0.1, 0)
        d_rows = d_rows.asnumpy()
        centers.update(ids, d_rows, 0.1)
        found = {("loss", ""): np.array(loss), ("norm", ""): np.array(norm), ("d_rows", ""): d_rows}
        found["rows", ""] = np.concatenate([block for _, block in centers.export_blocks()])
        for name, weight in self.weights.items():
            found["statistics" if "moving" in name else "weights", name] = weight.asnumpy().copy()
        for name, gradient in self.momentum.items():
            if name not in self.weights:
                found["gradients", name] = gradient.asnumpy().copy()
        return found


def compare_steps(group):
    """Returns the differences of one step at two levels of mixed precision, by level and kind.

    What one process makes of it, one rank finds out for both: the first at O0, the last at O2.
    """
    rng = np.random.default_rng(6)
    images = rng.normal(size=(BATCH * group.world, 3, 112, 112)).astype(np.float32)
    labels = rng.integers(0, CLASSES, BATCH * group.world)
    one = WholeStep(Group(), LEVELS[group.rank])
    alone = group.gather_object([one(images, labels, seed) for seed in (None, *range(NUDGES))])
    start, count = slice_of(group.rank, group.world, CLASSES)
    worst = []
    for amp, (straight, *nudges) in zip(LEVELS, alone, strict=True):
        many = WholeStep(group, amp)
        found = Differences(many.unit)
        for (kind, name), got in many(images, labels).items():
            own = slice(start, start + count) if kind in ("rows", "d_rows") else ...
            found.add(kind, got, straight[kind, name][own], [part[kind, name][own] for part in nudges])
        worst.append(found.worst)
    return worst


def overflow(group):
    """Returns of every step which loss scale it left and whether it was skipped, and a digest of what it moved.

    Rank 1 has short embeddings, whose gradients are long: they are too large for float16 when rank 0's are not. Rank 0
    takes the steps alone, too, before both take them together.
    """
    rng = np.random.default_rng(8)
    weight, images = integers(rng, LINEAR, INPUTS), integers(rng, BATCH * group.world, INPUTS)
    images[BATCH:] *= np.float32(2.0**-12)
    labels = rng.integers(0, CLASSES, BATCH * group.world)
    found = {}
    for name, ranks in (("alone", Group()), ("together", group)):
        if name == "alone" and group.rank:
            group.barrier()  # waits for rank 0, longer than the test lets a node be silent
            continue
        step, moved = linear_step(weight, ranks)
        centers = ClassCenters(CLASSES, LINEAR, rank=ranks.rank, world=ranks.world, seed=4, rule=RULES["sgd"]())
        sampler = Sampler(centers.start, centers.count, 1.0, 9, ranks.rank, CLASSES)
        mine = labels if ranks.world > 1 else labels[:BATCH]
        found[name] = []
        for number in range(STEPS + 10):
            ids, targets = sampler.sample(mine, number)
            own = images[ranks.rank * BATCH : (ranks.rank + 1) * BATCH]
            _, _, d_rows = step(own, centers.gather(ids), targets.reshape(1, -1), 0.1, number)
            if d_rows is not None:
                centers.update(ids, d_rows, 0.1)
            digest = sha256(moved.asnumpy().tobytes() + momentum(step).tobytes()).hexdigest()
            found[name].append([step.scale.value, d_rows is None, digest, centers.step])
        if name == "alone":
            group.barrier()
    return found


def adaface(group, folder):
    """Returns the differences of AdaFace's training to float64, and its statistics and samples by step.

    A checkpoint of half of the steps is written into the folder.
    """
    training = Training(group, rate=0.8)
    training.run(0, HALFWAY)
    kept = {name: value.asnumpy() for name, value in training.step.slots.items()}
    weights = {training.weight.name: training.weight.asnumpy()}
    meta = Meta(RunState(HALFWAY), lanes=8, fingerprint="", classes=ADAFACE_CLASSES, world=group.world, config={})
    checkpoint.save(folder, meta, group, weights, kept, training.centers)
    course = training.run(HALFWAY, ADAFACE_STEPS)
    statistics = [step[1:] for step in course.steps]
    samples = [ids.tolist() for ids in training.samples]
    return {"worst": worst(training), "statistics": statistics, "samples": samples}


def norms(group):
    """Returns the norm of the same gradients, more of them than MindSpore sums in one piece, of each of many steps."""
    gradient = ms.Tensor(np.random.default_rng(3).standard_normal(LONG, np.float32))
    reduce = Reduce(group, ms.ParameterTuple([ms.Parameter(gradient, name="long")]))
    return [float(reduce((gradient,), ms.Tensor(1.0, ms.float32))[1].asnumpy()) for _ in range(SEARCH)]


def main():
    group = init("CPU")
    x = ms.Tensor(np.array([[1, -5], [2, 7]], np.float32) * (1 if group.rank == 0 else -2))
    matrix = np.random.default_rng(1).normal(size=(DIM, DIM)).astype(np.float32)
    cells = Matrix(group, matrix), Matrix(Group(), matrix)
    straight, halved = compare_steps(group)
    result = {
        "world": group.world,
        "objects": group.gather_object({"rank": group.rank}),
        "eager": [part.asnumpy().tolist() for part in (group.gather(x), group.sum(x), group.max(x))],
        "graph": [part.asnumpy().tolist() for part in Collectives(group)(x)],
        "rate 0.3": train(group, *cells, 0.3, "sgd"),
        "adamw": train(group, *cells, 0.3, "adamw"),
        "backbone": straight,
        "backbone in float16": halved,
        "overflow": overflow(group),
        "norms": norms(group),
        "adaface": adaface(group, Path(sys.argv[1], "checkpoints")),
    }
    Path(sys.argv[1], f"rank-{group.rank}.json").write_text(json.dumps(result), encoding="utf-8")
    group.barrier()


if __name__ == "__main__":
    main()

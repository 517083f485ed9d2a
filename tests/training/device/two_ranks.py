"""Run by msrun in test_distributed: two ranks train a few steps, and one process alone repeats them.

Writes, per rank, rank-R.json with the largest differences to one process and what the collectives returned.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from training.centers.class_centers import ClassCenters
from training.centers.rules import RULES
from training.device.distributed import Group, init
from training.head.margins.combined import CombinedMargin
from training.head.partial_fc import Head
from training.head.sampling import Sampler

CLASSES, DIM, BATCH, STEPS = 203, 32, 8, 5  # 203: slices of 102 and 101 classes
MARGIN = CombinedMargin(1, 0.5, 0, 64.0, 0.3)


class Step(nn.Cell):
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


def train(group, rate, kind):
    """Returns the largest difference to one process, by what was compared."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(DIM, DIM)).astype(np.float32)
    many, one = Step(group, matrix), Step(Group(), matrix)
    rule = RULES[kind]()
    mine = ClassCenters(CLASSES, DIM, rank=group.rank, world=group.world, seed=4, rule=rule)
    whole = ClassCenters(CLASSES, DIM, seed=4, rule=rule)
    sampler = Sampler(mine.start, mine.count, rate, 9, group.rank, CLASSES)
    sampler.check(BATCH * group.world)
    worst: dict[str, float] = {}

    def differ(name, got, want):
        got, want = np.asarray(got), np.asarray(want)
        assert got.shape == want.shape, (name, got.shape, want.shape)
        worst[name] = max(worst.get(name, 0), float(np.abs(got - want).max() / max(1, np.abs(want).max())))

    for step in range(STEPS):
        labels = rng.integers(0, CLASSES, BATCH * group.world)
        x = rng.normal(size=(BATCH * group.world, DIM)).astype(np.float32)  # (G, D), the same on both
        own = slice(group.rank * BATCH, (group.rank + 1) * BATCH)
        ids, targets = sampler.sample(labels, step)
        got = many(ms.Tensor(x[own]), ms.Tensor(mine.gather(ids)), ms.Tensor(targets))
        loss, d_embeddings, d_rows, slope = (part.asnumpy() for part in got)
        union = np.concatenate(group.gather_object(ids))
        places = np.searchsorted(union, labels).astype(np.int32)
        alone = one(ms.Tensor(x), ms.Tensor(whole.gather(union)), ms.Tensor(places))
        differ("loss", loss, alone[0].asnumpy())
        differ("d_embeddings", d_embeddings, alone[1].asnumpy()[own])
        differ("d_rows", d_rows, alone[2].asnumpy()[np.isin(union, ids)])
        differ("d_backbone", slope, alone[3].asnumpy())
        lr = (0.02 if kind == "sgd" else 1e-3) / (step + 1)
        mine.update(ids, d_rows, lr)
        whole.update(union, alone[2].asnumpy(), lr)
    rows = np.concatenate([block for _, block in mine.export_blocks(40)])
    differ("rows", rows, np.concatenate([b for _, b in whole.export_blocks(64)])[mine.start : mine.start + mine.count])
    return worst


def main():
    group = init("CPU")
    x = ms.Tensor(np.array([[1, -5], [2, 7]], np.float32) * (1 if group.rank == 0 else -2))
    result = {
        "world": group.world,
        "objects": group.gather_object({"rank": group.rank}),
        "eager": [part.asnumpy().tolist() for part in (group.gather(x), group.sum(x), group.max(x))],
        "graph": [part.asnumpy().tolist() for part in Collectives(group)(x)],
        "rate 1": train(group, 1.0, "sgd"),
        "rate 0.3": train(group, 0.3, "sgd"),
        "adamw": train(group, 0.3, "adamw"),
    }
    Path(sys.argv[1], f"rank-{group.rank}.json").write_text(json.dumps(result), encoding="utf-8")
    group.barrier()


if __name__ == "__main__":
    main()

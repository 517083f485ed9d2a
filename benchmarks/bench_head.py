"""One step of the Partial FC head (sample, gather, loss and gradients, update) beside the reference's dense update.

First table: the same sampled step at 360,232 classes, here and as the reference does it (arcface_torch PartialFC_V2:
the sampled rows are indexed out of a dense weight, whose dense gradient and momentum an SGD step moves). The reference
side needs PyTorch; without it the same dense formula runs in NumPy around this project's head, and the table says so.
Second table: from 125 thousand to 10 million classes, at a fixed sample and at rate 0.1: cost follows the sample.

Every row is measured in a process of its own; the embeddings are noise, which costs the same as faces.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil

DIM, RATE, LR, MOMENTUM, DECAY, SCALE, MARGIN = 512, 0.1, 0.1, 0.9, 5e-4, 64.0, 0.5
FIXED = 12_500  # rows: rate 0.1 at 125,000 classes
PUBLISHED = """Published by the reference (8 x V100-32GB, whole training step, images/s | MB a GPU):

| identities | data parallel | model parallel | Partial FC 0.1 |
|---|---|---|---|
| 125 k | 4,681 / 7,358 | 4,824 / 5,306 | 5,004 / 4,868 |
| 1 M | 2,090 / 23,708 | 3,449 / 9,966 | 4,803 / 5,620 |
| 5.5 M | out of memory | 1,389 / 32,188 | 3,975 / 9,854 |
| 29 M | - | out of memory | 1,855 / 32,324 |
"""


def memory() -> tuple[float, float]:
    """Returns this process's peak resident and present anonymous memory in GB."""
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return tuple(int(fields[name].split()[0]) / 1e6 for name in ("VmHWM", "RssAnon"))


def batches(classes: int, batch: int, steps: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns labels (B,) and embeddings (B, D) per step."""
    rng = np.random.default_rng(0)
    return [(rng.integers(0, classes, batch), rng.normal(size=(batch, DIM)).astype(np.float32)) for _ in range(steps)]


def sparse(
    classes: int, rate: float, batch: int, steps: int, folder: Path | None = None, dense: bool = False
) -> dict[str, Any]:
    """Measures this project's step: `steps` samples of rows mostly new, then the same samples again, all known.

    With a folder the centres lie in a file there; with dense, gather and update are the reference's dense formula in
    NumPy instead.
    """
    import mindspore as ms
    from mindspore import nn, ops

    from training.centers.class_centers import ClassCenters
    from training.device.distributed import Group
    from training.head.margins.combined import CombinedMargin
    from training.head.partial_fc import Head
    from training.head.sampling import Sampler

    class Graph(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.head = Head(Group(), CombinedMargin(1, MARGIN, 0, SCALE))

        @ms.jit
        def construct(self, x: ms.Tensor, rows: ms.Tensor, targets: ms.Tensor) -> tuple[ms.Tensor, ...]:
            return self.head(ops.stop_gradient(x), rows, targets)

    sampler = Sampler(0, classes, rate, 0)
    graph = Graph()
    rows = np.zeros((sampler.size, DIM), np.float32)
    graph(*(ms.Tensor(a) for a in (batches(1, batch, 1)[0][1], rows + 1, np.zeros(batch, np.int32))))[2].asnumpy()
    if dense:
        weight = np.random.default_rng(0).normal(0, 0.01, (classes, DIM)).astype(np.float32)
        momentum, gradient = np.zeros_like(weight), np.zeros_like(weight)
    else:
        centers = ClassCenters(classes, DIM, store="disk" if folder else "memory", folder=folder)
    phases: dict[str, list[list[float]]] = {"new": [], "known": []}
    data = batches(classes, batch, steps)
    for kind, times in phases.items():
        for step, (labels, x) in enumerate(data):
            clock = [time.perf_counter()]

            def lap(clock: list[float] = clock) -> None:
                clock.append(time.perf_counter())

            ids, targets = sampler.sample(labels, step)
            lap()
            rows = np.take(weight, ids, axis=0, out=rows, mode="clip") if dense else centers.gather(ids)
            lap()
            loss, _, d_rows = graph(ms.Tensor.from_numpy(x), ms.Tensor.from_numpy(rows), ms.Tensor(targets))
            grads = d_rows.asnumpy()
            float(loss)
            lap()
            if dense:
                gradient[:] = 0
                gradient[ids] = grads
                gradient += DECAY * weight
                momentum *= MOMENTUM
                momentum += gradient
                weight -= LR * momentum
            else:
                centers.update(ids, grads, LR)
            lap()
            times.append(np.diff(clock).tolist())
        if dense and kind == "new":
            phases = {"new": times, "known": times}  # no difference to a dense weight
            break
    return {"size": sampler.size, **phases, "memory": memory()}


def pytorch(classes: int, rate: float, batch: int, steps: int) -> dict[str, Any]:
    """Measures the reference's step in PyTorch: PartialFC_V2's sampling and CombinedMarginLoss, torch.optim.SGD."""
    import torch
    from torch.nn.functional import cross_entropy, linear, normalize

    weight = torch.nn.Parameter(torch.normal(0, 0.01, (classes, DIM)))
    optimizer = torch.optim.SGD([weight], LR, momentum=MOMENTUM, weight_decay=DECAY)
    size = int(rate * classes)
    times = []
    for labels, x in batches(classes, batch, steps + 1):
        start = time.perf_counter()
        targets, embeddings = torch.from_numpy(labels), torch.from_numpy(x).requires_grad_()
        with torch.no_grad():
            positive = torch.unique(targets, sorted=True)
            draw = torch.rand(classes)
            draw[positive] = 2.0
            index = torch.topk(draw, k=size)[1].sort()[0]
            targets = torch.searchsorted(index, targets)
        logits = linear(normalize(embeddings), normalize(weight[index])).clamp(-1, 1)
        with torch.no_grad():
            place = (torch.arange(batch), targets)
            logits.data[place] = (logits[place].arccos() + MARGIN).cos()
        loss = cross_entropy(logits * SCALE, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        times.append([time.perf_counter() - start])
    return {"size": size, "new": times[:1], "known": times[1:], "memory": memory()}


def apart(measure: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Returns what a function measures in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, arguments)


def median(steps: list[list[float]]) -> float:
    return statistics.median(sum(step) for step in steps)


@click.command()
@click.option("--classes", default=360_232, show_default=True, help="Classes of the first table.")
@click.option("--batch", default=64, show_default=True, help="Embeddings a step.")
@click.option("--steps", default=5, show_default=True, help="Steps measured.")
def main(classes: int, batch: int, steps: int) -> None:
    ours = apart(sparse, classes, RATE, batch, steps)
    if importlib.util.find_spec("torch"):
        name, reference = "reference, PyTorch", apart(pytorch, classes, RATE, batch, steps)
    else:
        name = "reference's dense formula in NumPy (no torch here)"
        reference = apart(sparse, classes, RATE, batch, steps, None, True)
    print(f"One step, {classes:,} classes, rate {RATE}, batch {batch}, {psutil.cpu_count()} cores (median, s):\n")
    print("| side | sampled | sample | gather | head | update | step | peak GB |\n|---|---|---|---|---|---|---|---|")
    for label, result, kind in (
        ("here, rows seen before", ours, "known"),
        ("here, rows mostly new", ours, "new"),
        (name, reference, "known"),
    ):
        parts = [statistics.median(part) for part in zip(*result[kind], strict=True)]
        cells = [f"{part:.3f}" for part in parts] if len(parts) == 4 else [""] * 4
        row = [label, f"{result['size']:,}", *cells, f"{median(result[kind]):.3f}", f"{result['memory'][0]:.2f}"]
        print("| " + " | ".join(row) + " |")
    print(f"\nThe reference takes {median(reference['known']) / median(ours['known']):.1f} times as long.\n")

    print("Cost follows the sample (rows exist when they are first sampled; 3 steps of new rows, 3 of known ones):\n")
    print("| classes | store | sampled | step s, rows new | step s, rows known | peak resident GB |")
    print("|---|---|---|---|---|---|")
    for many in (125_000, 1_000_000, 2_000_000, 10_000_000):
        for size in sorted({FIXED, int(RATE * many)}):
            fits = many * DIM * 8 < psutil.virtual_memory().total * 0.8  # all rows, as a long training touches them
            need = size * DIM * 4 * (6 + 6 * fits)
            if need > psutil.virtual_memory().available * 0.6:
                print(f"| {many:,} | | {size:,} | needs {need / 1e9:.0f} GB of memory | | |")
                continue
            with tempfile.TemporaryDirectory() as folder:
                got = apart(sparse, many, (size + 0.5) / many, batch, 3, None if fits else Path(folder))
            cells = (f"{median(got['new']):.3f}", f"{median(got['known']):.3f}", f"{got['memory'][0]:.2f}")
            print(f"| {many:,} | {'memory' if fits else 'disk'} | {got['size']:,} | {' | '.join(cells)} |")
    print(f"\n{PUBLISHED}")


if __name__ == "__main__":
    main()

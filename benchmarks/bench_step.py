"""One whole training step on this CPU, here and in PyTorch eager: forward, backward, Partial FC head, SGD update.

    python -m benchmarks.bench_step [--backbone mbf_narrow:64] [--steps 5]

The head has 10,000 classes at rate 0.1. Every side runs in a process of its own; the first step (compilation) is told
apart. PyTorch is measured where it is installed; its network is the one the tests compare with. `plain` is MindSpore
without training.device.cpu, on a smaller batch since it takes long.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import statistics
import time
from typing import Any

import click
import numpy as np

from faceshards.progress import peak_memory

CLASSES, SAMPLE, DIM = 10_000, 1000, 512


def batches(batch: int, steps: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns images (B, 3, 112, 112) and places of their classes in the sample (B,), by step."""
    rng = np.random.default_rng(0)
    return [
        (rng.uniform(-1, 1, (batch, 3, 112, 112)).astype(np.float32), rng.integers(0, SAMPLE, batch))
        for _ in range(steps)
    ]


def ours(name: str, batch: int, steps: int, adapt: bool = True) -> dict[str, Any]:
    """Measures MindSpore's step as the trainer makes it."""
    from training.backbones.registry import create_backbone
    from training.centers.class_centers import ClassCenters
    from training.config import TrainConfig
    from training.device.distributed import Group
    from training.device.prepare import prepare
    from training.head.margins.combined import CombinedMargin
    from training.head.partial_fc import Head
    from training.step import Step

    backbone, config = create_backbone(name), TrainConfig(backbone=name)
    if adapt:
        prepare(backbone, config, Group())
    step = Step(config, backbone, Head(Group(), CombinedMargin(1, 0.5, 0, 64)), Group())
    centers, ids = ClassCenters(CLASSES, DIM), np.arange(SAMPLE) * 10
    times = []
    for images, places in batches(batch, steps + 1):
        start = time.perf_counter()
        _, _, d_rows = step(images, centers.gather(ids), places.astype(np.int32).reshape(1, -1), 0.01, 0)
        assert d_rows is not None
        centers.update(ids, d_rows.asnumpy(), 0.01)
        times.append(time.perf_counter() - start)
    return {"times": times, "peak": peak_memory() / 1e9}


def pytorch(name: str, batch: int, steps: int) -> dict[str, Any]:
    """Measures PyTorch's step, eager."""
    import torch
    from torch.nn.functional import cross_entropy, linear, normalize

    from tests.training.backbones.torch_backbones import create

    model = create(name).train()
    weight = torch.nn.Parameter(0.01 * torch.randn(CLASSES, DIM))
    optimizer = torch.optim.SGD([*model.parameters(), weight], 0.01, momentum=0.9, weight_decay=5e-4)
    ids = torch.arange(SAMPLE) * 10
    times = []
    for images, places in batches(batch, steps + 1):
        start = time.perf_counter()
        targets = torch.from_numpy(places)
        logits = linear(normalize(model(torch.from_numpy(images))), normalize(weight[ids])).clamp(-1, 1)
        with torch.no_grad():
            place = (torch.arange(batch), targets)
            logits.data[place] = (logits[place].arccos() + 0.5).cos()
        optimizer.zero_grad()
        cross_entropy(64 * logits, targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5)
        optimizer.step()
        times.append(time.perf_counter() - start)
    return {"times": times, "peak": peak_memory() / 1e9}


@click.command()
@click.option(
    "--backbone", multiple=True, default=("mbf_narrow:64", "mbf:4", "r50:2"), show_default=True, help="Name and batch."
)
@click.option("--steps", default=3, show_default=True, help="Timed steps; the median counts.")
def main(backbone: tuple[str, ...], steps: int) -> None:
    print("| backbone | batch | side | first step s | step s | images/s | peak GB |\n|---|---|---|---|---|---|---|")
    for entry in backbone:
        name, _, size = entry.partition(":")
        batch = int(size or 16)
        sides: list[tuple[str, Any, tuple[Any, ...]]] = [("here", ours, (name, batch, steps))]
        small = max(2, batch // 16)
        sides.append(("plain", ours, (name, small, 2, False)))
        if importlib.util.find_spec("torch"):
            sides.append(("PyTorch eager", pytorch, (name, batch, steps)))
        for side, call, arguments in sides:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                got = pool.apply(call, arguments)
            first, *rest = got["times"]
            median = statistics.median(rest)
            print(
                f"| {name} | {arguments[1]} | {side} | {first:.1f} | {median:.3f} | {arguments[1] / median:.1f} "
                f"| {got['peak']:.2f} |",
                flush=True,
            )
    if not importlib.util.find_spec("torch"):
        print("\nPyTorch is not installed here: its side is missing.")


if __name__ == "__main__":
    main()

"""Embedding images on this CPU: MindSpore and ONNX Runtime, the same weights, the same images, the same code around.

    python -m benchmarks.bench_embed [--backbone mbf:256]

Encoded images go through evaluation.embedder.Embedder (decode, mirror image, batches of 64): once with the weights
loaded into MindSpore, once with the ONNX file that `faceshards export` writes of them. Every side runs in a process of
its own; compilation is told apart. Images a second count images, each with its mirror image.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from faceshards.progress import peak_memory


def prepare(folder: Path, name: str) -> None:
    """Writes untrained weights, and what the export makes of them."""
    from safetensors.numpy import save_file

    from evaluation.models.export import export
    from training.backbones.registry import create_backbone
    from training.weights.assign import to_torch

    save_file(to_torch(create_backbone(name)), folder / "weights.safetensors")
    export(folder / "weights.safetensors", folder / "weights.onnx", name)


def measure(path: Path, name: str, count: int) -> dict[str, Any]:
    """Returns the times and the first embeddings of a model on `count` images."""
    from evaluation.embedder import Embedder
    from evaluation.models.load import load_model
    from pipelines.synthetic.faces import encode_face

    images = [encode_face(0, identity, 0) for identity in range(count)]
    embedder = Embedder(load_model(path, name).forward)
    clock = [time.perf_counter()]
    embedder.views(images[:1])
    clock.append(time.perf_counter())
    views, _ = embedder.views(images)
    clock.append(time.perf_counter())
    peak = peak_memory() / 1e9
    return {"first": clock[1] - clock[0], "rate": count / (clock[2] - clock[1]), "peak": peak, "rows": views[0, :8]}


@click.command()
@click.option(
    "--backbone",
    "backbones",
    multiple=True,
    default=("mbf_narrow:2048", "mbf:256", "r50:128"),
    show_default=True,
    help="Name and number of images; may be repeated.",
)
def main(backbones: tuple[str, ...]) -> None:
    """Measures both sides of every backbone."""
    print(
        "| backbone | images | side | first batch s | images/s | peak GB | difference |\n|---|---|---|---|---|---|---|"
    )
    for entry in backbones:
        name, _, count = entry.partition(":")
        with tempfile.TemporaryDirectory() as folder:
            apart(prepare, Path(folder), name)
            sides = {
                "MindSpore": apart(measure, Path(folder, "weights.safetensors"), name, int(count)),
                "ONNX Runtime": apart(measure, Path(folder, "weights.onnx"), name, int(count)),
            }
        want = sides["MindSpore"]["rows"]
        for side, got in sides.items():
            difference = np.abs(got["rows"] - want).max() / np.abs(want).max()
            speed = f"{got['first']:.1f} | {got['rate']:.1f} | {got['peak']:.2f}"
            print(f"| {name} | {count} | {side} | {speed} | {difference:.1e} |")
        print(f"\nONNX Runtime is {sides['ONNX Runtime']['rate'] / sides['MindSpore']['rate']:.1f} times as fast.\n")


def apart(function: Any, *arguments: Any) -> Any:
    """Returns what a function gives in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


if __name__ == "__main__":
    main()

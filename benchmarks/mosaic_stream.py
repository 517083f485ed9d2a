"""The side of mosaicml-streaming in bench_stream_bucket, which starts it with an interpreter that has PyTorch.

    PYTHONPATH=. PYTHON benchmarks/mosaic_stream.py write FOLDER
    PYTHONPATH=. PYTHON benchmarks/mosaic_stream.py read REQUEST

`write` makes its shards of images.npz in FOLDER; `read` prints what epochs cost as one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

BATCH = 128
EPOCHS = 2


def measure(opened: Callable[[], Callable[[int], Iterable[Any]]], metrics: str) -> None:
    """Prints of each epoch images, CPU and wall-clock seconds, those until the first batch, and requests as JSON.

    Args:
        opened: opens a side, which is part of the first epoch, and returns what gives the batches of an epoch.
        metrics: where the server tells how many requests it had.
    """
    found, batches = [], None
    for epoch in range(EPOCHS):
        requests, cpu, start = requests_of(metrics), cpu_seconds(), time.perf_counter()
        batches = batches or opened()
        first, count = 0.0, 0
        for _ in batches(epoch):
            first = first or time.perf_counter() - start
            count += 1
        wall, cpu = time.perf_counter() - start, cpu_seconds() - cpu
        requests = requests_of(metrics) - requests
        found.append({"images": count * BATCH, "cpu": cpu, "wall": wall, "first": first, "requests": requests})
    print(json.dumps(found))


def requests_of(metrics: str) -> int:
    """Returns how many requests a server has answered until now."""
    with urllib.request.urlopen(metrics) as told:
        lines = told.read().decode().splitlines()
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith("SeaweedFS_s3_request_total{"))


def cpu_seconds() -> float:
    """Returns user and system time of this process and all below it, dead or alive."""
    return sum(os.times()[:4]) + sum(map(_of_process, _children(Path("/proc/self"))))


def _children(process: Path) -> list[Path]:
    lists = (path.read_text().split() for path in process.glob("task/*/children"))
    return [Path("/proc", number) for numbers in lists for number in numbers]


def _of_process(process: Path) -> float:
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK") + sum(map(_of_process, _children(process)))


def write(folder: Path) -> None:
    """Makes shards of images.npz in folder/mds, as many images in each as in ours."""
    from streaming import MDSWriter

    given = np.load(folder / "images.npz")
    data, ends, labels = given["data"], given["ends"], given["labels"]
    size = len(data) // int(given["shards"])
    with MDSWriter(columns={"image": "bytes", "label": "int"}, out=str(folder / "mds"), size_limit=size) as writer:
        for start, end, label in zip([0, *ends[:-1]], ends, labels, strict=True):
            writer.write({"image": data[start:end].tobytes(), "label": int(label)})


def read(request: dict[str, Any]) -> None:
    """Prints what its epochs cost: batches as the stream gives them, decoded, mirrored and scaled by the same calls."""
    import torch
    from streaming import StreamingDataset

    from training.data.transforms import scaled

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)

    def ready(samples: list[dict[str, Any]]) -> tuple[Any, Any]:
        images = torch.empty((len(samples), 3, 112, 112), dtype=torch.float32)
        into = images.numpy()
        mirrored = rng.integers(0, 2, len(samples))
        for i, sample in enumerate(samples):
            image = cv2.imdecode(np.frombuffer(sample["image"], np.uint8), cv2.IMREAD_COLOR_RGB)
            scaled(cv2.flip(image, 1) if mirrored[i] else image, into[i])
        return images, torch.tensor([sample["label"] for sample in samples])

    def opened() -> Callable[[int], Iterable[Any]]:
        dataset = StreamingDataset(
            remote=request["remote"],
            local=request["local"],
            cache_limit=request["cache_bytes"] or None,
            # Its default mixes such a set altogether, and so fetches a shard again for nearly every image.
            shuffle_block_size=request["mixed"] if request["cache_bytes"] else None,
            shuffle=True,
            batch_size=BATCH,
        )
        workers = request["workers"]
        loader = torch.utils.data.DataLoader(
            dataset, BATCH, num_workers=workers, collate_fn=ready, drop_last=True, persistent_workers=workers > 0
        )
        return lambda epoch: loader

    measure(opened, request["metrics"])


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]))
    else:
        read(json.loads(sys.argv[2]))

"""Images from published shards to ready batches: this stream beside MXNet's, MindSpore's, and bare decoding.

    python -m benchmarks.bench_stream [--images 8000] [--threads 1] [--threads 2]

A synthetic set is built in a temporary folder; MXNet gets the same encoded images as a .rec. Every side gives batches
of 128 float32 images, mirrored at random, RGB, (x / 255 - 0.5) / 0.5, channels first, and runs in a process of its own.
The clock starts after a first pass over the data, which also fills the page cache; CPU is user and system time.
Bare decoding is cv2.imdecode alone, of bytes in memory.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np

from faceshards.progress import peak_memory

BATCH = 128
SIDES = (
    "stream",
    "stream, order=window",
    "stream behind GeneratorDataset",
    "MindDataset",
    "ImageRecordIter",
    "cv2.imdecode alone",
)


def build_set(folder: Path, images: int) -> None:
    """Renders a set into folder/set and builds it into folder/data, 32 shards: four a lane."""
    from pipelines.synthetic.write import SyntheticSpec, write_set

    write_set(
        folder / "set", SyntheticSpec(identities=max(8, images // 40), images=images, defects=0, unseen=0, pairs=0)
    )
    command = [sys.executable, "-m", "faceshards", "build", "--source", str(folder / "set")]
    command += ["--out", str(folder / "data"), "--set", "shards=32"]
    subprocess.run(command, check=True, capture_output=True)


def prepare(folder: Path, images: int) -> None:
    """Builds a set, and writes its images once more as MXNet wants them."""
    from evaluation.models import mxnet_import
    from faceshards.dataset.manifest import Manifest
    from faceshards.formats.mindrecord.reader import Shard

    build_set(folder, images)
    mx = mxnet_import.load()
    data = Manifest(folder / "data")
    record = mx.recordio.MXIndexedRecordIO(str(folder / "plain.idx"), str(folder / "plain.rec"), "w")
    number = 0
    for name in data.table("shards", ["file"])["file"].to_pylist():
        with Shard(data.shard_path(name)) as shard:
            for label, _, image in shard.rows():
                header = mx.recordio.IRHeader(0, float(label), number, 0)
                record.write_idx(number, mx.recordio.pack(header, bytes(image)))
                number += 1
    record.close()


def epochs(side: str, folder: Path, threads: int) -> Callable[[], Iterable[Any]]:
    """Returns what gives a side's batches of one epoch."""
    from faceshards.dataset.manifest import Manifest

    data = Manifest(folder / "data")
    if side.startswith("stream"):
        from training.data.layout import Layout
        from training.data.stream import Stream

        order = "window" if side.endswith("window") else "global"
        stream = Stream(data, Layout(data, 1, BATCH), threads=threads, check_shards=False, order=order)
        if not side.endswith("GeneratorDataset"):
            return lambda: stream.batches(0)
        import mindspore.dataset as msds

        return lambda: msds.GeneratorDataset(
            lambda: stream.batches(0), ["images", "labels"], shuffle=False, num_parallel_workers=1
        ).create_tuple_iterator(num_epochs=1, output_numpy=True)
    if side == "MindDataset":
        import mindspore.dataset as msds
        from mindspore.dataset import vision

        msds.config.set_num_parallel_workers(threads)
        files = [str(data.shard_path(name)) for name in data.table("shards", ["file"])["file"].to_pylist()]
        pixels = [vision.Decode(), vision.RandomHorizontalFlip(), vision.Normalize([127.5] * 3, [127.5] * 3)]
        ready = msds.MindDataset(files, columns_list=["image", "label"], shuffle=True)
        ready = ready.map([*pixels, vision.HWC2CHW()], "image").batch(BATCH, drop_remainder=True)
        return lambda: ready.create_tuple_iterator(num_epochs=1, output_numpy=True)
    if side == "ImageRecordIter":
        from evaluation.models import mxnet_import

        mx = mxnet_import.load()
        iterator = mx.io.ImageRecordIter(
            path_imgrec=str(folder / "plain.rec"),
            path_imgidx=str(folder / "plain.idx"),
            data_shape=(3, 112, 112),
            batch_size=BATCH,
            shuffle=True,
            rand_mirror=True,
            round_batch=False,
            preprocess_threads=threads,
            **{f"{kind}_{channel}": 127.5 for kind in ("mean", "std") for channel in "rgb"},
        )

        def run() -> Iterable[Any]:
            iterator.reset()
            for batch in iterator:
                batch.data[0].wait_to_read()
                yield batch

        return run
    from faceshards.formats.mindrecord.reader import Shard

    cv2.setNumThreads(0)
    encoded = []
    for name in data.table("shards", ["file"])["file"].to_pylist():
        with Shard(data.shard_path(name)) as shard:
            encoded += [np.frombuffer(bytes(image), np.uint8) for _, _, image in shard.rows()]
    parts = [encoded[i : i + BATCH] for i in range(0, len(encoded) - BATCH + 1, BATCH)]
    return lambda: ([cv2.imdecode(image, cv2.IMREAD_COLOR) for image in part] for part in parts)


def measure(side: str, folder: Path, threads: int, rounds: int) -> None:
    """Prints a side's medians as one line of JSON."""

    run = epochs(side, folder, threads)
    sum(1 for _ in run())
    found = []
    for _ in range(rounds):
        before, start = os.times(), time.perf_counter()
        count = BATCH * sum(1 for _ in run())
        wall, after = time.perf_counter() - start, os.times()
        cpu = after.user + after.system - before.user - before.system
        found.append((count / cpu, count / wall))
    cpu_rate, wall_rate = (statistics.median(part) for part in zip(*found, strict=True))
    peak = peak_memory() / 1e6
    print(json.dumps({"cpu": cpu_rate, "wall": wall_rate, "peak": peak}))


@click.command()
@click.option("--images", default=8000, show_default=True, help="Size of the set.")
@click.option("--threads", multiple=True, type=int, default=(1, 2), show_default=True, help="That decode.")
@click.option("--rounds", default=3, show_default=True, help="Timed epochs; the median counts.")
@click.option("--side", type=click.Choice(SIDES), hidden=True)
@click.option("--folder", type=click.Path(path_type=Path), hidden=True)
def main(images: int, threads: tuple[int, ...], rounds: int, side: str | None, folder: Path | None) -> None:
    if side and folder:
        measure(side, folder, threads[0], rounds)
        return
    with tempfile.TemporaryDirectory() as temporary:
        prepare(Path(temporary), images)
        found: dict[tuple[str, int], dict[str, float]] = {}
        for many in threads:
            for name in SIDES:
                command = [sys.executable, "-m", "benchmarks.bench_stream", "--side", name, "--folder", temporary]
                command += ["--threads", str(many), "--rounds", str(rounds)]
                done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "GLOG_v": "3"})
                if done.returncode:
                    sys.exit(f"{name}: {done.stderr[-2000:]}")
                found[name, many] = json.loads(done.stdout.splitlines()[-1])
        from faceshards.dataset.manifest import Manifest
        from training.data.layout import Layout
        from training.data.stream import Stream

        data = Manifest(Path(temporary) / "data")
        stream = Stream(data, Layout(data, 1, BATCH))
        metadata = stream.nbytes / len(stream.labels)
    print(f"{images:,} images of 112 x 112, batches of {BATCH}, {os.cpu_count()} cores:\n")
    print(
        "| side | threads | images / CPU s | images / s | CPU, to ImageRecordIter | CPU, to bare decoding | peak MB |"
    )
    print("|---|---|---|---|---|---|---|")
    for (name, many), got in found.items():
        ratios = [got["cpu"] / found[other, many]["cpu"] for other in ("ImageRecordIter", "cv2.imdecode alone")]
        rates = f"{got['cpu']:,.0f} | {got['wall']:,.0f} | {ratios[0]:.2f} | {ratios[1]:.0%}"
        print(f"| {name} | {many} | {rates} | {got['peak']:,.0f} |")
    print(f"\nThe stream keeps {metadata:.0f} MB about a million rows.")


if __name__ == "__main__":
    main()

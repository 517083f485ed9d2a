"""Images from a bucket to ready batches through a cache: this stream beside mosaicml-streaming, cold and warm.

    python -m benchmarks.bench_stream_bucket [--images 20000] [--rounds 3] [--mosaic-python PYTHON]

mosaicml-streaming needs PyTorch, so it has an environment of its own, with the decoder that is used here:

    python -m venv mosaic && mosaic/bin/pip install mosaicml-streaming torch opencv-python-headless==4.11.0.86

Both read the same encoded images (bench_build's) in as many shards from one SeaweedFS on this machine, and give batches
of 128 float32 images, RGB, mirrored at random, (x / 255 - 0.5) / 0.5, channels first, decoded and scaled by the same
calls. Each side is a process of its own and an empty cache: the first epoch, from opening the dataset on, fetches; the
second finds what the cache has room for. CPU is user and system time of the process and its workers, not the server's.
Requests are those that the server counts. This stream compares every shard with its SHA-256, the other none.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import click
import cv2
import numpy as np

from benchmarks.bench_build import render
from benchmarks.in_process import InProcess
from benchmarks.mosaic_stream import BATCH, EPOCHS, measure
from faceshards.checksums import file_digest
from faceshards.dataset.manifest import Manifest
from faceshards.formats.mindrecord.reader import Shard
from faceshards.storage.location import StoredPath, as_location

SHARDS = 64  # eight a lane: two windows of two are half of the set, but for some bytes
THREADS = 2  # or workers
PATIENCE = 300  # seconds until the other side counts as failed
INSTALL = "python -m venv mosaic && mosaic/bin/pip install mosaicml-streaming torch opencv-python-headless=={}"


class Side(NamedTuple):
    """What reads: of the stream in an order, of the other in a number of workers; and the share that a cache keeps."""

    name: str
    order: str
    workers: int
    kept: float


SIDES = (
    Side("stream, order=window", "window", 0, 1),
    Side("stream, order=global", "global", 0, 1),
    Side("mosaicml-streaming, 2 workers", "", THREADS, 1),
    Side("mosaicml-streaming, no workers", "", 0, 1),
    Side("stream, order=window", "window", 0, 0.51),
    Side("mosaicml-streaming, no workers", "", 0, 0.51),
)


def prepare(folder: Path, images: int, python: str | None) -> int:
    """Builds a set, uploads it, and what the other side makes of it; returns the bytes of its shards."""
    from pipelines.build import build
    from pipelines.config import BuildConfig
    from pipelines.sources.find import find_files

    render(folder, images)
    files, _ = find_files(folder / "train.rec")
    build("bench", files, folder / "data", BuildConfig(shards=SHARDS), InProcess(1, quiet=True))
    upload(folder / "data")
    data = Manifest(folder / "data")
    if python:
        plain(data, folder / "images.npz")
        if other(python, "write", str(folder)) is None:
            sys.exit(1)
        upload(folder / "mds")
    return int(sum(data.table("shards", ["bytes"])["bytes"].to_pylist()))


def upload(folder: Path) -> None:
    """Puts the files of a folder into the bucket, under its name."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            (StoredPath("s3", "bench", folder.name) / path.relative_to(folder)).upload(path, file_digest(path)[1])


def plain(data: Manifest, path: Path) -> None:
    """Writes the encoded images and labels of a dataset, one behind the other, for those who cannot read it."""
    found, labels = [], []
    for name in data.table("shards", ["file"])["file"].to_pylist():
        with Shard(data.shard_path(name)) as shard:
            for label, _, image in shard.rows():
                found.append(np.frombuffer(bytes(image), np.uint8))
                labels.append(label)
    np.savez(path, data=np.concatenate(found), ends=np.cumsum([*map(len, found)]), labels=labels, shards=SHARDS)


def other(python: str, *arguments: str) -> str | None:
    """Returns what the other side prints; None if it fails, which is said."""
    script = Path(__file__).with_name("mosaic_stream.py")
    environment = {**os.environ, "PYTHONPATH": str(script.parent.parent)}
    environment |= {"S3_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"], "AWS_DEFAULT_REGION": "us-east-1"}
    command = [python, str(script), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        click.echo(f"mosaicml-streaming failed: no end after {PATIENCE} s", err=True)
        return None
    if done.returncode:
        click.echo(f"mosaicml-streaming failed: {done.stderr.strip().splitlines()[-1]}", err=True)
        return None
    return done.stdout


def read(request: dict[str, Any]) -> None:
    """Prints what the stream's epochs cost."""

    def opened() -> Callable[[int], Iterable[Any]]:
        from training.data.layout import Layout
        from training.data.shard_cache import ShardCache
        from training.data.stream import Stream

        data = Manifest(as_location(request["remote"]))
        cache = ShardCache(Path(request["local"]), request["cache_bytes"])
        return Stream(data, Layout(data, 1, BATCH), threads=THREADS, cache=cache, order=request["order"]).batches

    import training.data.stream  # noqa: F401 - what is imported is no part of an epoch

    measure(opened, request["metrics"])


def epochs(side: Side, request: dict[str, Any], python: str | None) -> list[dict[str, float]]:
    """Returns what a side's epochs cost, from an empty cache on; nothing if it fails."""
    with tempfile.TemporaryDirectory() as cache:
        asked = json.dumps({**request, "local": cache, "order": side.order, "workers": side.workers})
        if side.order:
            command = [sys.executable, "-m", "benchmarks.bench_stream_bucket", "--side", asked]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{side.name}: {done.stderr[-2000:]}")
            return json.loads(done.stdout.splitlines()[-1])
        found = other(python, "read", asked) if python else None
        return json.loads(found.splitlines()[-1]) if found else []


def usable(python: str | None) -> str | None:
    """Returns an interpreter if it has mosaicml-streaming and the same decoder; says how to get one otherwise."""
    wanted = cv2.__version__
    asked = "import cv2, streaming, torch; print(cv2.__version__, streaming.__version__, torch.__version__)"
    found = subprocess.run([python, "-c", asked], capture_output=True, text=True) if python else None
    if found and found.stdout.startswith(f"{wanted} "):
        _, version, torch = found.stdout.split()
        print(f"mosaicml-streaming {version} with PyTorch {torch}\n")
        return python
    print(
        f"without mosaicml-streaming; to compare: {INSTALL.format(f'{wanted}.*')}, --mosaic-python mosaic/bin/python\n"
    )
    return None


@click.command()
@click.option("--images", default=20_000, show_default=True, help="Size of the set.")
@click.option("--rounds", default=3, show_default=True, help="Of each side; the median counts.")
@click.option("--mosaic-python", "python", help="An interpreter that has mosaicml-streaming.")
@click.option("--folder", type=click.Path(path_type=Path), help="Work here instead of in a temporary folder.")
@click.option("--side", hidden=True)
def main(images: int, rounds: int, python: str | None, folder: Path | None, side: str | None) -> None:
    if side:
        read(json.loads(side))
        return
    from tests.object_store import KEY, SECRET, free_ports, serving

    python = usable(python)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        root = Path(temporary)
        (root / "objects").mkdir()
        (port,) = free_ports(1)
        with serving(root / "objects", f"-metricsPort={port}", "-metricsIp=127.0.0.1") as endpoint:
            os.environ.update(AWS_ENDPOINT_URL=endpoint, AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY=SECRET)
            count = prepare(root, images, python)
            print(f"{images:,} images, {SHARDS} shards of {count / SHARDS / 1e6:.1f} MB, {os.cpu_count()} cores\n")
            print("| side | cache | epoch | images / CPU s | images / s | first batch s | requests |")
            print("|---|---|---|---|---|---|---|")
            for one in SIDES:
                if one.order or python:
                    bytes_kept = 0 if one.kept == 1 else round(one.kept * count)
                    request: dict[str, Any] = {"cache_bytes": bytes_kept, "metrics": f"http://127.0.0.1:{port}/metrics"}
                    request["mixed"] = images // 4  # as many as two shards of each lane have
                    request["remote"] = f"s3://bench/{'data' if one.order else 'mds'}"
                    report(one, [epochs(one, request, python) for _ in range(rounds)])


def report(side: Side, rounds: list[list[dict[str, float]]]) -> None:
    """Prints a side's lines, of each epoch one."""
    rounds = [one for one in rounds if one]
    for epoch in range(EPOCHS if rounds else 0):
        found = [one[epoch] for one in rounds]
        cpu, wall = (statistics.median(one["images"] / one[what] for one in found) for what in ("cpu", "wall"))
        first, requests = (statistics.median(one[what] for one in found) for what in ("first", "requests"))
        kept = "all" if side.kept == 1 else f"{side.kept:.0%}"
        print(
            f"| {side.name} | {kept} | {'second' if epoch else 'first'} | {cpu:,.0f} | {wall:,.0f} | {first:.2f} | "
            f"{requests:,.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

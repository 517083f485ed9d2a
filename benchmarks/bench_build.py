"""A whole build against one reduced decode of the same images, and against what a user does today.

Every side runs in a process of its own over the same .rec, on a warm page cache: user + system CPU seconds of the
process and all its children (wait4), wall clock, peak resident memory of the largest process, bytes left on disk.
Images are textured noise, JPEG of about 7 KB, 20 an identity, written by MXNet.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import click
import cv2
import numpy as np
import psutil

from evaluation.models import mxnet_import

PER_IDENTITY = 20


@dataclass
class Cost:
    """What a side took: CPU and wall-clock seconds, peak bytes of its main process and of any child, bytes on disk."""

    cpu: float
    wall: float
    main: int
    child: int
    disk: int


def render(folder: Path, images: int, quality: int = 92) -> None:
    """Writes train.rec and train.idx: noise on a coarse texture, so that JPEGs have a face's 7 KB and no near copy."""
    recordio = mxnet_import.load().recordio
    rng = np.random.default_rng(7)
    writer = recordio.MXIndexedRecordIO(str(folder / "train.idx"), str(folder / "train.rec"), "w")
    fine = rng.normal(0, 14, (64, 112, 112, 3)).astype(np.float32)
    for i in range(images):
        coarse = cv2.resize(
            rng.uniform(30, 225, (9, 9, 3)).astype(np.float32), (112, 112), interpolation=cv2.INTER_CUBIC
        )
        picture = np.clip(coarse + fine[i % 64], 0, 255).astype(np.uint8)
        data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        writer.write_idx(i, recordio.pack(recordio.IRHeader(0, float(i // PER_IDENTITY), i, 0), data))
    writer.close()


def side_decode(rec: str, out: str, images: int) -> None:
    """cv2 decodes every image to half-size gray, nothing else; prints its CPU seconds without reading the file."""
    from pipelines.sources.base import Partition
    from pipelines.sources.registry import scan

    cv2.setNumThreads(1)
    spent = 0.0
    size = os.path.getsize(rec)
    step = 64 << 20
    for start in range(0, size, step):
        stop = min(start + step, size)
        rows = scan(Partition(0, 0, "recordio", rec, start, stop, None, stop == size))
        begin = time.process_time()
        for image in rows.images:
            cv2.imdecode(image, cv2.IMREAD_REDUCED_GRAYSCALE_2)
        spent += time.process_time() - begin
    print(spent)


def side_png(rec: str, out: str, images: int) -> None:
    """MXNet reads, cv2 decodes in colour, PNG files in a folder per identity: mindface's path."""
    recordio = mxnet_import.load().recordio
    reader = recordio.MXRecordIO(rec, "r")
    for i in range(images):
        header, data = recordio.unpack(reader.read())
        folder = Path(out) / str(int(header.label))
        folder.mkdir(exist_ok=True)
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        cv2.imwrite(str(folder / f"{i}.png"), picture)


def side_filewriter(rec: str, out: str, images: int) -> None:
    """MXNet reads, MindSpore's FileWriter writes eight shards, no checks at all."""
    from mindspore.mindrecord import FileWriter

    recordio = mxnet_import.load().recordio
    reader = recordio.MXRecordIO(rec, "r")
    writer = FileWriter(str(Path(out) / "all.mindrecord"), shard_num=8)
    writer.add_schema({"image": {"type": "bytes"}, "label": {"type": "int32"}, "sid": {"type": "int64"}}, "faces")
    rows = []
    for i in range(images):
        header, data = recordio.unpack(reader.read())
        rows.append({"image": data, "label": int(header.label), "sid": i})
        if len(rows) == 1000 or i + 1 == images:
            writer.write_raw_data(rows)
            rows = []
    writer.commit()


def measure(command: list[str], out: Path) -> tuple[Cost, str]:
    """Returns what a command costs, and its output."""
    peak = {"main": 0, "child": 0}
    begin = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def watch() -> None:
        while process.poll() is None:
            try:
                main = psutil.Process(process.pid)
                peak["main"] = max(peak["main"], main.memory_info().rss)
                peak["child"] = max([peak["child"], *(p.memory_info().rss for p in main.children(recursive=True))])
            except psutil.Error:
                pass
            time.sleep(0.2)

    thread = threading.Thread(target=watch)
    thread.start()
    output = process.stdout.read() if process.stdout else ""
    thread.join()
    if process.wait():
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    disk = sum(path.stat().st_blocks * 512 for path in out.rglob("*") if path.is_file()) if out.exists() else 0
    return Cost(cpu, time.perf_counter() - begin, peak["main"], peak["child"], disk), output


@click.command()
@click.option("--images", default=100_000, show_default=True)
@click.option("--png-images", default=10_000, show_default=True, help="Images of the PNG path, which is slow.")
@click.option("--folder", type=click.Path(path_type=Path), help="Work here instead of in a temporary folder.")
@click.option("--side", hidden=True)
@click.argument("rest", nargs=-1)
def main(images: int, png_images: int, folder: Path | None, side: str | None, rest: tuple[str, ...]) -> None:
    """Print the cost of every side and the ratios."""
    if side:
        globals()[f"side_{side}"](rest[0], rest[1], images)
        return
    root = Path(tempfile.mkdtemp(dir=folder))
    try:
        compare(root, images, min(png_images, images))
    finally:
        shutil.rmtree(root)


def compare(root: Path, images: int, png_images: int) -> None:
    """Measures and prints all sides."""
    source = root / "set"
    source.mkdir()
    render(source, images)
    rec = source / "train.rec"
    size = rec.stat().st_size
    print(f"{images} images, {size / images:.0f} bytes a record, {size / 1e6:.0f} MB")
    python = [sys.executable]
    child = [*python, "-m", "benchmarks.bench_build", "--images"]
    _, text = measure([*child, str(images), "--side", "decode", str(rec), "-"], root / "none")
    decode = float(text)
    print(f"cv2 reduced gray decode alone: {decode / images * 1e6:.1f} CPU us/image")
    print(f"{'side':<24} {'images/s':>9} {'CPU us/image':>13} {'main MB':>8} {'worker MB':>10} {'disk MB':>8}")
    walls = {}
    for workers in (2, 1):
        out = root / f"out{workers}"
        build = [*python, "-m", "faceshards", "build", "--source", str(source), "--out", str(out), "--quiet"]
        cost, _ = measure([*build, "--workers", str(workers)], out)
        show(f"build, {workers} workers", cost, images)
        print(f"{'':<24} {cost.cpu / decode:.2f} times the decode")
        walls[workers] = cost.wall
        shutil.rmtree(out)
    print(f"2 workers over 1: {walls[1] / walls[2]:.2f} times faster")
    for name, count in (("filewriter", images), ("png", png_images)):
        out = root / name
        out.mkdir()
        cost, _ = measure([*child, str(count), "--side", name, str(rec), str(out)], out)
        show(f"MXNet -> {name}", cost, count)
        shutil.rmtree(out)


def show(name: str, cost: Cost, images: int) -> None:
    """Prints one line."""
    print(
        f"{name:<24} {images / cost.wall:>9.0f} {cost.cpu / images * 1e6:>13.1f} {cost.main / 1e6:>8.0f} "
        f"{cost.child / 1e6:>10.0f} {cost.disk / 1e6:>8.0f}",
        flush=True,
    )


if __name__ == "__main__":
    main()

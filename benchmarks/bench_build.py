"""A whole build against one reduced decode of the same images, and against what a user does today.

Every side runs in a process of its own over the same .rec, on a warm page cache: user + system CPU seconds of the
process and all its children (wait4), wall clock, peak resident memory of the largest process, bytes left on disk.
Images are textured noise, JPEG of about 7 KB, 20 an identity, written by MXNet. The stages are those of a build without
Dask, in one process that behaves as a worker does.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import cv2
import numpy as np
import psutil

from evaluation.models import mxnet_import
from pipelines.cluster import MALLOC

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


def side_stages(rec: str, out: str, images: int) -> None:
    """A whole build in this process; prints the CPU seconds of each stage, and last those of all the rest of it."""
    from benchmarks.in_process import InProcess
    from pipelines.build import build
    from pipelines.cluster import settle
    from pipelines.config import BuildConfig
    from pipelines.sources.find import find_files

    spent: Counter[str] = Counter()

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        begin = time.process_time()
        yield
        spent[stage] += time.process_time() - begin

    settle()
    files, _ = find_files(Path(rec))
    begin = time.process_time()
    build("stages", files, Path(out) / "set", BuildConfig(), InProcess(1, quiet=True, around=timed))
    rest = time.process_time() - begin - sum(spent.values())
    print(json.dumps({**spent, "decide and assemble": rest}))


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


def measure(command: list[str], out: Path, env: dict[str, str] | None = None) -> tuple[Cost, str]:
    """Returns what a command costs, and its output."""
    peak = {"main": 0, "child": 0}
    begin = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)

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
@click.option("--rounds", default=1, show_default=True, help="Builds of each kind, in turns; the cheapest counts.")
@click.option("--build-only", is_flag=True, help="Without the sides of FileWriter and PNG.")
@click.option("--folder", type=click.Path(path_type=Path), help="Work here instead of in a temporary folder.")
@click.option("--side", hidden=True)
@click.argument("rest", nargs=-1)
def main(
    images: int,
    png_images: int,
    rounds: int,
    build_only: bool,
    folder: Path | None,
    side: str | None,
    rest: tuple[str, ...],
) -> None:
    """Print the cost of every side and the ratios."""
    if side:
        globals()[f"side_{side}"](rest[0], rest[1], images)
        return
    root = Path(tempfile.mkdtemp(dir=folder))
    try:
        compare(root, images, 0 if build_only else min(png_images, images), rounds)
    finally:
        shutil.rmtree(root)


def compare(root: Path, images: int, png_images: int, rounds: int) -> None:
    """Measures and prints all sides; without `png_images` only builds and the decode."""
    source = root / "set"
    source.mkdir()
    render(source, images)
    rec = source / "train.rec"
    size = rec.stat().st_size
    print(f"{images} images, {size / images:.0f} bytes a record, {size / 1e6:.0f} MB")
    decode, costs = builds(root, rec, images, rounds)
    print(f"cv2 reduced gray decode alone: {decode / images * 1e6:.1f} CPU us/image")
    print(f"{'side':<24} {'images/s':>9} {'CPU us/image':>13} {'main MB':>8} {'worker MB':>10} {'disk MB':>8}")
    for workers, cost in costs.items():
        show(f"build, {workers} workers", cost, images)
        print(f"{'':<24} {cost.cpu / decode:.2f} times the decode")
    print(f"2 workers over 1: {costs[1].wall / costs[2].wall:.2f} times faster", flush=True)
    stages(root, rec, images, decode, costs[1])
    for name, count in (("filewriter", images), ("png", png_images)) if png_images else ():
        out = root / name
        out.mkdir()
        cost, _ = measure(_side(name, count, rec, str(out)), out)
        show(f"MXNet -> {name}", cost, count)
        shutil.rmtree(out)


def builds(root: Path, rec: Path, images: int, rounds: int) -> tuple[float, dict[int, Cost]]:
    """Returns CPU seconds of the decode, and costs of builds by 2 and by 1 workers; of each the cheapest round."""
    decodes: list[float] = []
    found: dict[int, list[Cost]] = {2: [], 1: []}
    for _ in range(rounds):
        decodes.append(float(measure(_side("decode", images, rec, "-"), root / "none")[1]))
        for workers, costs in found.items():
            out = root / f"out{workers}"
            build = [sys.executable, "-m", "faceshards", "build", "--source", str(rec.parent), "--out", str(out)]
            costs.append(measure([*build, "--quiet", "--workers", str(workers)], out)[0])
            shutil.rmtree(out)
    return min(decodes), {workers: min(costs, key=lambda cost: cost.cpu) for workers, costs in found.items()}


def stages(root: Path, rec: Path, images: int, decode: float, whole: Cost) -> None:
    """Prints the CPU of each stage, and what of a build by one worker is none of them."""
    env = {**os.environ, **{name: str(size) for name, size in MALLOC.items()}, "OMP_NUM_THREADS": "1"}
    out = root / "stages"
    out.mkdir()
    _, text = measure(_side("stages", images, rec, str(out)), out, env)
    shutil.rmtree(out)
    spent = json.loads(text.splitlines()[-1])
    spent["processes, imports, Dask"] = whole.cpu - sum(spent.values())
    print(f"{'stage':<24} {'CPU us/image':>13} {'times the decode':>17}")
    for name, seconds in spent.items():
        print(f"{name:<24} {seconds / images * 1e6:>13.1f} {seconds / decode:>17.3f}")


def _side(name: str, images: int, rec: Path, out: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.bench_build", "--images", str(images), "--side", name, str(rec), out]


def show(name: str, cost: Cost, images: int) -> None:
    """Prints one line."""
    print(
        f"{name:<24} {images / cost.wall:>9.0f} {cost.cpu / images * 1e6:>13.1f} {cost.main / 1e6:>8.0f} "
        f"{cost.child / 1e6:>10.0f} {cost.disk / 1e6:>8.0f}",
        flush=True,
    )


if __name__ == "__main__":
    main()

"""A whole build against one reduced decode of the same images, and against what a user does today.

Every side runs in a process of its own over the same .rec, on a warm page cache: user + system CPU seconds of the
process and all its children (wait4), wall clock, peak memory of the largest process (without pages of
files), bytes left on disk.
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

from benchmarks.render import render
from evaluation.models import mxnet_import
from pipelines.cluster import MALLOC

_BASE = 1_000  # images of the set whose build tells what a driver takes without any


@dataclass
class Cost:
    """What a side took: CPU and wall-clock seconds, peak bytes of its main process and of any child, bytes on disk."""

    cpu: float
    wall: float
    main: int
    child: int
    disk: int


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


def _own(process: psutil.Process) -> int:
    """Returns the bytes of a process that are no pages of files: those the system drops when it needs their room."""
    memory = process.memory_info()
    return int(memory.rss - memory.shared)


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
                peak["main"] = max(peak["main"], _own(main))
                peak["child"] = max([peak["child"], *map(_own, main.children(recursive=True))])
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
@click.option("--quality", default=92, show_default=True, help="Of the JPEGs; 88 makes 5.9 KB of them.")
@click.option("--png-images", default=10_000, show_default=True, help="Images of the PNG path, which is slow.")
@click.option("--rounds", default=1, show_default=True, help="Builds of each kind, in turns; the cheapest counts.")
@click.option("--workers", multiple=True, default=(2, 1), show_default=True, help="Of a build; may be repeated.")
@click.option("--build-only", is_flag=True, help="Without the sides of FileWriter and PNG.")
@click.option("--folder", type=click.Path(path_type=Path), help="Work here instead of in a temporary folder.")
@click.option("--side", hidden=True)
@click.argument("rest", nargs=-1)
def main(
    images: int,
    quality: int,
    png_images: int,
    rounds: int,
    workers: tuple[int, ...],
    build_only: bool,
    folder: Path | None,
    side: str | None,
    rest: tuple[str, ...],
) -> None:
    """Print the cost of every side and the ratios; of the stages, too, where there is a build by 1 worker."""
    if side:
        globals()[f"side_{side}"](rest[0], rest[1], images)
        return
    root = Path(tempfile.mkdtemp(dir=folder))
    try:
        source = root / "set"
        source.mkdir()
        begin = time.perf_counter()
        render(source, images, quality)
        size = (source / "train.rec").stat().st_size
        print(
            f"{images} images, {size / images:.0f} bytes a record, {size / 1e6:.0f} MB, "
            f"generated in {time.perf_counter() - begin:.0f} s",
            flush=True,
        )
        compare(root, images, 0 if build_only else min(png_images, images), rounds, workers)
    finally:
        shutil.rmtree(root)


def compare(root: Path, images: int, png_images: int, rounds: int, workers: tuple[int, ...]) -> None:
    """Measures and prints all sides; without `png_images` only builds and the decode."""
    rec = root / "set" / "train.rec"
    decode, costs = builds(root, rec, images, rounds, workers)
    print(f"cv2 reduced gray decode alone: {decode / images * 1e6:.1f} CPU us/image")
    numbers = f"{'images/s':>9} {'wall s':>7} {'CPU us/image':>13} {'main MB':>8} {'worker MB':>10} {'disk MB':>8}"
    print(f"{'side':<24} {numbers}")
    base = base_memory(root)
    for count, cost in costs.items():
        show(f"build, {count} workers", cost, images)
        print(
            f"{'':<24} {cost.cpu / decode:.2f} times the decode; the main process takes "
            f"{(cost.main - base) / images:.0f} bytes an image above the {base / 1e6:.0f} MB of a set of {_BASE}"
        )
    if {1, 2} <= costs.keys():
        print(f"2 workers over 1: {costs[1].wall / costs[2].wall:.2f} times faster", flush=True)
    if 1 in costs:
        stages(root, rec, images, decode, costs[1])
    for name, count in (("filewriter", images), ("png", png_images)) if png_images else ():
        out = root / name
        out.mkdir()
        cost, _ = measure(_side(name, count, rec, str(out)), out)
        show(f"MXNet -> {name}", cost, count)
        shutil.rmtree(out)


def builds(root: Path, rec: Path, images: int, rounds: int, workers: tuple[int, ...]) -> tuple[float, dict[int, Cost]]:
    """Returns CPU seconds of the decode, and costs of builds by so many workers; of each the cheapest round."""
    decodes: list[float] = []
    found: dict[int, list[Cost]] = {count: [] for count in workers}
    for _ in range(rounds):
        decodes.append(float(measure(_side("decode", images, rec, "-"), root / "none")[1]))
        for count, costs in found.items():
            costs.append(measure_build(root, rec.parent, count))
    return min(decodes), {count: min(costs, key=lambda cost: cost.cpu) for count, costs in found.items()}


def measure_build(root: Path, source: Path, workers: int) -> Cost:
    """Returns what a build costs."""
    out = root / f"out{workers}"
    build = [sys.executable, "-m", "faceshards", "build", "--source", str(source), "--out", str(out)]
    cost, _ = measure([*build, "--quiet", "--workers", str(workers)], out)
    shutil.rmtree(out)
    return cost


def base_memory(root: Path) -> int:
    """Returns the peak bytes of the main process of a build of next to nothing."""
    source = root / "base"
    source.mkdir()
    render(source, _BASE)
    return measure_build(root, source, 1).main


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
        f"{name:<24} {images / cost.wall:>9.0f} {cost.wall:>7.1f} {cost.cpu / images * 1e6:>13.1f} "
        f"{cost.main / 1e6:>8.0f} {cost.child / 1e6:>10.0f} {cost.disk / 1e6:>8.0f}",
        flush=True,
    )


if __name__ == "__main__":
    main()

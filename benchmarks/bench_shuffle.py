"""The two forms of the shuffle, from a disk and from a bucket: what they read, and what they cost.

Each build runs in this process, its stages one after the other, over the same .rec (bench_build's). Reads are those of
the source's bytes: a `pread` of the file, or a GET of the object from SeaweedFS on this machine. The disk's are from a
warm page cache, so that images/s show what a form costs and reads what a slow disk would take; --delay-ms makes the
store slow: a proxy in a process of its own (tests/fault_proxy.py) then answers so much later, and counts all requests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from benchmarks.in_process import InProcess
from benchmarks.render import render
from faceshards.dataset.manifest import Manifest
from faceshards.reading import RegularFile
from faceshards.storage.location import Location, StoredPath
from faceshards.storage.ranges import StoredFile
from pipelines.build import build
from pipelines.config import BuildConfig
from pipelines.sources.find import find_files

_STAGES = ("sign_partition", "route", "write")


class Reads:
    """Counts what is read of a source, by stage.

    Args:
        name: of its file.
    """

    def __init__(self, name: str) -> None:
        self.name, self.stage = name, ""
        self.count: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()

    @contextmanager
    def around(self, stage: str) -> Iterator[None]:
        """What is read within is the stage's."""
        begin, self.stage = time.perf_counter(), stage
        yield
        self.seconds[stage] += time.perf_counter() - begin
        self.stage = ""

    def note(self, size: int) -> None:
        """Adds a read to those of the stage."""
        self.count[self.stage] += 1
        self.bytes[self.stage] += size

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Has files and objects tell of each read."""
        opened, read, ranged = RegularFile.__init__, RegularFile._read, StoredFile._range

        def told_name(file: Any, path: Path | str) -> None:
            opened(file, path)
            file.is_source = Path(path).name == self.name

        def told(file: Any, offset: int, count: int) -> bytes:
            data = read(file, offset, count)
            if file.is_source:
                self.note(len(data))
            return data

        def told_range(file: Any, start: int, stop: int) -> bytes:
            self.note(stop - start)
            return ranged(file, start, stop)

        for kind, name, function in (
            (RegularFile, "__init__", told_name),
            (RegularFile, "_read", told),
            (StoredFile, "_range", told_range),
        ):
            setattr(kind, name, function)
        try:
            yield
        finally:
            for kind, name, function in (
                (RegularFile, "__init__", opened),
                (RegularFile, "_read", read),
                (StoredFile, "_range", ranged),
            ):
                setattr(kind, name, function)


def side(title: str, source: Location, out: Path, form: str, images: int) -> str:
    """Prints what a build costs; returns its fingerprint."""
    reads = Reads(source.name)
    files, _ = find_files(source)
    wall, cpu = time.perf_counter(), time.process_time()
    with reads.counting():
        build("bench", files, out, BuildConfig(), InProcess(1, quiet=True, shuffle=form, around=reads.around))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    figures = f"{images / wall:>9,.0f} {cpu / images * 1e6:>13.1f}"
    for stage in _STAGES:
        figures += f" {reads.seconds[stage]:>7.2f} {reads.count[stage]:>7,} {reads.bytes[stage] / images:>7,.0f}"
    print(f"{title:<22} {figures}", flush=True)
    found = Manifest(out).fingerprint
    shutil.rmtree(out)
    return found


@click.command()
@click.option("--images", default=10_000, show_default=True)
@click.option("--delay-ms", default=0.0, show_default=True, help="Added to each request to the store.")
@click.option("--folder", type=click.Path(path_type=Path), help="Work here instead of in a temporary folder.")
@click.option("--disk-only", is_flag=True, help="Without the sides that read from a store.")
def main(images: int, delay_ms: float, folder: Path | None, disk_only: bool) -> None:
    """Print a line for each form and place, and whether all made the same dataset."""
    root = Path(tempfile.mkdtemp(dir=folder))
    try:
        render(root, images)
        rec = root / "train.rec"
        print(f"{images:,} images, {rec.stat().st_size / images:.0f} bytes a record")
        stages = "".join(f" | {stage.removesuffix('_partition'):>5}: s, reads, B/img" for stage in _STAGES)
        print(f"{'side':<22} {'images/s':>9} {'CPU us/image':>13}{stages}")
        made = {side(f"disk, {form}", rec, root / "out", form, images) for form in ("direct", "spill")}
        if not disk_only:
            made |= from_store(rec, root, images, delay_ms)
        print("one fingerprint" if len(made) == 1 else f"NOT ONE FINGERPRINT: {made}")
    finally:
        shutil.rmtree(root)


@contextmanager
def slower(endpoint: str, delay_ms: float) -> Iterator[str]:
    """Yields where a store answers later, and prints what it was asked; the store itself without a delay."""
    if not delay_ms:
        yield endpoint
        return
    asked = [sys.executable, "-m", "tests.fault_proxy", endpoint, "--delay-ms", str(delay_ms)]
    with subprocess.Popen(asked, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as proxy:
        assert proxy.stdin
        assert proxy.stdout
        yield proxy.stdout.readline().strip()
        proxy.stdin.close()
        print(f"  all of it: {proxy.stdout.read().strip()}, each {delay_ms:g} ms later", flush=True)


def from_store(rec: Path, root: Path, images: int, delay_ms: float) -> set[str]:
    """Prints the lines of a bucket; returns the fingerprints."""
    from tests.object_store import KEY, SECRET, serving

    (root / "objects").mkdir()
    made = set()
    with serving(root / "objects") as endpoint:
        os.environ.update(AWS_ENDPOINT_URL=endpoint, AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY=SECRET)
        place = StoredPath("s3", "bench", "raw")
        for name in (rec.name, rec.with_suffix(".idx").name):
            (place / name).upload(rec.with_name(name), "")
        for form in ("direct", "spill"):
            with slower(endpoint, delay_ms) as asked:
                os.environ["AWS_ENDPOINT_URL"] = asked
                made.add(side(f"store, {form}", place / rec.name, root / "out", form, images))
    return made


if __name__ == "__main__":
    main()

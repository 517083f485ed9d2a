"""Claim: write_shard makes the shards of FileWriter for a fraction of its CPU; each side runs in its own process.

    python -m benchmarks.bench_mindrecord [--rows 20000] [--bytes 7000]

The images are random bytes of `bytes` +- 30 %, made before the clock starts. CPU is user and system time of the write
up to data on disk (FileWriter's files are fsynced here, since it does not do so). write_shard's time includes the
SHA-256 of both files, which FileWriter does not compute. Peak RSS is the process's, with libraries and images.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from faceshards.progress import peak_memory

CALL = 512  # rows per write_raw_data; larger calls are no faster (9.6-15.8 k images/s at 256-2,000 rows)


def make_rows(rows: int, size: int) -> tuple[list[bytes], np.ndarray, np.ndarray, np.ndarray]:
    """Returns images, sizes (N,) in bytes, labels (N,) and sids (N,)."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(size * 7 // 10, size * 13 // 10 + 1, rows)
    images = [rng.bytes(n) for n in sizes.tolist()]
    return images, sizes, rng.integers(0, 2_000_000, rows), np.arange(rows) + (1 << 33)


def run_side(side: str, path: Path, rows: int, size: int) -> None:
    """Writes the shard and prints what it took as one line of JSON."""
    images, sizes, labels, sids = make_rows(rows, size)
    if side == "write_shard":
        from faceshards.formats.mindrecord.writer import write_shard

        def write() -> None:
            write_shard(path, images, sizes, labels, sids)
    else:
        from mindspore.mindrecord import FileWriter

        def write() -> None:
            writer = FileWriter(str(path), 1)
            if side == "FileWriter small pages":
                writer.set_header_size(1 << 20)
                writer.set_page_size(4 << 20)
            writer.add_schema({"image": {"type": "bytes"}, "label": {"type": "int32"}, "sid": {"type": "int64"}}, "")
            writer.add_index(["label"])
            columns = zip(images, labels.tolist(), sids.tolist(), strict=True)
            table = [{"image": image, "label": label, "sid": sid} for image, label, sid in columns]
            for start in range(0, rows, CALL):
                writer.write_raw_data(table[start : start + CALL])
            writer.commit()
            for file in (path, Path(f"{path}.db")):
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())

    before, start = os.times(), time.perf_counter()
    write()
    wall, after = time.perf_counter() - start, os.times()
    status = [os.stat(file) for file in (path, f"{path}.db")]
    facts = {
        "images/s": rows / wall,
        "CPU us/image": (after.user + after.system - before.user - before.system) / rows * 1e6,
        "peak RSS MB": peak_memory() / 1e6,
        "apparent MB": status[0].st_size / 1e6,
        "allocated MB": status[0].st_blocks * 512 / 1e6,
        ".db MB": status[1].st_size / 1e6,
    }
    print(json.dumps(facts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--bytes", type=int, default=7000)
    parser.add_argument("--folder", help="where to write; default: the system's temporary folder")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        run_side(options.side, Path(options.folder) / "bench.mindrecord", options.rows, options.bytes)
        return
    sides = ("FileWriter", "FileWriter small pages", "write_shard")
    found: dict[str, dict[str, float]] = {}
    for side in sides:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            child = [sys.executable, "-m", "benchmarks.bench_mindrecord", "--side", side, "--folder", folder]
            child += ["--rows", str(options.rows), "--bytes", str(options.bytes)]
            output = subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True).stdout
            found[side] = json.loads(output.splitlines()[-1])
    print(f"{options.rows} images of about {options.bytes} bytes; FileWriter in calls of {CALL} rows")
    print(f"{'':16}" + "".join(f"{side:>24}" for side in (*sides, "write_shard/FileWriter")))
    for fact in found[sides[0]]:
        values = [found[side][fact] for side in sides]
        print(f"{fact:16}" + "".join(f"{value:24,.1f}" for value in values) + f"{values[-1] / values[0]:24.2f}")


if __name__ == "__main__":
    main()

"""Claim: the files of a set from 7,000 images up are at most 5 % larger than its images; where the rest goes.

    python -m benchmarks.bench_size data/shards/synthetic      # of published sets
    python -m benchmarks.bench_size --images 300000            # of a set rendered for it, images of 5.9 KB

Sizes are those of the files, as `ls` has them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import click

from benchmarks.render import render
from faceshards.dataset.manifest import Manifest
from faceshards.formats.mindrecord.layout import read_header

QUALITY = 88  # of the JPEGs: 5.9 KB each


def shard_bytes(path: Path, rows: int) -> Counter[str]:
    """Returns what a shard's data file is made of, in bytes."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        head, _, pages = read_header(path.name, file.read(length))
    blobs = sum(page.used for page in pages if page.kind == "BLOB_DATA")
    raw = sum(page.used for page in pages) - blobs
    empty = path.stat().st_size - head - blobs - raw
    return Counter(
        {"images": blobs - 8 * rows, "their lengths": 8 * rows, "raw rows": raw, "headers": head, "empty": empty}
    )


def parts(data: Manifest) -> Counter[str]:
    """Returns what a published set is made of, in bytes."""
    found: Counter[str] = Counter()
    for shard in data.table("shards", ["file", "rows", "db_bytes"]).to_pylist():
        found += shard_bytes(data.shard_path(shard["file"]), shard["rows"])
        found["indexes (.db)"] += shard["db_bytes"]
    for name, entry in data.info["files"].items():
        found["table images" if "images.parquet" in name else "other tables"] += entry["bytes"]
    found["dataset.json"] = (data.path / "dataset.json").stat().st_size
    return found


def show(data: Manifest) -> None:
    """Prints the parts of a set, a line each."""
    found, images = parts(data), data.totals["kept"]
    whole = sum(path.stat().st_size for path in data.path.rglob("*") if path.is_file())
    if found.total() != whole:
        raise SystemExit(f"{data.path}: {whole} bytes, of which {found.total()} are accounted for")
    print(f"\n{images:,} images of {found['images'] / images:,.0f} bytes in {data.totals['shards']} shards\n")
    print("| | bytes | bytes an image | % of the images |\n|---|---|---|---|")
    beside = whole - found["images"]
    for name, count in [*found.most_common(), ("all but the images", beside)]:
        print(f"| {name} | {count:,} | {count / images:,.1f} | {count / found['images']:.2%} |")


@click.command()
@click.argument("datasets", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--images", default=0, help="Render a set of so many and build it.")
@click.option("--folder", type=click.Path(path_type=Path), help="Work here instead of in a temporary folder.")
def main(datasets: tuple[Path, ...], images: int, folder: Path | None) -> None:
    """Print what published sets are made of."""
    for path in datasets:
        show(Manifest(path))
    if images:
        with tempfile.TemporaryDirectory(dir=folder) as root:
            source, out = Path(root, "source"), Path(root, "out")
            source.mkdir()
            render(source, images, QUALITY)
            command = [sys.executable, "-m", "faceshards", "build", "--source", str(source), "--out", str(out)]
            subprocess.run([*command, "--quiet"], check=True, stdout=subprocess.DEVNULL)
            show(Manifest(out))


if __name__ == "__main__":
    main()

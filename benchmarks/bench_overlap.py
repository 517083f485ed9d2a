"""Test pictures among training pictures: what is found of them by distance, and what looking for them costs.

Of the faces of a RecordIO set (default: $FACESHARDS_DATA/orl/train.rec) every second one is a test picture. The others
are training pictures that must stay; changed copies of the test pictures are training pictures that must go. Then the
hashes of bench_dedupe are looked up among modelled test pictures.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import click
import cv2
import numpy as np

from benchmarks.bench_dedupe import make
from benchmarks.bench_hash import CHANGES, jpeg
from pipelines.config import BuildConfig
from pipelines.dedupe.hamming import MIRROR, hamming
from pipelines.dedupe.overlap import Finder, Pictures, find_overlaps
from pipelines.sources.base import Partition, Scanned
from pipelines.sources.registry import scan
from pipelines.stages.signatures import sign

LIMITS = (-1, 0, 8, 16, 24, 32, 40, 48)
WEBFACE42M = 42_474_558


def signatures(images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns sha (N, 2) and phash (N, 4), uint64, of encoded images."""
    column = sign(Scanned.of_images(list(images)), BuildConfig(image_size=(0, 0)))
    return column["sha256"].view(np.uint64)[:, :2].copy(), column["phash"].view(np.uint64)


def as_pictures(sha: np.ndarray, phash: np.ndarray) -> Pictures:
    """Returns signatures as the pictures of one set."""
    n = len(phash)
    return Pictures(["test"], np.zeros(n, np.int32), np.arange(n, dtype=np.int32), sha, phash, np.ones(n, bool))


def changed(image: np.ndarray) -> dict[str, np.ndarray]:
    """Returns copies of an encoded picture by what was done to them."""
    picture = cv2.imdecode(image, cv2.IMREAD_COLOR)
    mirrored = cv2.flip(picture, 1)
    copies = {name: change(picture) for name, change in CHANGES.items()}
    return {
        "same bytes": image,
        **copies,
        "mirrored, quality 90": jpeg(mirrored),
        "mirrored, quality 30": jpeg(mirrored, 30),
        "mirrored, to 96 and back": jpeg(cv2.resize(cv2.resize(mirrored, (96, 96)), (112, 112))),
    }


def print_recall(rec: Path) -> None:
    """Prints the share of changed copies found at each distance, and the training pictures that went with them."""
    rows = scan(Partition(0, 0, "recordio", str(rec), 0, rec.stat().st_size, None, True))
    images = [image for image in rows.images if image is not None]
    test, train = images[::2], images[1::2]
    pictures = as_pictures(*signatures(test))
    copies = [changed(image) for image in test]
    names = list(copies[0])
    signed = {name: signatures([copy[name] for copy in copies]) for name in names}
    sha, phash = signatures(train)
    print(f"{len(test)} test pictures, {len(train)} other photographs of the same people; found at a distance of")
    print(f"{'':<26}" + "".join(f"{'bytes' if limit < 0 else limit:>7}" for limit in LIMITS))
    finders = [Finder(pictures, limit) for limit in LIMITS]
    true = np.zeros(len(LIMITS), int)
    for name in names:
        found = [finder.find(*signed[name]) for finder in finders]
        right = [int((pictures.number[one.picture] == one.row).sum()) for one in found]
        true += right
        print(f"{name:<26}" + "".join(f"{share / len(test):>7.1%}" for share in right))
    wrong = [finder.find(sha, phash) for finder in finders]
    print(f"{'other photographs':<26}" + "".join(f"{len(one.row):>7}" for one in wrong))
    shares = [right / max(1, right + len(one.row)) for right, one in zip(true, wrong, strict=True)]
    print(f"{'precision':<26}" + "".join(f"{share:>7.1%}" for share in shares))
    a, b = (grid.ravel() for grid in np.meshgrid(np.arange(len(phash)), np.arange(len(test))))
    for flip in (False, True):
        apart = hamming(phash, a, b, others=pictures.phash, mirrored=flip)[1]
        print(f"nearest other photograph{', mirrored' if flip else ''}: {apart.min()} bits")


def print_cost(images: int, pictures: int, limit: int, threads: int) -> None:
    """Prints what it costs to look modelled hashes up, and what is found of copies planted among them."""
    with tempfile.TemporaryDirectory() as name:
        make(Path(name), images + pictures, 0, 0)
        phash = np.load(Path(name) / "phash.npy")
    rng = np.random.default_rng(0)
    sha = rng.integers(0, 1 << 63, (len(phash), 2)).astype(np.uint64)
    test, train, sha_train = phash[:pictures], phash[pictures:], sha[pictures:]
    flips = np.zeros((pictures, 256), bool)
    np.put_along_axis(flips, np.argsort(rng.random((pictures, 256)), axis=1), np.arange(256) < limit, axis=1)
    train[:pictures] = test ^ np.packbits(flips, axis=1).view(np.uint64)
    train[: pictures // 2] ^= MIRROR
    start = time.perf_counter()
    finder = Finder(as_pictures(sha[:pictures], test), limit)
    made = time.perf_counter() - start
    start, cpu = time.perf_counter(), time.process_time()
    found = find_overlaps(finder, sha_train, train, np.arange(len(train)), threads)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    hit = found.row < pictures
    print(f"{images:,} rows, {pictures:,} pictures, limit {limit}: {finder.tables} tables of {finder.bits} bits")
    print(f"tables made in {made:.1f} s; wall {wall:.1f} s, CPU {cpu:.1f} s, {cpu / images * 1e9:.0f} ns a row")
    print(f"found of copies exactly {limit} bits away, half of them mirrored: {hit.sum() / pictures:.5f}")
    print(f"others: {np.count_nonzero(~hit)}; WebFace42M: about {cpu / images * WEBFACE42M:.0f} CPU-seconds")


@click.command()
@click.option("--rec", type=click.Path(path_type=Path), help="A .rec of aligned faces.")
@click.option("--images", default=1_000_000, show_default=True, help="Modelled training pictures.")
@click.option(
    "--pictures", default=31_000, show_default=True, help="Modelled test pictures (LFW to CPLFW have 62,000)."
)
@click.option("--limit", default=24, show_default=True, help="Largest distance, bits.")
@click.option("--threads", default=2, show_default=True)
def main(rec: Path | None, images: int, pictures: int, limit: int, threads: int) -> None:
    """Print both."""
    rec = rec or Path(os.environ.get("FACESHARDS_DATA", "../shared/data")) / "orl" / "train.rec"
    if rec.is_file():
        print_recall(rec)
    else:
        click.echo(f"skipped: no faces at {rec}; name a .rec with --rec or set FACESHARDS_DATA")
    print_cost(images, pictures, limit, threads)


if __name__ == "__main__":
    main()

"""How far the perceptual hash of a face moves when the photograph is saved again, toned, or shifted.

Takes the faces of a RecordIO set (default: $FACESHARDS_DATA/orl/train.rec) and prints Hamming bits of 256, median, 95th
percentile and maximum, for each change; and the nearest pairs of different photographs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import click
import cv2
import numpy as np

from pipelines.config import BuildConfig
from pipelines.sources.base import Partition
from pipelines.sources.registry import scan
from pipelines.stages.signatures import perceptual_hash, sign


def jpeg(picture: np.ndarray, quality: int = 90) -> np.ndarray:
    """Returns the encoded picture."""
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].ravel()


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "JPEG quality 75": lambda x: jpeg(x, 75),
    "JPEG quality 30": lambda x: jpeg(x, 30),
    "resized to 96 and back": lambda x: jpeg(cv2.resize(cv2.resize(x, (96, 96)), (112, 112))),
    "brightness + 30": lambda x: jpeg(cv2.add(x, (30, 30, 30, 0))),
    "gamma 1.5": lambda x: jpeg((255 * (x / 255.0) ** 1.5).astype(np.uint8)),
    "shifted by 1 pixel": lambda x: jpeg(np.roll(x, 1, 1)),
}


@click.command()
@click.option("--rec", type=click.Path(path_type=Path), help="A .rec of aligned faces.")
def main(rec: Path | None) -> None:
    """Print the distances."""
    rec = rec or Path(os.environ.get("FACESHARDS_DATA", "../shared/data")) / "orl" / "train.rec"
    if not rec.is_file():
        click.echo(f"skipped: no faces at {rec}; name a .rec with --rec or set FACESHARDS_DATA")
        return
    rows = scan(Partition(0, 0, "recordio", str(rec), 0, rec.stat().st_size, None, True))
    bits = np.unpackbits(sign(rows, BuildConfig())["phash"], axis=1).astype(np.int16)
    print(f"{'change':<24} {'median':>7} {'p95':>5} {'max':>5}")
    for name, change in CHANGES.items():
        moved = []
        for image, before in zip(rows.images, bits, strict=True):
            gray = cv2.imdecode(change(cv2.imdecode(image, cv2.IMREAD_COLOR)), cv2.IMREAD_REDUCED_GRAYSCALE_2)
            moved.append(np.abs(np.unpackbits(perceptual_hash(gray[:, None]), axis=1)[0] - before).sum())
        print(f"{name:<24} {np.median(moved):>7.0f} {np.percentile(moved, 95):>5.0f} {max(moved):>5}")
    distance = (bits[:, None] != bits[None]).sum(-1)[np.triu_indices(len(bits), 1)]
    same = (rows.label[:, None] == rows.label[None])[np.triu_indices(len(bits), 1)]
    print(f"nearest different photographs: one person {distance[same].min()}, two people {distance[~same].min()}")


if __name__ == "__main__":
    main()

"""A .rec of any size for benchmarks: two million images in some minutes."""

from __future__ import annotations

import functools
import multiprocessing
from itertools import chain
from pathlib import Path

import cv2
import numpy as np

from evaluation.models import mxnet_import

PER_IDENTITY = 20
_TASK = 500  # images that a process renders at a time


def render(folder: Path, images: int, quality: int = 92) -> None:
    """Writes train.rec and train.idx: noise on a coarse texture, so that JPEGs have a face's 7 KB and no near copy.

    All cores encode; the files are the same however many there are.
    """
    recordio = mxnet_import.load().recordio
    writer = recordio.MXIndexedRecordIO(str(folder / "train.idx"), str(folder / "train.rec"), "w")
    tasks = [(start, min(_TASK, images - start), quality) for start in range(0, images, _TASK)]
    with multiprocessing.get_context("spawn").Pool() as pool:
        for i, data in enumerate(chain.from_iterable(pool.imap(_rendered, tasks))):
            writer.write_idx(i, recordio.pack(recordio.IRHeader(0, float(i // PER_IDENTITY), i, 0), data))
    writer.close()


def _rendered(task: tuple[int, int, int]) -> list[bytes]:
    """Returns JPEGs, of the number of the first, how many, and their quality."""
    start, count, quality = task
    cv2.setNumThreads(1)
    rng = np.random.default_rng([7, start])
    found = []
    for i in range(start, start + count):
        coarse = rng.uniform(30, 225, (9, 9, 3)).astype(np.float32)
        picture = cv2.resize(coarse, (112, 112), interpolation=cv2.INTER_CUBIC) + _grain()[i % 64]
        picture = np.clip(picture, 0, 255).astype(np.uint8)
        found.append(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes())
    return found


@functools.cache
def _grain() -> np.ndarray:
    """Returns the noise of 64 images, (64, 112, 112, 3) float32."""
    return np.random.default_rng(7).normal(0, 14, (64, 112, 112, 3)).astype(np.float32)

"""Embeddings of encoded images by a model, a full batch at a time."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from faceshards.errors import FaceshardsError
from training.data.transforms import SIZE, ImageError, decode, scaled

Forward = Callable[[np.ndarray], np.ndarray]  # (B, 3, H, W) float32 to (B, D) float32
NOT_FINITE = "the model's embedding of it is not finite"


class EmbeddingError(FaceshardsError):
    """A model gives embeddings that are none."""


class Embedder:
    """Embeds images as the field does: each image and its mirror image go through the model.

    Every call of the model has 2 * `batch` images, the last one too (filled up with gray): a graph is compiled for one
    shape. The next batch is decoded while the model computes.

    Args:
        forward: (B, 3, H, W) float32, RGB, (x / 255 - 0.5) / 0.5, to (B, D) float32.
        batch: images in a call, and as many mirror images.
        size: height and width the images must have, in pixels.
        load: gives the pixels of what batches() takes, (H, W, 3) uint8, RGB, or raises ImageError; None decodes images.
        strict: an embedding that is not finite is an error; otherwise its image has none.
    """

    def __init__(
        self,
        forward: Forward,
        batch: int = 64,
        size: tuple[int, int] = SIZE,
        load: Callable[[Any], np.ndarray] | None = None,
        strict: bool = True,
    ) -> None:
        self._forward, self._batch, self._size = forward, batch, size
        self._pixels = load or (lambda image: decode(image, size))
        self._strict = strict

    @functools.cached_property
    def dim(self) -> int:
        """Components of an embedding; asks the model."""
        return self._forward(np.zeros((2 * self._batch, 3, *self._size), np.float32)).shape[1]

    def batches(self, images: Iterable[Any]) -> Iterator[tuple[np.ndarray, dict[int, str]]]:
        """Yields the views of the images, a batch at a time.

        Args:
            images: encoded, or what `load` takes; taken as they are needed.

        Yields:
            (2, n, D) float32, of the images and of their mirror images; and, by place in the batch, why an image has no
            embedding (its rows are NaN).

        Raises:
            EmbeddingError: the model gives a value that is not finite, which `strict` does not allow.
        """
        places = iter(images)
        number = 0
        with ThreadPoolExecutor(1, "decode") as pool:
            ahead = pool.submit(self._load, list(itertools.islice(places, self._batch)))
            while True:
                data, count, problems = ahead.result()
                if not count:
                    return
                ahead = pool.submit(self._load, list(itertools.islice(places, self._batch)))
                views = self._forward(data.reshape(-1, 3, *self._size)).reshape(2, self._batch, -1)[:, :count]
                wrong = np.flatnonzero(~np.isfinite(views).all(axis=(0, 2)))  # of n images
                if len(wrong) and self._strict:
                    raise EmbeddingError(f"the model's embedding of image {number + int(wrong[0])} is not finite")
                problems = dict.fromkeys(wrong.tolist(), NOT_FINITE) | problems
                if problems:
                    views = views.copy()
                    views[:, list(problems)] = np.nan
                yield views, problems
                number += count

    def views(self, images: Iterable[Any]) -> tuple[np.ndarray, dict[int, str]]:
        """Returns (2, N, D) float32, of N images and of their mirror images; and, by place, why one has none (NaN).

        Raises:
            EmbeddingError: the model gives a value that is not finite.
        """
        found, problems, start = [np.zeros((2, 0, 0), np.float32)], {}, 0
        for views, bad in self.batches(images):
            found.append(views)
            problems.update({start + place: cause for place, cause in bad.items()})
            start += views.shape[1]
        return np.concatenate(found[1:] or found, axis=1), problems

    def _load(self, images: Sequence[Any]) -> tuple[np.ndarray, int, dict[int, str]]:
        """Returns (2, batch, 3, H, W) float32 of the images and mirror images, their number, and causes by place."""
        data = np.zeros((2, self._batch, 3, *self._size), np.float32)
        problems = {}
        for place, image in enumerate(images):
            try:
                scaled(self._pixels(image), data[0, place])
            except ImageError as error:
                problems[place] = str(error)
            data[1, place] = data[0, place, :, :, ::-1]
        return data, len(images), problems


def usable_pairs(
    views: np.ndarray, problems: dict[int, str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]:
    """Returns what is left of a set's embeddings without the pairs that lack an image's.

    Args:
        views: (2, 2P, D) float32, of the images and of their mirror images; pair k is images 2k and 2k + 1.
        problems: causes by image.

    Returns:
        (2Q, D) float64, image and mirror image added, in the precision of the protocol; (2, 2Q, D) float32, the views;
        (Q,) the places of these pairs in the set; and a line for each of the others.
    """
    lost = lost_lines(problems)
    pairs = np.array([pair for pair in range(views.shape[1] // 2) if pair not in lost], np.int64)
    if lost:
        views = views[:, np.stack([2 * pairs, 2 * pairs + 1], axis=1).reshape(-1)]
    return np.add(views[0], views[1], dtype=np.float64), views, pairs, tuple(lost.values())


def lost_lines(problems: dict[int, str]) -> dict[int, str]:
    """Returns, by pair, a line for each that lacks an image's embedding; `problems` are causes by image."""
    lost: dict[int, str] = {}
    for image, cause in sorted(problems.items()):
        lost.setdefault(image // 2, f"pair {image // 2} left out: image {image}: {cause}")
    return lost


def left_out(lost: Sequence[str], pairs: int) -> str:
    """Returns what to add to an error about pairs, when some of them were left out."""
    return f"; {len(lost)} of {pairs} pairs are left out, the first: {lost[0]}" if lost else ""

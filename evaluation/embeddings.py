"""Embeddings of encoded images by a backbone, a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import nn

from training.transforms import ImageError, decode, scaled


class Embedder(nn.Cell):
    """Embeds images as the field does: image and mirror image, their embeddings added, not normalised.

    Args:
        backbone: (B, 3, H, W) float32 to (B, D); put into evaluation mode.
        batch: images in a call, and as many mirror images.
    """

    def __init__(self, backbone: nn.Cell, batch: int = 64) -> None:
        super().__init__(auto_prefix=False)
        self.backbone = backbone
        self.batch = batch

    @ms.jit
    def construct(self, images: ms.Tensor) -> ms.Tensor:
        """Returns (B, D) embeddings of (B, 3, H, W)."""
        return self.backbone(images)

    def embed(self, images: Sequence[bytes], size: tuple[int, int] = (112, 112)) -> np.ndarray:
        """Returns (N, D) float32, the sum of views()."""
        views = self.views(images, size)
        return views[0] + views[1]

    def views(self, images: Sequence[bytes], size: tuple[int, int] = (112, 112)) -> np.ndarray:
        """Returns (2, N, D) float32: of the images, and of their mirror images.

        Args:
            images: N encoded images.
            size: height and width they must have, in pixels.

        Raises:
            ImageError: one cannot be decoded or has another size.
        """
        self.set_train(False)
        found = []
        for start in range(0, len(images), self.batch):
            part = images[start : start + self.batch]
            # Always full batches: another shape would be compiled anew.
            data = np.zeros((2, self.batch, 3, *size), np.float32)
            for i, image in enumerate(part):
                pixels = decode(image, size)
                scaled(pixels, data[0, i])
                data[1, i] = data[0, i, :, :, ::-1]
            both = self(ms.Tensor.from_numpy(data.reshape(-1, 3, *size))).asnumpy()
            found.append(both.reshape(2, self.batch, -1)[:, : len(part)])
        return np.concatenate(found, axis=1)


def usable(images: Sequence[bytes], size: tuple[int, int] = (112, 112)) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns the pairs (n,) whose two images decode to the size, and a line for each of the others."""
    found = [_problem(images, (2 * pair, 2 * pair + 1), size) for pair in range(len(images) // 2)]
    good = [pair for pair, problem in enumerate(found) if not problem]
    problems = [f"pair {pair} left out: {problem}" for pair, problem in enumerate(found) if problem]
    return np.array(good, np.int64), tuple(problems)


def _problem(images: Sequence[bytes], numbers: Sequence[int], size: tuple[int, int]) -> str:
    """Returns what keeps one of these images from being embedded; nothing if all can be."""
    number = -1
    try:
        for number in numbers:
            decode(images[number], size)
    except ImageError as error:
        return f"image {number}: {error}"
    return ""


def decoded(images: Sequence[bytes]) -> np.ndarray:
    """Returns (N, H, W, 3) uint8, RGB, of images of one size."""
    first = decode(images[0])
    return np.stack([decode(image, (first.shape[0], first.shape[1])) for image in images])

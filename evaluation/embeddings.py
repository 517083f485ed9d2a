"""Embeddings of encoded images by a backbone, a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import nn

from training.transforms import decode, scaled


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
        """Returns (N, D) float32.

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
            found.append(both[: len(part)] + both[self.batch : self.batch + len(part)])
        return np.concatenate(found)


def decoded(images: Sequence[bytes]) -> np.ndarray:
    """Returns (N, H, W, 3) uint8, RGB, of images of one size."""
    first = decode(images[0])
    return np.stack([decode(image, (first.shape[0], first.shape[1])) for image in images])

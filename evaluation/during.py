"""Verification of a backbone while it trains."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mindspore import nn

from evaluation.embedder import Embedder
from evaluation.measure import embed_set
from evaluation.models.backbone_model import cell_forward
from evaluation.protocol.verification import Verification
from faceshards.errors import FaceshardsError
from faceshards.formats.verification_bin import VerificationSet, read_bin

log = logging.getLogger(__name__)


class Verifier:
    """Measures a backbone on verification sets; call it with the backbone.

    Args:
        paths: .bin files; a set takes its file's name.

    Raises:
        FaceshardsError: a file is missing, no verification set, or one that can measure nothing, or two files have one
            name. This is found out before the first step.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._sets = [read_bin(path) for path in paths]
        names = [source.name for source in self._sets]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise FaceshardsError(f"verify: two sets are named {twice}; rename a file")
        self._digests = {source.name: source.digest() for source in self._sets}
        self._backbone: nn.Cell | None = None
        self._embedder = Embedder(raw_pixels)
        # What the images themselves give, without any training, by set.
        self.raw_pixels = {source.name: self._measure(source).value("accuracy") for source in self._sets}

    def __call__(self, backbone: nn.Cell) -> dict[str, tuple[float, float, str]]:
        """Returns 10-fold accuracy, threshold (a cosine) and SHA-256 of the pairs by set.

        Leaves the backbone in evaluation mode.
        """
        if self._backbone is not backbone:
            self._backbone, self._embedder = backbone, Embedder(cell_forward(backbone))  # compiled once a run
        backbone.set_train(False)
        results = {source.name: self._measure(source) for source in self._sets}
        return {
            name: (result.value("accuracy"), result.threshold_cosine, self._digests[name])
            for name, result in results.items()
        }

    def _measure(self, source: VerificationSet) -> Verification:
        """Returns what the pairs of a set give whose images can be decoded."""
        found = embed_set(source, self._embedder)
        if found.lost and self._backbone is None:  # said once
            log.warning(
                "%s: %d of %d pairs left out: %s", source.name, len(found.lost), len(source.same), found.lost[0]
            )
        return found.verify(bootstrap=0)


def raw_pixels(images: np.ndarray) -> np.ndarray:
    """Returns what images are without any training: (B, 3 * H * W / 16 + 1) float32, means of 4 x 4, less their mean.

    The last component is small and constant: an image of one colour has a direction, too.

    Args:
        images: (B, 3, H, W) float32, H and W multiples of 4.
    """
    count, _, height, width = images.shape
    small = images.reshape(count, 3, height // 4, 4, width // 4, 4).mean(axis=(3, 5)).reshape(count, -1)
    return np.pad(small - small.mean(axis=1, keepdims=True), ((0, 0), (0, 1)), constant_values=1e-3)

"""Verification of a backbone while it trains."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from mindspore import nn

from evaluation.embedder import Embedder
from evaluation.measure import embed_set, read_sets
from evaluation.models.backbone_model import cell_forward
from evaluation.protocol.verification import Verification
from faceshards.formats.verification_bin import VerificationSet

log = logging.getLogger(__name__)


class Verifier:
    """Measures a backbone on verification sets; call it with the backbone.

    Args:
        paths: .bin files; a set takes its file's name, with as much of the path as tells it from the others.

    Raises:
        FaceshardsError: a file is missing, no verification set, or one that can measure nothing, or is named twice.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._sets = []
        for source, lost in read_sets(paths):
            self._sets.append(source)
            if lost:
                log.warning("%s: %d of %d pairs left out: %s", source.name, len(lost), len(source.same), lost[0])
        self._digests = {source.name: source.digest() for source in self._sets}
        self._backbone: nn.Cell | None = None

    @cached_property
    def raw_pixels(self) -> dict[str, float]:
        """What the images themselves give, without any training: accuracies by set."""
        embedder = Embedder(raw_pixels)
        return {source.name: self._measure(source, embedder).value("accuracy") for source in self._sets}

    def lines(self) -> Iterator[str]:
        """Yields what there is to measure on, a line for each set."""
        for source in self._sets:
            yield f"verification on {source.name}: {len(source.same):,} pairs, {int(source.same.sum()):,} of one person"

    def __call__(self, backbone: nn.Cell) -> dict[str, tuple[float, float, str]]:
        """Returns 10-fold accuracy, threshold (a cosine) and SHA-256 of the pairs by set.

        Leaves the backbone in evaluation mode.
        """
        if self._backbone is not backbone:
            self._backbone, self._embedder = backbone, Embedder(cell_forward(backbone))  # compiled once a run
        backbone.set_train(False)
        results = {source.name: self._measure(source, self._embedder) for source in self._sets}
        return {
            name: (result.value("accuracy"), result.threshold_cosine, self._digests[name])
            for name, result in results.items()
        }

    def _measure(self, source: VerificationSet, embedder: Embedder) -> Verification:
        """Returns what the pairs of a set give whose images can be decoded."""
        return embed_set(source, embedder).verify(bootstrap=0)


def raw_pixels(images: np.ndarray) -> np.ndarray:
    """Returns what images are without any training: (B, 3 * H * W / 16 + 1) float32, means of 4 x 4, less their mean.

    The last component is small and constant: an image of one colour has a direction, too.

    Args:
        images: (B, 3, H, W) float32, H and W multiples of 4.
    """
    count, _, height, width = images.shape
    small = images.reshape(count, 3, height // 4, 4, width // 4, 4).mean(axis=(3, 5)).reshape(count, -1)
    return np.pad(small - small.mean(axis=1, keepdims=True), ((0, 0), (0, 1)), constant_values=1e-3)

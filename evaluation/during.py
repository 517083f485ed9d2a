"""Verification of a backbone while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mindspore import nn

from evaluation.embeddings import Embedder, decoded
from evaluation.sets import VerificationSet, read_bin
from evaluation.verification import raw_pixels, verify


class Verifier:
    """Measures a backbone on verification sets; call it with the backbone.

    Args:
        paths: .bin files; a set takes its file's name.

    Raises:
        SetError: a file is missing or no verification set. This is found out before the first step.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._sets: list[VerificationSet] = [read_bin(path) for path in paths]
        self._embedder: Embedder | None = None
        # What the images themselves give, without any training, by set.
        self.raw_pixels = {
            entry.name: verify(raw_pixels(decoded(entry.images)), entry.same, bootstrap=0).accuracy
            for entry in self._sets
        }

    def __call__(self, backbone: nn.Cell) -> dict[str, float]:
        """Returns the 10-fold accuracy by set; leaves the backbone in evaluation mode."""
        if self._embedder is None or self._embedder.backbone is not backbone:
            self._embedder = Embedder(backbone)  # compiled once a run, not once a call
        embed = self._embedder.embed
        return {entry.name: verify(embed(entry.images), entry.same, bootstrap=0).accuracy for entry in self._sets}

"""What the head needs of a margin, whichever it is."""

from __future__ import annotations

from typing import Protocol

from mindspore import nn


class Margin(Protocol):
    """How much harder the target class is made than the others; a member has a file of its own, and a line in MARGINS.

    A margin here is a function of the target's cosine alone. One with a state (AdaFace's running mean and deviation of
    the embeddings' lengths, arXiv 2204.00964) will need two things more: the lengths beside the cosines, and a place in
    the checkpoint. They come with it.
    """

    @property
    def scale(self) -> float:
        """The factor s of all logits, above 0."""

    @property
    def interclass_threshold(self) -> float:
        """Negatives whose cosine is above it get logit 0 and no gradient; 0 turns the filter off."""

    def target_cosine(self) -> nn.Cell:
        """Returns a cell that gives the target's cosine after the margin, in the shape of the cosines it takes."""

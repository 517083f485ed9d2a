"""What the head needs of a margin, whichever it is; and what margins share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from mindspore import nn

from faceshards.errors import ConfigError
from training.config import TrainConfig

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class Margin(Protocol):
    """How much harder the target class is made than the others; a member has a file of its own, and a line in MARGINS.

    A margin is a function of the target's cosine and the embedding's length, and of a state if it has one.
    """

    @property
    def scale(self) -> float:
        """The factor s of all logits, above 0."""

    @property
    def interclass_threshold(self) -> float:
        """Negatives whose cosine is above it get logit 0 and no gradient; 0 turns the filter off."""

    @property
    def centers(self) -> int:
        """K, the centres of each class: its cosine is that of the nearest. With K > 1 a class's row is K * D long."""

    def target_cosine(self) -> nn.Cell:
        """Returns the cell that the head calls with the cosines and lengths of the global batch, in training only.

        It takes t (G, 1) float32 in [-1, 1], the cosines of embeddings and their target's centre, and lengths (G, 1)
        float32, those of the embeddings before they were normalised; both are the same on every rank but for rows whose
        target another rank holds, where t is any cosine. It returns the cosine after the margin, (G, 1), and its slope
        by t, (G, 1), which the gradient is multiplied by; None passes the gradient as if there were no margin. No
        gradient goes to the lengths.

        Its parameters, which need no gradient, are the margin's state: whatever of it follows from the lengths alone is
        the same on every rank. They are in the checkpoint by their names, which begin with ``margin.``.
        """


M = TypeVar("M", bound="DataclassInstance")
SHARED = ("scale", "interclass_threshold")  # settings of a run beside its margin, whichever it is


def from_settings(margin: type[M], config: TrainConfig) -> M:
    """Returns a margin, a dataclass of numbers, with those of a run's settings; the others are its defaults.

    Raises:
        ConfigError: a number that this margin has not, or that is outside its range.
    """
    name, numbers = config.margin_numbers()
    known = [field.name for field in dataclasses.fields(margin) if field.name not in SHARED]
    for unknown in numbers.keys() - known:
        own = "; it is a setting of its own" if unknown in SHARED else ""
        raise ConfigError(f"margin: {name} has {', '.join(known)}, not '{unknown}'{own}")
    return margin(**numbers, **{shared: getattr(config, shared) for shared in SHARED})


def check_numbers(margin: Any, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Checks that a margin's numbers, scale and filter are numbers in their ranges, both ends allowed.

    Raises:
        ConfigError: names the number.
    """
    for name, (low, high) in {**ranges, "scale": (1e-3, 1e4), "interclass_threshold": (0.0, 1.0)}.items():
        value = getattr(margin, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ConfigError(f"margin: {name} = {value!r} is not a number from {low:g} to {high:g}")

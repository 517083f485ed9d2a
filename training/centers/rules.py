"""How a step moves the class centres, those that it samples and those that it does not.

Momentum and weight decay also move the rows that a step does not sample, and the reference updates all of them. Such a
row has no gradient, so SGD is linear for it, with scalar coefficients:

    [w; v] <- M_t [w; v],   M_t = [[1 - lr_t wd, -lr_t mu], [wd, mu]]

A row therefore only remembers the step it stands at; when it is sampled, the product of the M_t since then is applied
first. The result is dense SGD's to rounding.

AdamW has no such product, since it divides by a root of the second moment. Here moments, decoupled weight decay and
bias correction move a row only at the steps that sample it ("lazy"); at rate 1 that is AdamW.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from faceshards.errors import ConfigError
from training.centers.history import History, Matrices
from training.centers.store import Counts, Floats, Rows, Store
from training.config import TrainConfig


@dataclass(eq=False)
class Rule(ABC):
    """What moves the rows of a store, and the state that its steps leave behind.

    Attributes:
        slots: names of the arrays beside the weight.
        step: number of updates done.
    """

    slots: ClassVar[tuple[str, ...]]
    step: int = field(default=0, init=False)

    @classmethod
    @abstractmethod
    def from_config(cls, config: TrainConfig) -> Rule:
        """Returns the rule with the numbers of the settings."""

    @abstractmethod
    def first_factors(self) -> tuple[float, ...]:
        """Returns (W,): what takes a first value to the row (weight, slots) that no step has sampled until now."""

    @abstractmethod
    def first_count(self) -> int:
        """Returns the count of a row made by first_factors()."""

    @abstractmethod
    def missed(self, store: Store, rows: Rows) -> Floats | None:
        """Returns (n, 2) float32 as Store.weights() takes them, for the present weights; None if rows cannot lag."""

    @abstractmethod
    def update(self, store: Store, rows: Rows, grads: Any, lr: float) -> None:
        """Moves rows (n,) by their gradients (n, D) and ends the step for all rows."""

    @abstractmethod
    def settle(self, store: Store, block: int) -> None:
        """Brings every row to the present step, `block` places at a time, and forgets what only lagging rows need."""

    @abstractmethod
    def product(self) -> Matrices:
        """Returns (2, 2): what all steps do to (weight, first slot) of a row that none of them samples."""

    @abstractmethod
    def restart(self, step: int, product: Matrices) -> None:
        """Stands at `step`, with product() of then, as if all rows were settled."""

    @abstractmethod
    def updates_of(self, counts: Counts) -> Counts:
        """Returns the array "updates" (n,) of a checkpoint for settled rows with these counts."""

    @abstractmethod
    def counts_of(self, updates: Counts) -> Counts:
        """Returns the counts (n,) of rows that come from a checkpoint of this step."""


@dataclass(eq=False)
class Sgd(Rule):
    """SGD as PyTorch's: v <- momentum v + (g + weight_decay w), w <- w - lr v. A row's count: the step it stands at.

    Args:
        momentum: 0 to below 1.
        weight_decay: 0 to below 1.

    Raises:
        ConfigError: a value out of range.
    """

    slots: ClassVar[tuple[str, ...]] = ("momentum",)
    momentum: float = 0.9
    weight_decay: float = 5e-4
    _history: History = field(default_factory=History, init=False, repr=False)

    def __post_init__(self) -> None:
        _check_shares(momentum=self.momentum, weight_decay=self.weight_decay)

    @classmethod
    def from_config(cls, config: TrainConfig) -> Sgd:
        """Returns the rule with the settings' momentum and weight decay."""
        return cls(momentum=config.momentum, weight_decay=config.weight_decay)

    def first_factors(self) -> tuple[float, ...]:
        """Returns what all steps have made of (1, 0), weight and momentum."""
        return self._history.total[0, 0], self._history.total[1, 0]

    def first_count(self) -> int:
        """Returns the present step."""
        return self.step

    def missed(self, store: Store, rows: Rows) -> Floats:
        """Returns the upper rows of the matrices since the steps that the rows stand at."""
        return _factors(self._history.since(store.ledger.counts(rows)))[:, 0]

    def update(self, store: Store, rows: Rows, grads: Any, lr: float) -> None:
        """Applies what the rows missed, this step's matrix and the gradients; all others owe this step's matrix."""
        decay, momentum = self.weight_decay, self.momentum
        matrix = np.array([[1 - lr * decay, -lr * momentum], [decay, momentum]])
        store.linear(rows, _factors(matrix @ self._history.since(store.ledger.counts(rows))), grads, lr)
        self._history.record(matrix)
        self.step += 1
        store.ledger.enter(rows, self.step)

    def settle(self, store: Store, block: int) -> None:
        """Applies to every row what it missed, and forgets the products."""
        if self._history.settled < self.step:
            for rows in store.ledger.blocks(block):
                rows = rows[store.ledger.counts(rows) != self.step]
                store.linear(rows, _factors(self._history.since(store.ledger.counts(rows))))
                store.ledger.enter(rows, self.step)
        self._history.restart(self.step)

    def product(self) -> Matrices:
        """Returns the product of all M_t."""
        return self._history.total.copy()

    def restart(self, step: int, product: Matrices) -> None:
        """Stands at `step`, with the product of all M_t until then."""
        self.step = step
        self._history.restart(step)
        self._history.total = product

    def updates_of(self, counts: Counts) -> Counts:
        """Returns zeros: settled rows all stand at the checkpoint's step."""
        return np.zeros(len(counts), np.int32)

    def counts_of(self, updates: Counts) -> Counts:
        """Returns the checkpoint's step for every row."""
        return np.full(len(updates), self.step, np.int32)


@dataclass(eq=False)
class LazyAdamW(Rule):
    """AdamW at the steps that sample a row, as PyTorch's; between them it stands still. A row's count: its updates.

    Args:
        weight_decay: 0 to below 1.
        betas: of the first and second moment, 0 to below 1.
        eps: added to the root of the second moment, above 0.

    Raises:
        ConfigError: a value out of range.
    """

    slots: ClassVar[tuple[str, ...]] = ("first", "second")
    weight_decay: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        _check_shares(weight_decay=self.weight_decay, beta1=self.betas[0], beta2=self.betas[1])
        if not self.eps > 0:
            raise ConfigError(f"centre update: eps {self.eps!r} is not above 0")

    @classmethod
    def from_config(cls, config: TrainConfig) -> LazyAdamW:
        """Returns the rule with the settings' weight decay."""
        return cls(weight_decay=config.weight_decay)

    def first_factors(self) -> tuple[float, ...]:
        """Returns the first value as it is, without moments."""
        return 1.0, 0.0, 0.0

    def first_count(self) -> int:
        """Returns 0: a new row has no updates."""
        return 0

    def missed(self, store: Store, rows: Rows) -> None:
        """Returns None: rows do not lag."""
        return

    def update(self, store: Store, rows: Rows, grads: Any, lr: float) -> None:
        """Takes one AdamW step at the rows."""
        updates = store.ledger.counts(rows) + 1  # (n,) this one too
        bias = [1 - beta ** updates.astype(np.float64) for beta in self.betas]
        factors = np.stack([np.full(len(rows), 1 - lr * self.weight_decay), lr / bias[0], 1 / bias[1]], axis=1)
        store.adam(rows, factors.astype(np.float32), grads, betas=self.betas, eps=self.eps)
        self.step += 1
        store.ledger.enter(rows, updates)

    def settle(self, store: Store, block: int) -> None:
        """Has nothing to do: rows do not lag."""

    def product(self) -> Matrices:
        """Returns the identity."""
        return np.eye(2)

    def restart(self, step: int, product: Matrices) -> None:
        """Stands at `step`."""
        self.step = step

    def updates_of(self, counts: Counts) -> Counts:
        """Returns the counts, which the bias correction goes on from."""
        return counts

    def counts_of(self, updates: Counts) -> Counts:
        """Returns the updates."""
        return updates


# By their name in the settings (`optimizer`).
RULES: dict[str, type[Rule]] = {"sgd": Sgd, "adamw": LazyAdamW}


def _factors(matrices: Matrices) -> Floats:
    """Returns matrices (n, 2, 2) less 1 at (weight, weight), as float32; changes them.

    A factor near 1 rounded to float32 would be off by up to 3e-8 in the same direction at every step, where
    lr * weight_decay is some 1e-5; the difference to 1 keeps its own digits.
    """
    matrices[:, 0, 0] -= 1
    return matrices.astype(np.float32)


def _check_shares(**values: float) -> None:
    """Raises ConfigError for a value that is not at least 0 and below 1."""
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ConfigError(f"centre update: {name} = {value!r} is not at least 0 and below 1")

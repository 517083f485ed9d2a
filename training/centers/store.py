"""What a store of class centres is: the rows of a slice, wherever they lie, and a count of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from faceshards.errors import FaceshardsError

Rows = npt.NDArray[np.int64]  # places in the slice, sorted
Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int32]
First = Callable[[Rows], Floats]  # first values (n, D) of rows (n,)


class StoreError(FaceshardsError):
    """The class centres do not fit into memory, their folder cannot be used, or its disk is full."""


class Ledger:
    """Which rows of a slice exist, and of each that does one number, its count; what it counts, the rule says.

    Both are one int32: 0 for a row that does not exist, 1 + count for one that does. So a ledger begins as zeros, which
    take neither memory nor disk.

    Args:
        mark: (count,) int32, zeros; the ledger keeps it.
    """

    def __init__(self, mark: Counts) -> None:
        self.mark = mark

    def known(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Returns (n,) bool: which rows exist."""
        return self.mark[rows] != 0

    def counts(self, rows: Rows) -> Counts:
        """Returns (n,) int32: the counts of rows that exist."""
        return self.mark[rows] - 1

    def enter(self, rows: Rows, counts: Counts | int) -> None:
        """Notes that rows exist and have these counts, (n,) or one for all."""
        self.mark[rows] = 1 + counts

    def forget(self) -> None:
        """Notes that no row exists."""
        self.mark[self.mark != 0] = 0  # the pages of the others stay unwritten

    def total(self) -> int:
        """Returns how many rows exist."""
        return int(np.count_nonzero(self.mark))

    def blocks(self, block: int) -> Iterator[Rows]:
        """Yields the rows that exist in ascending order, of `block` places after the other, empty blocks left out."""
        for low in range(0, len(self.mark), block):
            rows = np.flatnonzero(self.mark[low : low + block])
            if len(rows):
                yield rows + low


class Store(Protocol):
    """Rows of (W, D) float32: the weight and W - 1 slots of the rule.

    A store knows rows by their place in the slice, (n,) sorted, and is told the coefficients of each. Gradients may be
    NumPy arrays or Tensors.
    """

    ledger: Ledger

    def weights(self, rows: Rows, factors: Floats | None) -> Any:
        """Returns (n, D): the weight plus factors (n, 2) times (weight, momentum) unless None.

        It is what a step takes: a NumPy array, which the next call writes over, or a Tensor on the device.
        """

    def records(self, rows: Rows) -> Floats:
        """Returns (n, W, D) on the host: weight and slots as they lie."""

    def reserve(self, rows: int) -> None:
        """Raises StoreError when there is no room for so many new rows."""

    def create(self, rows: Rows, first: First, factors: Sequence[float]) -> None:
        """Stores first(rows) (n, D) times factors (W,): the weight and the slots of rows never touched."""

    def write(self, rows: Rows, records: Floats) -> None:
        """Stores (n, W, D)."""

    def linear(self, rows: Rows, factors: Floats, grads: Any = None, lr: float = 0.0) -> None:
        """Applies matrices to (weight, momentum), then adds grads (n, D) * (-lr, 1) unless None.

        The factors (n, 2, 2) are the matrices less 1 at (weight, weight), so that float32 keeps the weight decay.
        """

    def adam(self, rows: Rows, factors: Floats, grads: Any, *, betas: tuple[float, float], eps: float) -> None:
        """Takes one AdamW step; factors (n, 3): the weight's decay, lr / (1 - beta1^c), 1 / (1 - beta2^c)."""

    def close(self) -> None:
        """Gives the memory, the file or the device's buffers back."""

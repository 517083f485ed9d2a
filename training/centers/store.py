"""What a store of class centres is: the rows of a slice, wherever they lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from faceshards.errors import FaceshardsError

Rows = npt.NDArray[np.int64]  # places in the slice, sorted
Floats = npt.NDArray[np.float32]
First = Callable[[Rows], Floats]  # first values (n, D) of rows (n,)


class StoreError(FaceshardsError):
    """The class centres do not fit into memory, their folder cannot be used, or its disk is full."""


class Store(Protocol):
    """What class_centers asks of a store; rows are (n,) sorted places in the slice, coefficients per row."""

    mark: npt.NDArray[np.int32]  # (count,), 0 for rows never touched, the rest is class_centers'

    def weights(self, rows: Rows, factors: Floats | None, out: Any) -> Any:
        """Returns (n, D): the weight plus factors (n, 2) times (weight, momentum) unless None."""

    def records(self, rows: Rows) -> Floats:
        """Returns (n, W, D): weight and slots as they lie."""

    def reserve(self, rows: int) -> None:
        """Raises StoreError when there is no room for so many new rows."""

    def create(self, rows: Rows, first: First, factors: Sequence[float]) -> None:
        """Stores first(rows) (n, D) times factors (W,): the weight and the slots of rows never touched."""

    def write(self, rows: Rows, records: Floats) -> None:
        """Stores (n, W, D)."""

    def linear(self, rows: Rows, factors: Floats, grads: Any, lr: float) -> None:
        """Applies matrices to (weight, momentum), then adds grads (n, D) * (-lr, 1) unless None.

        The factors (n, 2, 2) are the matrices less 1 at (weight, weight), so that float32 keeps the weight decay.
        """

    def adam(self, rows: Rows, factors: Floats, grads: Any, betas: tuple[float, float], eps: float) -> None:
        """Takes one AdamW step; factors (n, 3): the weight's decay, lr / (1 - beta1^c), 1 / (1 - beta2^c)."""

    def close(self) -> None:
        """Gives the memory, the file or the device's buffers back."""

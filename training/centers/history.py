"""What the steps since have done to a row that SGD did not sample."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Matrices = npt.NDArray[np.float64]


class History:
    """The products of SGD's step matrices M_t that rows have missed, in float64.

    Rows stand at the last settled step or a later one; the product of the steps since is looked up per row. Every step
    multiplies all products once, 2 x 2 numbers per step since the last settling.

    Attributes:
        total: (2, 2), of all steps: what a row never touched has missed.
        settled: the step behind which no row stands.
    """

    _since: Matrices  # [j]: the product of the steps after settled + j, for rows that stand there
    _used: int  # products in use, the first so many

    def __init__(self) -> None:
        self.total = np.eye(2)
        self.restart(0)

    def since(self, steps: npt.NDArray[np.integer]) -> Matrices:
        """Returns (n, 2, 2): what takes rows that stand at steps (n,) to the present."""
        return self._since[steps.astype(np.int64) - self.settled]

    def record(self, matrix: Matrices) -> None:
        """Ends a step that moved every unsampled row by matrix (2, 2)."""
        past = self._used
        if past == len(self._since):
            self._since = np.concatenate([self._since, np.empty_like(self._since)])
        upper, lower = self._since[:past, 0].copy(), self._since[:past, 1].copy()  # (past, 2)
        self._since[:past, 0] = matrix[0, 0] * upper + matrix[0, 1] * lower
        self._since[:past, 1] = matrix[1, 0] * upper + matrix[1, 1] * lower
        self._since[past] = np.eye(2)
        self._used += 1
        self.total = matrix @ self.total

    def restart(self, step: int) -> None:
        """Forgets the products: every row stands at `step`."""
        self.settled = step
        self._used = 1
        self._since = np.empty((1024, 2, 2))
        self._since[0] = np.eye(2)

"""How a step moves the class centres, and what the steps since have done to a row that was not sampled."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from faceshards.errors import ConfigError

Matrices = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class CenterUpdate:
    """How a gradient moves the centres, with PyTorch's meaning of the numbers.

    Args:
        kind: "sgd": v <- momentum v + (g + weight_decay w), w <- w - lr v; or "adamw".
        momentum: of SGD, 0 to below 1.
        weight_decay: of either, 0 to below 1.
        betas: of AdamW.
        eps: of AdamW.

    Raises:
        ConfigError: a value out of range.
    """

    kind: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if self.kind not in ("sgd", "adamw"):
            raise ConfigError(f"centre update: kind {self.kind!r} is not sgd or adamw")
        shares = {"momentum": self.momentum, "weight_decay": self.weight_decay}
        for name, value in {**shares, "beta1": self.betas[0], "beta2": self.betas[1]}.items():
            if not 0 <= value < 1:
                raise ConfigError(f"centre update: {name} = {value!r} is not at least 0 and below 1")
        if not self.eps > 0:
            raise ConfigError(f"centre update: eps {self.eps!r} is not above 0")

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the arrays beside the weight."""
        return ("momentum",) if self.kind == "sgd" else ("first", "second")


class History:
    """The products of SGD's step matrices M_t that rows have missed, in float64.

    Rows stand at the last settled step or a later one; the product of the steps since is looked up per row. Every step
    multiplies all products once, 2 x 2 numbers per step since the last settling.
    """

    def __init__(self) -> None:
        self.total = np.eye(2)  # of all steps: what a row never touched has missed
        self.settled = self.step = 0
        self._since = np.empty((1024, 2, 2))  # [j]: M_step ... M_{settled + j + 1}, for rows that stand at settled + j
        self._since[0] = np.eye(2)

    def since(self, steps: npt.NDArray[np.integer]) -> Matrices:
        """Returns (n, 2, 2): what takes rows that stand at steps (n,) to the present."""
        return self._since[steps.astype(np.int64) - self.settled]

    def record(self, matrix: Matrices) -> None:
        """Ends a step that moved every unsampled row by matrix (2, 2)."""
        past = self.step - self.settled + 1  # products in use
        if past == len(self._since):
            self._since = np.concatenate([self._since, np.empty_like(self._since)])
        upper, lower = self._since[:past, 0].copy(), self._since[:past, 1].copy()  # (past, 2)
        self._since[:past, 0] = matrix[0, 0] * upper + matrix[0, 1] * lower
        self._since[:past, 1] = matrix[1, 0] * upper + matrix[1, 1] * lower
        self._since[past] = np.eye(2)
        self.total = matrix @ self.total
        self.step += 1

    def restart(self, step: int) -> None:
        """Forgets the products: every row stands at `step`."""
        self.settled = self.step = step
        self._since = np.empty((1024, 2, 2))
        self._since[0] = np.eye(2)

"""The class centres of this process's slice, trained as if every row moved at every step, though only samples do.

Momentum and weight decay also move the rows that a step does not sample, and the reference updates all of them. Such a
row has no gradient, so SGD is linear for it, with scalar coefficients:

    [w; v] <- M_t [w; v],   M_t = [[1 - lr_t wd, -lr_t mu], [wd, mu]]

A row therefore only remembers the step it stands at; when it is sampled, the product of the M_t since then is applied
first. The result is dense SGD's to rounding. Rows that were never sampled do not exist: their first value is a function
of (seed, class), and the product of all M_t takes it to any step.

AdamW has no such product, since it divides by a root of the second moment. Here moments, decoupled weight decay and
bias correction move a row only at the steps that sample it ("lazy"); at rate 1 that is AdamW.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from faceshards.errors import ConfigError
from training.centers.first_values import initial_rows
from training.centers.host import HostStore
from training.centers.rules import CenterUpdate, History
from training.centers.store import Floats, Rows, Store

SGD = CenterUpdate()
BLOCK = 65536  # rows that pass through memory at a time when all rows do
Block = tuple[npt.NDArray[np.int64], dict[str, npt.NDArray[Any]]]


def slice_of(rank: int, world: int, classes: int) -> tuple[int, int]:
    """Returns (start, count): rank holds the classes start to start + count - 1; slices differ by one at most.

    Args:
        rank: 0 to world - 1.
        world: number of ranks.
        classes: number of classes over all ranks, at least world.

    Raises:
        ConfigError: a rank would hold no class.
    """
    if not 0 <= rank < world:
        raise ConfigError(f"rank {rank} is not one of {world} ranks")
    if classes < world:
        raise ConfigError(f"{classes} classes cannot be split over {world} processes: each needs at least one")
    each, rest = divmod(classes, world)
    return rank * each + min(rank, rest), each + (rank < rest)


class ClassCenters:
    """The centres of one slice of the classes; no process ever allocates more than its slice.

    A step is gather(ids), the head's gradient, update(ids, grads, lr). settle() brings every touched row up to date,
    which a checkpoint needs; what follows is bit for bit the same in a run that goes on and in one that restores.

    Args:
        classes: over all ranks.
        dim: D.
        rank: this process.
        world: number of processes.
        seed: of the first values.
        update: how gradients move the rows.
        store: "memory", "disk" (a sparse file in folder) or "device".
        folder: for store "disk".
        std: of the first values.

    Raises:
        ConfigError: an argument out of range.
        StoreError: the folder cannot be written, or the memory is not there.
    """

    def __init__(
        self,
        classes: int,
        dim: int,
        *,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        update: CenterUpdate = SGD,
        store: str = "memory",
        folder: Path | None = None,
        std: float = 0.01,
    ) -> None:
        self.start, self.count = slice_of(rank, world, classes)
        self.classes, self.dim, self.seed, self.std = classes, dim, seed, std
        self.rule = update
        self.store: Store
        self.slots = update.slots
        width = 1 + len(self.slots)
        if store == "device":
            from training.centers.device import DeviceStore

            self.store = DeviceStore(self.count, width, dim)
        elif store in ("memory", "disk"):
            if store == "disk" and folder is None:
                raise ConfigError("class centres on disk need a folder")
            self.store = HostStore(self.count, width, dim, Path(folder) if store == "disk" and folder else None)
        else:
            raise ConfigError(f"class centres: store {store!r} is not memory, disk or device")
        self._history = History()

    @property
    def step(self) -> int:
        """Number of updates done."""
        return self._history.step

    def gather(self, ids: Rows, out: Any = None) -> Any:
        """Returns the centres of a sample at the present step.

        Args:
            ids: (S,) int64 global classes of this slice, sorted, distinct.
            out: (S, D) float32 to fill and return, so that a step need not allocate; stores in memory and on disk.

        Returns:
            (S, D) float32: a NumPy array, or a Tensor when the store is the device.
        """
        rows = self._rows(ids)
        self._touch(rows)
        return self.store.weights(rows, self._missed(rows), out)

    def update(self, ids: Rows, grads: Any, lr: float) -> None:
        """Moves the sample by its gradients and ends the step for all rows.

        Args:
            ids: (S,) int64, as for gather().
            grads: (S, D) float32, a NumPy array or a Tensor.
            lr: this step's learning rate.

        Raises:
            StoreError: the disk has no room for rows touched for the first time; nothing has changed then.
        """
        rows = self._rows(ids)
        self._touch(rows)
        rule, mark = self.rule, self.store.mark
        if isinstance(self.store, HostStore) and not isinstance(grads, np.ndarray):
            grads = grads.asnumpy()
        if rule.kind == "adamw":
            mark[rows] += 1
            times = (mark[rows] - 1).astype(np.float64)  # (S,) updates of each row, this one too
            bias = [1 - beta**times for beta in rule.betas]
            factors = np.stack([np.full(len(rows), 1 - lr * rule.weight_decay), lr / bias[0], 1 / bias[1]], axis=1)
            self.store.adam(rows, factors.astype(np.float32), grads, rule.betas, rule.eps)
            self._history.record(np.eye(2))
            return
        matrix = np.array([[1 - lr * rule.weight_decay, -lr * rule.momentum], [rule.weight_decay, rule.momentum]])
        self.store.linear(rows, _factors(matrix @ self._history.since(mark[rows] - 1)), grads, lr)
        self._history.record(matrix)
        mark[rows] = self.step + 1

    def settle(self, block: int = BLOCK) -> None:
        """Brings every touched row up to date and forgets the products since the last time.

        Args:
            block: rows of the slice looked at together.
        """
        mark = self.store.mark
        if self.rule.kind == "sgd" and self._history.settled < self.step:
            for rows in self._touched(block):
                rows = rows[mark[rows] != self.step + 1]
                self.store.linear(rows, _factors(self._history.since(mark[rows] - 1)), None, 0.0)
                mark[rows] = self.step + 1
        self._history.restart(self.step)

    @property
    def touched(self) -> int:
        """Number of rows that exist: sampled or gathered at least once."""
        return int(np.count_nonzero(self.store.mark))

    def blocks(self, block: int = BLOCK) -> Iterator[Block]:
        """Yields the touched rows in ascending order, settled, for a checkpoint.

        Args:
            block: rows of the slice looked at together, the most that a block can hold.

        Yields:
            ids (n,) int64, and by name: "weight" (n, D) float32; the `slots`, (n, D) float32 each; "updates" (n,)
            int32, of AdamW, for its bias correction (0 with SGD).
        """
        self.settle(block)
        for rows in self._touched(block):
            records = self.store.records(rows)  # (n, W, D)
            arrays: dict[str, npt.NDArray[Any]] = {
                name: np.ascontiguousarray(records[:, i]) for i, name in enumerate(("weight", *self.slots))
            }
            adamw = self.rule.kind == "adamw"
            arrays["updates"] = self.store.mark[rows] - 1 if adamw else np.zeros(len(rows), np.int32)
            yield rows + self.start, arrays

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint needs beside the blocks: numbers and a (2, 2) array, the same on every rank."""
        return {
            "classes": self.classes,
            "dim": self.dim,
            "seed": self.seed,
            "std": self.std,
            "step": self.step,
            "product": self._history.total.copy(),  # (2, 2) float64, of all M_t since step 0
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes over state(), its numbers as such or as arrays of one; comes before restore().

        It may come again with the same state, as each of several ranks' files brings one; rows restored stay.

        Raises:
            ConfigError: the state is of other centres.
        """
        for name in ("classes", "dim", "seed", "std"):
            theirs, mine = np.asarray(state[name]).item(), getattr(self, name)
            if theirs != mine:
                raise ConfigError(f"class centres: the checkpoint has {name} {theirs}, this run {mine}")
        step = int(np.asarray(state["step"]).item())
        if step != self.step:
            self.store.mark[self.store.mark != 0] = 0
        self._history.restart(step)
        self._history.total = np.array(state["product"], np.float64).reshape(2, 2)

    def restore(self, ids: Rows, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Takes over a block of blocks(), from whichever rank; ids outside this slice are passed over.

        Args:
            ids: (n,) int64.
            arrays: as blocks() names them.

        Raises:
            StoreError: the disk has no room for the rows.
        """
        here = (ids >= self.start) & (ids < self.start + self.count)
        if not here.all():
            ids, arrays = ids[here], {name: array[here] for name, array in arrays.items()}
        rows = np.asarray(ids).astype(np.int64) - self.start
        self.store.reserve(len(rows))
        self.store.write(rows, np.stack([arrays[name] for name in ("weight", *self.slots)], axis=1))
        self.store.mark[rows] = 1 + (arrays["updates"] if self.rule.kind == "adamw" else self.step)

    def export_blocks(self, block: int = BLOCK) -> Iterator[tuple[npt.NDArray[np.int64], Floats]]:
        """Yields (ids (n,) int64, weight (n, D) float32) of all rows of the slice, up to date, in ascending order.

        Rows never touched are generated, not stored; the centres are as they were afterwards.
        """
        for low in range(0, self.count, block):
            rows = np.arange(low, min(low + block, self.count))
            known = self.store.mark[rows] != 0
            weight = initial_rows(self.seed, rows + self.start, self.dim, self.std)
            weight *= np.float32(self._history.total[0, 0])
            if known.any():
                weight[known] = np.asarray(self.store.weights(rows[known], self._missed(rows[known]), None))
            yield rows + self.start, weight

    def close(self) -> None:
        """Gives the store's memory, file or device buffers back."""
        self.store.close()

    def _rows(self, ids: Rows) -> Rows:
        """Returns the places of sorted ids in the slice."""
        rows = np.asarray(ids, np.int64) - self.start
        if len(rows) and not (rows[0] >= 0 and rows[-1] < self.count):
            raise IndexError(f"classes {ids[0]} to {ids[-1]} are not in {self.start} to {self.start + self.count - 1}")
        return rows

    def _touched(self, block: int) -> Iterator[Rows]:
        """Yields the touched rows of one block after the other; blocks without any are left out."""
        for low in range(0, self.count, block):
            rows = np.flatnonzero(self.store.mark[low : low + block])
            if len(rows):
                yield rows + low

    def _touch(self, rows: Rows) -> None:
        """Brings rows never touched into being: their first value, taken to the present step."""
        new = rows[self.store.mark[rows] == 0]
        self.store.reserve(len(new))
        factors = [self._history.total[0, 0], *[0.0] * len(self.slots)]
        if self.rule.kind == "sgd":
            factors[1] = self._history.total[1, 0]
        self.store.create(new, lambda part: initial_rows(self.seed, part + self.start, self.dim, self.std), factors)
        self.store.mark[new] = 1 + (self.step if self.rule.kind == "sgd" else 0)

    def _missed(self, rows: Rows) -> Floats | None:
        """Returns (n, 2) float32: what takes (weight, momentum) to the present weight; None if rows cannot lag."""
        if self.rule.kind == "adamw":
            return None
        return _factors(self._history.since(self.store.mark[rows] - 1))[:, 0]


def _factors(matrices: npt.NDArray[np.float64]) -> Floats:
    """Returns matrices (n, 2, 2) less 1 at (weight, weight), as float32.

    A factor near 1 rounded to float32 would be off by up to 3e-8 in the same direction at every step, where
    lr * weight_decay is some 1e-5; the difference to 1 keeps its own digits.
    """
    matrices[:, 0, 0] -= 1
    return matrices.astype(np.float32)

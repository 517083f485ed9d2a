"""The class centres of this process's slice, trained as if every row moved at every step, though only samples do.

What a step does to the rows is the rule's business (training.centers.rules), where they lie the store's
(training.centers.store). Rows that were never sampled do not exist: their first value is a function of (seed, class),
and the rule takes it to any step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from faceshards.errors import ConfigError
from training.centers.first_values import initial_rows
from training.centers.registry import STORES
from training.centers.rules import Rule, Sgd
from training.centers.store import Floats, Rows

SGD = Sgd()
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
        rule: how gradients move the rows. Only its numbers are taken over: two slices never share the state of steps.
        store: a name of training.centers.registry.STORES: "memory", "disk" (a sparse file in folder) or "device".
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
        rule: Rule = SGD,
        store: str = "memory",
        folder: Path | None = None,
        std: float = 0.01,
    ) -> None:
        self.start, self.count = slice_of(rank, world, classes)
        self.classes, self.dim, self.seed, self.std = classes, dim, seed, std
        self.rule = dataclasses.replace(rule)
        if store not in STORES:
            raise ConfigError(f"class centres: store {store!r} is not one of {', '.join(STORES)}")
        self.store = STORES[store](self.count, 1 + len(rule.slots), dim, folder)

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the arrays beside the weight."""
        return self.rule.slots

    @property
    def step(self) -> int:
        """Number of updates done."""
        return self.rule.step

    def gather(self, ids: Rows) -> Any:
        """Returns the centres of a sample at the present step.

        Args:
            ids: (S,) int64 global classes of this slice, sorted, distinct.

        Returns:
            (S, D) float32: a NumPy array, which the next call writes over, or a Tensor when the store is the device.
        """
        rows = self._rows(ids)
        self._touch(rows)
        return self.store.weights(rows, self.rule.missed(self.store, rows))

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
        self.rule.update(self.store, rows, grads, lr)

    def settle(self, block: int = BLOCK) -> None:
        """Brings every touched row up to date.

        Args:
            block: rows of the slice looked at together.
        """
        self.rule.settle(self.store, block)

    @property
    def touched(self) -> int:
        """Number of rows that exist: sampled or gathered at least once."""
        return self.store.ledger.total()

    def blocks(self, block: int = BLOCK) -> Iterator[Block]:
        """Yields the touched rows in ascending order, settled, for a checkpoint.

        Args:
            block: rows of the slice looked at together, the most that a block can hold.

        Yields:
            ids (n,) int64, and by name: "weight" (n, D) float32; the `slots`, (n, D) float32 each; "updates" (n,)
            int32, see Rule.updates_of.
        """
        self.settle(block)
        for rows in self.store.ledger.blocks(block):
            records = self.store.records(rows)  # (n, W, D)
            arrays: dict[str, npt.NDArray[Any]] = {
                name: np.ascontiguousarray(records[:, i]) for i, name in enumerate(("weight", *self.slots))
            }
            arrays["updates"] = self.rule.updates_of(self.store.ledger.counts(rows))
            yield rows + self.start, arrays

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint needs beside the blocks: numbers and a (2, 2) array, the same on every rank."""
        return {
            "classes": self.classes,
            "dim": self.dim,
            "seed": self.seed,
            "std": self.std,
            "step": self.step,
            "product": self.rule.product(),  # (2, 2) float64
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
            self.store.ledger.forget()
        self.rule.restart(step, np.array(state["product"], np.float64).reshape(2, 2))

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
        self.store.ledger.enter(rows, self.rule.counts_of(arrays["updates"]))

    def export_blocks(self, block: int = BLOCK) -> Iterator[tuple[npt.NDArray[np.int64], Floats]]:
        """Yields (ids (n,) int64, weight (n, D) float32) of all rows of the slice, up to date, in ascending order.

        Rows never touched are generated, not stored; the centres are as they were afterwards.
        """
        for low in range(0, self.count, block):
            rows = np.arange(low, min(low + block, self.count))
            known = self.store.ledger.known(rows)
            weight = self._first(rows)
            weight *= np.float32(self.rule.first_factors()[0])
            if known.any():
                old = rows[known]
                weight[known] = np.asarray(self.store.weights(old, self.rule.missed(self.store, old)))
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

    def _touch(self, rows: Rows) -> None:
        """Brings rows never touched into being: their first value, taken to the present step."""
        new = rows[~self.store.ledger.known(rows)]
        self.store.reserve(len(new))
        self.store.create(new, self._first, self.rule.first_factors())
        self.store.ledger.enter(new, self.rule.first_count())

    def _first(self, rows: Rows) -> Floats:
        """Returns (n, D): the first values of rows."""
        return initial_rows(self.seed, rows + self.start, self.dim, self.std)

"""The class centres of a slice as parameters on the device; their ledger stays on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from training.centers.store import First, Floats, Ledger, Rows

PART = 8192  # rows of a graph that has no fixed number of them: shapes stay few


class _Linear(nn.Cell):
    """SGD at a sample."""

    def __init__(self, store: DeviceStore) -> None:
        super().__init__()
        self.arrays = store.arrays
        self.put = ops.ScatterUpdate()

    @ms.jit
    def construct(
        self, rows: ms.Tensor, factors: ms.Tensor, grads: ms.Tensor, lr: ms.Tensor
    ) -> tuple[ms.Tensor, ms.Tensor]:
        """Applies factors (n, 4) = (ww - 1, wv, vw, vv) and the gradients (n, D)."""
        weight, momentum = ops.gather(self.arrays[0], rows, 0), ops.gather(self.arrays[1], rows, 0)
        new = weight + (weight * factors[:, 0:1] + momentum * factors[:, 1:2] - grads * lr)
        momentum = weight * factors[:, 2:3] + momentum * factors[:, 3:4] + grads
        self.put(self.arrays[0], rows, new)
        self.put(self.arrays[1], rows, momentum)
        return lr


class _Adam(nn.Cell):
    """AdamW at a sample."""

    def __init__(self, store: DeviceStore, betas: tuple[float, float], eps: float) -> None:
        super().__init__()
        self.arrays = store.arrays
        self.beta1, self.beta2, self.eps = betas[0], betas[1], eps
        self.rest1, self.rest2 = 1 - betas[0], 1 - betas[1]  # in double: the graph would take it in float32
        self.put = ops.ScatterUpdate()

    @ms.jit
    def construct(self, rows: ms.Tensor, factors: ms.Tensor, grads: ms.Tensor) -> ms.Tensor:
        """Takes one step; factors (n, 3): decay of the weight, lr / (1 - beta1^c), 1 / (1 - beta2^c)."""
        first = ops.gather(self.arrays[1], rows, 0) * self.beta1 + grads * self.rest1
        second = ops.gather(self.arrays[2], rows, 0) * self.beta2 + grads * grads * self.rest2
        weight = ops.gather(self.arrays[0], rows, 0) * factors[:, 0:1]
        weight = weight - first * factors[:, 1:2] / (ops.sqrt(second * factors[:, 2:3]) + self.eps)
        self.put(self.arrays[0], rows, weight)
        self.put(self.arrays[1], rows, first)
        self.put(self.arrays[2], rows, second)
        return rows


class _Write(nn.Cell):
    """Stores rows of one array."""

    def __init__(self, array: ms.Parameter) -> None:
        super().__init__()
        self.array = array
        self.put = ops.ScatterUpdate()

    @ms.jit
    def construct(self, rows: ms.Tensor, values: ms.Tensor) -> ms.Tensor:
        """Writes values (n, D)."""
        self.put(self.array, rows, values)
        return rows


class DeviceStore:
    """W parameters of (count, D) float32, read and written at the sampled rows by small graphs.

    Samples have a fixed size, so the update compiles once; rows written or settled come in any number and are padded
    to a multiple of 8,192 by repeating the last one, which writes equal values to equal places.

    Args:
        count: rows.
        width: W, 1 + the number of slots.
        dim: D.
    """

    def __init__(self, count: int, width: int, dim: int) -> None:
        self.dim = dim
        self.ledger = Ledger(np.zeros(count, np.int32))
        self.arrays = ms.ParameterTuple(
            [
                ms.Parameter(ms.Tensor(np.zeros((count, dim), np.float32)), name=f"centers_{slot}", requires_grad=False)
                for slot in range(width)
            ]
        )
        self._linear = _Linear(self)
        self._writes = [_Write(array) for array in self.arrays]
        self._adam: _Adam | None = None

    def reserve(self, rows: int) -> None:
        """All rows have their place from the beginning."""

    def weights(self, rows: Rows, factors: Floats | None) -> ms.Tensor:
        """Returns a Tensor (n, D); see Store."""
        index = _index(rows)
        weight = ops.gather(self.arrays[0], index, 0)
        if factors is None:
            return weight
        momentum = ops.gather(self.arrays[1], index, 0)
        return weight + (weight * ms.Tensor(factors[:, :1]) + momentum * ms.Tensor(factors[:, 1:]))

    def records(self, rows: Rows) -> Floats:
        """Returns (n, W, D) on the host; see Store."""
        index = _index(rows)
        return np.stack([ops.gather(array, index, 0).asnumpy() for array in self.arrays], axis=1)

    def create(self, rows: Rows, first: First, factors: Sequence[float]) -> None:
        """Stores first values times factors; see Store."""
        for low in range(0, len(rows), PART):
            part = rows[low : low + PART]
            values = first(part)  # (m, D)
            self.write(part, np.stack([values * np.float32(factor) for factor in factors], axis=1))

    def write(self, rows: Rows, records: Floats) -> None:
        """Stores (n, W, D); see Store."""
        rows, records = _padded(rows), _padded(records)
        for low in range(0, len(rows), PART):
            index = _index(rows[low : low + PART])
            for slot, write in enumerate(self._writes):
                write(index, ms.Tensor(np.ascontiguousarray(records[low : low + PART, slot])))

    def linear(self, rows: Rows, factors: Floats, grads: Any = None, lr: float = 0.0) -> None:
        """Applies (n, 2, 2) to (weight, momentum) and adds the gradient's part; see Store."""
        flat = factors.reshape(-1, 4)
        if grads is not None:
            grads = grads if isinstance(grads, ms.Tensor) else ms.Tensor(grads)
            self._linear(_index(rows), ms.Tensor(flat), grads, ms.Tensor(lr, ms.float32))
            return
        order = np.arange(len(rows))
        for low in range(0, len(rows), PART):
            part = _padded(order[low : low + PART])
            zero = ops.zeros((len(part), self.dim), ms.float32)
            self._linear(_index(rows[part]), ms.Tensor(flat[part]), zero, ms.Tensor(0.0, ms.float32))

    def adam(self, rows: Rows, factors: Floats, grads: Any, *, betas: tuple[float, float], eps: float) -> None:
        """Takes one AdamW step at the rows; see Store."""
        if self._adam is None:
            self._adam = _Adam(self, betas, eps)
        self._adam(_index(rows), ms.Tensor(factors), grads if isinstance(grads, ms.Tensor) else ms.Tensor(grads))

    def close(self) -> None:
        """Lets go of the device's buffers."""
        del self.arrays, self._linear, self._writes, self._adam


def _index(rows: Rows) -> ms.Tensor:
    """Returns rows as int32, which every device's gather takes."""
    return ms.Tensor(rows.astype(np.int32))


def _padded(array: Any) -> Any:
    """Returns the array with its last entry repeated up to a multiple of PART."""
    lack = -len(array) % PART
    return np.concatenate([array, np.repeat(array[-1:], lack, axis=0)]) if lack else array

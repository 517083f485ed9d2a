"""What the rest of the code knows of a backbone: its SPEC. Which backbone it is, nobody asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import mindspore as ms
import numpy as np
from mindspore import nn


@dataclass(frozen=True)
class Spec:
    """A backbone. One file holds its cells and its SPECS; a line in the registry adds them.

    The cells hold the rest, each beside its construct, so that the two are read together:

    - layer names are those of PyTorch's implementation, so that training.weights.names needs no table;
    - a cell that is not MindSpore's own has ``to_onnx(graph, x)``, its translation to ONNX;
    - a backbone that leaves something to chance in training has ``draw(rng, images, drop_path, mask_ratio)``, arrays
      that its construct takes after the images.

    Args:
        build: gives the backbone, (B, 3, 112, 112) float32 to (B, D), from D, the seed of its first values, and whether
            activations are computed again in the backward pass.
        last_norm: name of the last norm, whose gain has the length D.
        multiply_adds: of one image of 112 x 112, in 10^9, as arcface_torch's pages and configurations give them; None
            where they are not published.
        values: numbers in a checkpoint's backbone, moving means and variances too: those that are there whatever D is,
            and those of each component; what a run will need on disk follows from them. Zeros where nobody counted.
    """

    build: Callable[[int, int, bool], nn.Cell]
    last_norm: str
    multiply_adds: float | None = None
    values: tuple[int, int] = (0, 0)


class Graph(Protocol):
    """An ONNX graph in the making, as a cell's to_onnx sees it; values are known by their names."""

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Returns the name of the output of a new node."""

    def array(self, value: ms.Parameter | np.ndarray) -> str:
        """Returns the name of a constant."""

    def shape(self, *sides: int) -> str:
        """Returns the name of a constant shape; 0 keeps a side, -1 takes what is left."""

    def chain(self, x: str, *cells: nn.Cell) -> str:
        """Returns the name of the output of cells, one after the other, for the input `x`."""

"""The size of a backbone."""

from __future__ import annotations

import math

from mindspore import nn


def count_parameters(cell: nn.Cell) -> int:
    """Returns how many numbers are trained or, like a batch norm's gain that is fixed at 1, belong to the weights.

    Moving means and variances do not count, as in PyTorch's parameters().
    """
    return sum(math.prod(p.shape) for p in cell.get_parameters() if not p.name.endswith(("mean", "variance")))

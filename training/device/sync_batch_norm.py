"""Batch norm over the images of all ranks, so that one rank and several train alike."""

from __future__ import annotations

import mindspore as ms
from mindspore import nn, ops

from training.device.cpu import replace
from training.device.distributed import Group


class SyncBatchNorm(nn.Cell):
    """A batch norm layer whose mean and variance are those of all ranks' images.

    MindSpore's own SyncBatchNorm does not run on CPU (2.10). In evaluation it is the layer it was made from. Source:
    batch norm, arXiv 1502.03167, algorithm 1; the moving variance is the unbiased one, as in torch.

    Args:
        layer: nn.BatchNorm1d or nn.BatchNorm2d; its parameters are shared, names included.
        group: the ranks, each with equally many images.
    """

    def __init__(self, layer: nn.Cell, group: Group) -> None:
        super().__init__(auto_prefix=False)
        self.layer = layer
        self.group = group
        self.eps = layer.eps
        self.kept = 1 - layer.momentum  # of a moving value at a step; the layer keeps torch's momentum

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Returns x (B, C) or (B, C, H, W), normalised."""
        if not self.training:
            return self.layer(x)
        axes = (0, 2, 3) if x.ndim == 4 else (0,)
        shape = (1, -1, 1, 1) if x.ndim == 4 else (1, -1)
        count = self.group.world * x.size // x.shape[1]
        wide = x.astype(ms.float32)
        mean = self.group.sum(wide.sum(axis=axes)) / count  # (C,)
        centred = wide - mean.reshape(shape)
        variance = self.group.sum(ops.square(centred).sum(axis=axes)) / count  # (C,)
        old_mean, old_variance = self.layer.moving_mean, self.layer.moving_variance
        unbiased = ops.stop_gradient(variance) * (count / max(count - 1, 1))
        ops.assign(old_mean, old_mean * self.kept + ops.stop_gradient(mean) * (1 - self.kept))
        ops.assign(old_variance, old_variance * self.kept + unbiased * (1 - self.kept))
        gain = self.layer.gamma * ops.rsqrt(variance + self.eps)
        return (centred * gain.reshape(shape) + self.layer.beta.reshape(shape)).astype(x.dtype)


def synchronise(cell: nn.Cell, group: Group) -> None:
    """Replaces every batch norm layer below a cell; does nothing for one rank."""
    if group.world == 1:
        return
    for parent in [found for _, found in cell.cells_and_names() if not isinstance(found, SyncBatchNorm)]:
        for name, child in parent._cells.items():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                replace(parent, name, SyncBatchNorm(child, group))

"""Layers for a CPU: convolutions as the matrix products that they are, and a PReLU that always gives the same.

On the CPUs where this was measured MindSpore 2.10 hands a convolution to oneDNN in plain layouts and gets its reference
code: 64 images, 64 to 64 channels, 3x3 on 14x14, forward and backward, 2,201 ms. Taking the patches apart (unfold) and
multiplying takes 55 ms. 1x1 convolutions get a matrix product anyway and stay as they are. A depthwise convolution has
too little to multiply for its patches; as a product with a band matrix per channel it takes (16 images, 128 channels,
3x3 on 28x28, forward and backward) 56 ms, with patches 182, and oneDNN's code 265.

The gradient of nn.PReLU's slopes differs in its last bits from call to call, which no resumed run could repeat; of the
layers of our backbones it is the only one. Made of ReLU it does not, and takes 28 instead of 38 ms (64 x 32 x 28 x 28).
"""

from __future__ import annotations

import mindspore as ms
from mindspore import nn, ops


class UnfoldedConv2d(nn.Cell):
    """A convolution as unfold and matrix product; see the module.

    Args:
        layer: what it stands for; its weight is shared, name included.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__(auto_prefix=False)
        self.layer = layer
        self.kernel, self.stride = layer.kernel_size, layer.stride
        self.padding = layer.padding if isinstance(layer.padding, int) else layer.padding[0]

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Returns (B, outputs, H', W') for x (B, inputs, H, W)."""
        images = x.shape[0]
        high = (x.shape[2] + 2 * self.padding - self.kernel[0]) // self.stride[0] + 1
        wide = (x.shape[3] + 2 * self.padding - self.kernel[1]) // self.stride[1] + 1
        patches = ops.unfold(x, self.kernel, 1, self.padding, self.stride)  # (B, inputs * taps, H' * W')
        weight = self.layer.weight
        out = ops.matmul(weight.reshape(weight.shape[0], -1), patches)  # (B, outputs, H' * W')
        if self.layer.has_bias:
            out = out + self.layer.bias.reshape(-1, 1)
        return out.reshape(images, -1, high, wide)


class BandedConv2d(nn.Cell):
    """A depthwise convolution as two matrix products; see the module.

    The first takes for every row of the result the rows of the map that it is made of, which is a matrix of zeros and
    ones; the second multiplies them by a band matrix of the channel's weights. Padding is what a band leaves out.

    Args:
        layer: what it stands for, without bias; its weight is shared, name included.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__(auto_prefix=False)
        self.layer = layer
        self.kernel, self.stride = layer.kernel_size, layer.stride
        self.padding = layer.padding if isinstance(layer.padding, int) else layer.padding[0]

    def places(self, size: int, axis: int, dtype: ms.Type) -> ms.Tensor:
        """Returns (taps, size, size'): 1 where a tap of a place in the result lies in the map."""
        out = (size + 2 * self.padding - self.kernel[axis]) // self.stride[axis] + 1
        start = ops.arange(0, out).reshape(1, 1, -1) * self.stride[axis] - self.padding
        tap = ops.arange(0, self.kernel[axis]).reshape(-1, 1, 1)
        return ops.equal(ops.arange(0, size).reshape(1, -1, 1), start + tap).astype(dtype)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Returns (B, C, H', W') for x (B, C, H, W)."""
        images, channels, height, width = x.shape
        # In the map's precision: what a graph makes itself, mixed precision does not cast.
        down, across = self.places(height, 0, x.dtype), self.places(width, 1, x.dtype)
        high, wide = down.shape[2], across.shape[2]
        rows = ops.matmul(down.transpose(2, 0, 1).reshape(-1, height), x)  # (B, C, H' * taps, W)
        rows = rows.reshape(images, channels, high, self.kernel[0] * width)
        weight = self.layer.weight.reshape(channels * self.kernel[0], self.kernel[1])
        band = ops.matmul(weight, across.reshape(self.kernel[1], width * wide))
        return ops.matmul(rows, band.reshape(1, channels, self.kernel[0] * width, wide))


class SteadyPReLU(nn.Cell):
    """A PReLU whose gradient is the same bits each time; see the module.

    Args:
        layer: what it stands for; its slopes are shared, name included.
    """

    def __init__(self, layer: nn.PReLU) -> None:
        super().__init__(auto_prefix=False)
        self.layer = layer

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Returns max(x, 0) - slope * max(-x, 0) for x (B, C, H, W) or (B, C)."""
        shape = (1, -1, 1, 1) if x.ndim == 4 else (1, -1)
        return ops.relu(x) - self.layer.w.reshape(shape) * ops.relu(-x)


REPLACEMENTS = (UnfoldedConv2d, BandedConv2d, SteadyPReLU)


def adapt_to_cpu(cell: nn.Cell) -> None:
    """Replaces the layers below a cell that gain by it; parameters and their names stay, results but for rounding.

    A second call changes nothing: the layers that replacements stand for stay.
    """
    for parent in [found for _, found in cell.cells_and_names() if not isinstance(found, REPLACEMENTS)]:
        for name, child in list(parent._cells.items()):
            if isinstance(child, nn.PReLU):
                replace(parent, name, SteadyPReLU(child))
            if not isinstance(child, nn.Conv2d) or child.kernel_size == (1, 1) or not _is_plain(child):
                continue
            if child.group == 1:
                replace(parent, name, UnfoldedConv2d(child))
            elif child.group == child.in_channels == child.out_channels and not child.has_bias:
                replace(parent, name, BandedConv2d(child))


def _is_plain(layer: nn.Conv2d) -> bool:
    """Returns whether a convolution has no gaps between its taps, and pads all four sides alike; our backbones' do."""
    sides = (layer.padding,) if isinstance(layer.padding, int) else tuple(layer.padding)
    alike = layer.pad_mode == "pad" or (layer.pad_mode == "valid" and not any(sides))
    return alike and len(set(sides)) == 1 and tuple(layer.dilation) == (1, 1)


def replace(parent: nn.Cell, name: str, child: nn.Cell) -> None:
    """Puts a cell in the place of another, whose parameters keep their names (setattr would give them second ones)."""
    parent._cells[name] = child
    if isinstance(parent, nn.SequentialCell):
        parent.cell_list = list(parent._cells.values())  # what its construct goes through

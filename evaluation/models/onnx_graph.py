"""Backbones as ONNX graphs with any number of images: one function for every kind of MindSpore's layers.

A backbone's own cells have a method to_onnx beside their construct (training.backbones.spec).

MindSpore's own ONNX export fixes the number of images. Operators are those of opset 17, the first with
LayerNormalization (onnx.ai/onnx/operators).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
import onnx
from mindspore import nn
from onnx import TensorProto, helper, numpy_helper

from faceshards.errors import FaceshardsError

OPSET, IR_VERSION = 17, 8
INPUT, OUTPUT = "images", "embeddings"


class OnnxError(FaceshardsError):
    """A backbone has a layer that has no translation."""


class OnnxGraph:
    """Nodes and arrays of a graph in the making: training.backbones.spec.Graph."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.arrays: list[onnx.TensorProto] = []

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Returns the name of the output of a new node."""
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def array(self, value: ms.Parameter | np.ndarray) -> str:
        """Returns the name of a constant."""
        name = f"array_{len(self.arrays)}"
        found = value.asnumpy() if isinstance(value, ms.Parameter) else value
        self.arrays.append(numpy_helper.from_array(np.ascontiguousarray(found), name))
        return name

    def shape(self, *sides: int) -> str:
        """Returns the name of a constant shape; 0 keeps a side, -1 takes what is left."""
        return self.array(np.array(sides, np.int64))

    def chain(self, x: str, *cells: nn.Cell) -> str:
        """Returns the name of the output of cells, one after the other, for the input `x`.

        Raises:
            OnnxError: a cell has no translation.
        """
        for cell in cells:
            x = _translate(self, cell, x)
        return x


def convert(cell: nn.Cell, embedding_size: int, facts: dict[str, str]) -> onnx.ModelProto:
    """Returns a backbone in evaluation mode as ONNX: images [batch, 3, 112, 112] to embeddings [batch, D].

    Args:
        cell: a backbone, not adapted to a CPU.
        embedding_size: D.
        facts: written into the model's metadata.

    Raises:
        OnnxError: a layer without a translation.
    """
    graph = OnnxGraph()
    last = graph.chain(INPUT, cell)
    graph.nodes[-1].output[0] = OUTPUT
    if last != graph.nodes[-1].name:
        raise OnnxError(f"{type(cell).__name__}: its last layer is not its output")
    made = helper.make_graph(
        graph.nodes,
        "faceshards",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", 3, 112, 112])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", embedding_size])],
        graph.arrays,
    )
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(made, producer_name="faceshards", opset_imports=[opset], ir_version=IR_VERSION)
    helper.set_model_props(model, facts)
    return model


def _translate(graph: OnnxGraph, cell: nn.Cell, x: str) -> str:
    """Returns the name of a cell's output for the input `x`."""
    if hasattr(cell, "to_onnx"):
        return cell.to_onnx(graph, x)
    for kind, translate in _TRANSLATIONS:
        if isinstance(cell, kind):
            return translate(graph, cell, x)
    raise OnnxError(f"a layer {type(cell).__name__} has no translation to ONNX")


def _conv(graph: OnnxGraph, cell: nn.Conv2d, x: str) -> str:
    side = cell.padding if isinstance(cell.padding, int) else cell.padding[0]
    if cell.pad_mode != "pad" or cell.dilation not in (1, (1, 1)):
        raise OnnxError(f"a convolution with pad_mode '{cell.pad_mode}', dilation {cell.dilation}")
    inputs = [x, graph.array(cell.weight), *([graph.array(cell.bias)] if cell.has_bias else [])]
    sizes = {"kernel_shape": list(cell.kernel_size), "strides": list(cell.stride), "pads": [side] * 4}
    return graph.add("Conv", *inputs, **sizes, group=cell.group)


def _batch_norm(graph: OnnxGraph, cell: nn.BatchNorm2d, x: str) -> str:
    arrays = (cell.gamma, cell.beta, cell.moving_mean, cell.moving_variance)
    return graph.add("BatchNormalization", x, *map(graph.array, arrays), epsilon=float(cell.eps))


def _layer_norm(graph: OnnxGraph, cell: nn.LayerNorm, x: str) -> str:
    arrays = (cell.gamma, cell.beta)
    return graph.add("LayerNormalization", x, *map(graph.array, arrays), axis=-1, epsilon=float(cell.epsilon))


def _prelu(graph: OnnxGraph, cell: nn.PReLU, x: str) -> str:
    return graph.add("PRelu", x, graph.array(cell.w.asnumpy().reshape(-1, 1, 1)))


def _flatten(graph: OnnxGraph, _: nn.Cell, x: str) -> str:
    return graph.add("Flatten", x, axis=1)


def _dense(graph: OnnxGraph, cell: nn.Dense, x: str) -> str:
    x = graph.add("MatMul", x, graph.array(cell.weight.asnumpy().T))
    return graph.add("Add", x, graph.array(cell.bias)) if cell.has_bias else x


_TRANSLATIONS: tuple[tuple[Any, Callable[[OnnxGraph, Any, str], str]], ...] = (
    (nn.Conv2d, _conv),
    ((nn.BatchNorm1d, nn.BatchNorm2d), _batch_norm),
    (nn.LayerNorm, _layer_norm),
    (nn.PReLU, _prelu),
    (nn.Dense, _dense),
    (nn.Flatten, _flatten),
    (nn.SequentialCell, lambda graph, cell, x: graph.chain(x, *cell)),
)

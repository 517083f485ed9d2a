"""Backbones as ONNX graphs with any number of images: one function for every kind of layer.

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
from training.backbones.iresnet import IResNet, Unit
from training.backbones.mobilefacenet import DepthWise, MobileFaceNet, NarrowMobileFaceNet, _Layers
from training.backbones.vit import TOKENS, Attention, Block, Mlp, PatchEmbed, VisionTransformer

OPSET, IR_VERSION = 17, 8
INPUT, OUTPUT = "images", "embeddings"


class OnnxError(FaceshardsError):
    """A backbone has a layer that has no translation."""


class Graph:
    """Nodes and arrays of a graph in the making; values are known by their names."""

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


def convert(cell: nn.Cell, embedding_size: int, facts: dict[str, str]) -> onnx.ModelProto:
    """Returns a backbone in evaluation mode as ONNX: images [batch, 3, 112, 112] to embeddings [batch, D].

    Args:
        cell: a backbone, not adapted to a CPU.
        embedding_size: D.
        facts: written into the model's metadata.

    Raises:
        OnnxError: a layer that is not among those of the backbones.
    """
    graph = Graph()
    last = _convert(graph, cell, INPUT)
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
    model = helper.make_model(made, producer_name="faceshards", opset_imports=[helper.make_opsetid("", OPSET)],
                              ir_version=IR_VERSION)  # fmt: skip
    helper.set_model_props(model, facts)
    return model


def _convert(graph: Graph, cell: nn.Cell, x: str) -> str:
    """Returns the name of a layer's output for the input `x`."""
    for kind, translate in _TRANSLATIONS:
        if isinstance(cell, kind):
            return translate(graph, cell, x)
    raise OnnxError(f"a layer {type(cell).__name__} has no translation to ONNX")


def _chain(graph: Graph, x: str, *cells: nn.Cell) -> str:
    for cell in cells:
        x = _convert(graph, cell, x)
    return x


def _conv(graph: Graph, cell: nn.Conv2d, x: str) -> str:
    side = cell.padding if isinstance(cell.padding, int) else cell.padding[0]
    if cell.pad_mode != "pad" or cell.dilation not in (1, (1, 1)):
        raise OnnxError(f"a convolution with pad_mode '{cell.pad_mode}', dilation {cell.dilation}")
    inputs = [x, graph.array(cell.weight), *([graph.array(cell.bias)] if cell.has_bias else [])]
    return graph.add("Conv", *inputs, kernel_shape=list(cell.kernel_size), strides=list(cell.stride),
                     pads=[side] * 4, group=cell.group)  # fmt: skip


def _batch_norm(graph: Graph, cell: nn.BatchNorm2d, x: str) -> str:
    arrays = (cell.gamma, cell.beta, cell.moving_mean, cell.moving_variance)
    return graph.add("BatchNormalization", x, *map(graph.array, arrays), epsilon=float(cell.eps))


def _layer_norm(graph: Graph, cell: nn.LayerNorm, x: str) -> str:
    arrays = (cell.gamma, cell.beta)
    return graph.add("LayerNormalization", x, *map(graph.array, arrays), axis=-1, epsilon=float(cell.epsilon))


def _prelu(graph: Graph, cell: nn.PReLU, x: str) -> str:
    return graph.add("PRelu", x, graph.array(cell.w.asnumpy().reshape(-1, 1, 1)))


def _flatten(graph: Graph, _: nn.Cell, x: str) -> str:
    return graph.add("Flatten", x, axis=1)


def _dense(graph: Graph, cell: nn.Dense, x: str) -> str:
    x = graph.add("MatMul", x, graph.array(cell.weight.asnumpy().T))
    return graph.add("Add", x, graph.array(cell.bias)) if cell.has_bias else x


def _unit(graph: Graph, cell: Unit, x: str) -> str:
    out = _chain(graph, x, cell.bn1, cell.conv1, cell.bn2, cell.prelu, cell.conv2, cell.bn3)
    return graph.add("Add", out, _convert(graph, cell.downsample, x) if cell.projects else x)


def _iresnet(graph: Graph, cell: IResNet, x: str) -> str:
    return _chain(graph, x, cell.conv1, cell.bn1, cell.prelu, cell.layer1, cell.layer2, cell.layer3, cell.layer4,
                  cell.bn2, cell.flatten, cell.fc, cell.features)  # fmt: skip


def _depthwise(graph: Graph, cell: DepthWise, x: str) -> str:
    out = _convert(graph, cell.layers, x)
    return graph.add("Add", x, out) if cell.residual else out


def _mobilefacenet(graph: Graph, cell: MobileFaceNet, x: str) -> str:
    return _chain(graph, x, *cell.layers, cell.conv_sep, cell.features)


def _attention(graph: Graph, cell: Attention, x: str) -> str:
    width = cell.qkv.weight.shape[1]
    parts = []
    for weight, order in zip(np.split(cell.qkv.weight.asnumpy(), 3), ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)),
                             strict=True):  # fmt: skip
        part = graph.add("MatMul", x, graph.array(weight.T))  # (B, N, C)
        part = graph.add("Reshape", part, graph.shape(0, TOKENS, cell.heads, width // cell.heads))
        parts.append(graph.add("Transpose", part, perm=order))  # (B, heads, N, C / heads), of keys the last two swapped
    products = graph.add("Mul", graph.add("MatMul", parts[0], parts[1]), graph.array(np.float32(cell.scale)))
    out = graph.add("MatMul", graph.add("Softmax", products, axis=-1), parts[2])  # (B, heads, N, C / heads)
    out = graph.add("Reshape", graph.add("Transpose", out, perm=(0, 2, 1, 3)), graph.shape(0, TOKENS, width))
    return _convert(graph, cell.proj, out)


def _mlp(graph: Graph, cell: Mlp, x: str) -> str:
    bounds = [graph.array(np.float32(bound)) for bound in (0, 6)]
    return _convert(graph, cell.fc2, graph.add("Clip", _convert(graph, cell.fc1, x), *bounds))


def _block(graph: Graph, cell: Block, x: str) -> str:
    x = graph.add("Add", x, _chain(graph, x, cell.norm1, cell.attn))
    return graph.add("Add", x, _chain(graph, x, cell.norm2, cell.mlp))


def _patches(graph: Graph, cell: PatchEmbed, x: str) -> str:
    x = graph.add("Reshape", _convert(graph, cell.proj, x), graph.shape(0, 0, -1))
    return graph.add("Transpose", x, perm=(0, 2, 1))


def _transformer(graph: Graph, cell: VisionTransformer, x: str) -> str:
    x = graph.add("Add", _convert(graph, cell.patch_embed, x), graph.array(cell.pos_embed))
    x = _flatten(graph, cell, _chain(graph, x, *cell.blocks, cell.norm))
    return _convert(graph, cell.feature, x)


_TRANSLATIONS: tuple[tuple[Any, Callable[[Graph, Any, str], str]], ...] = (
    (nn.Conv2d, _conv),
    ((nn.BatchNorm1d, nn.BatchNorm2d), _batch_norm),
    (nn.LayerNorm, _layer_norm),
    (nn.PReLU, _prelu),
    (nn.Dense, _dense),
    (nn.Flatten, _flatten),
    (nn.SequentialCell, lambda graph, cell, x: _chain(graph, x, *cell)),
    (Unit, _unit),
    (IResNet, _iresnet),
    (DepthWise, _depthwise),
    (_Layers, lambda graph, cell, x: _convert(graph, cell.layers, x)),
    ((MobileFaceNet, NarrowMobileFaceNet), _mobilefacenet),
    (Attention, _attention),
    (Mlp, _mlp),
    (Block, _block),
    (PatchEmbed, _patches),
    (VisionTransformer, _transformer),
)

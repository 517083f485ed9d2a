"""Slopes of PReLU in ONNX files as ONNX has them.

MXNet's exporters write a slope per channel as [C]. ONNX broadcasts from the last axis, so that [C] belongs to the
columns of a map [N, C, H, W]; ONNX Runtime loads such a file and fails when it runs. [C, 1, 1] is what was meant.

Source: onnx/docs/Operators.md, PRelu, and Broadcasting.md.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import helper, numpy_helper


def shape_slopes(model: onnx.ModelProto) -> int:
    """Returns how many slopes of a model were given the shape [C, 1, 1], by a Reshape in front of their PReLU.

    That leaves what else uses them as it is, and serves slopes that are constants, or come through other nodes. Those
    of what is no map [N, C, H, W], and those of one number, are left alone.

    Args:
        model: changed in place.
    """
    arrays = {array.name: list(array.dims) for array in model.graph.initializer}
    slopes = [arrays.get(node.input[1]) for node in model.graph.node if node.op_type == "PRelu"]
    if all(slope is not None and _lies_along(slope) for slope in slopes):
        return 0
    shapes = _shapes(model) | arrays
    nodes, changed = [], 0
    for node in model.graph.node:
        if node.op_type == "PRelu" and _is_flat(shapes.get(node.input[0]), shapes.get(node.input[1])):
            changed += 1
            name = f"{node.output[0]}_slopes"
            target = numpy_helper.from_array(np.array([-1, 1, 1], np.int64), f"{name}_shape")
            model.graph.initializer.append(target)
            if model.ir_version < 4:  # whose constants are inputs, too
                model.graph.input.append(helper.make_tensor_value_info(target.name, onnx.TensorProto.INT64, [3]))
            nodes.append(helper.make_node("Reshape", [node.input[1], target.name], [name], name=name))
            node.input[1] = name
        nodes.append(node)
    if changed:
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    return changed


def _lies_along(slope: list[int]) -> bool:
    """Returns whether slopes lie along the channels of a map, or are one number."""
    return math.prod(slope) == (slope[-3] if len(slope) >= 3 else 1)


def _is_flat(x: list[int] | None, slope: list[int] | None) -> bool:
    """Returns whether slopes are one per channel of a map, but do not lie along its channels.

    Args:
        x: shape of the input of a PReLU, 0 where it is not known; None: not known at all.
        slope: likewise of its slopes.
    """
    if x is None or slope is None or len(x) != 4 or 0 in slope or _lies_along(slope):
        return False
    return math.prod(slope) == x[1] or (x[1] == 0 and len(slope) == 1)


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Returns the shapes of the values of a graph, as far as they can be known; 0 for a side that is free."""
    try:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception:  # of onnx's own kinds: a model that cannot be inferred may still run
        graph = model.graph
    return {
        value.name: [side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }

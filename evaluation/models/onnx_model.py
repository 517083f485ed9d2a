"""ONNX files as models, by ONNX Runtime."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.embedder import Forward
from evaluation.models.model import ModelError, check_graph, graph_forward, to_pixels

log = logging.getLogger(__name__)

_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
_SILENT = 4  # log only what ends the process: errors come as exceptions, too


def onnx_forward(path: Path, input_range: str = "auto") -> tuple[Forward, str]:
    """Returns an ONNX model as a function, and the range of the pixels that it gets, "0-255" or "-1-1".

    MXNet's old ArcFace models begin with a subtraction and a multiplication of the pixels; they get pixels, 0 to 255.
    Source: insightface, python-package/insightface/model_zoo/arcface_onnx.py, which tells them so too.

    Args:
        path: of the file.
        input_range: of evaluation.models.model.RANGES; "auto" looks at the graph's first operations.

    Raises:
        ModelError: not of faces, damaged, it cannot be run, or ONNX Runtime is not installed.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError:
        raise ModelError(f"{path}: needs onnxruntime: pip install 'faceshards[eval]'") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    try:
        content, graph, changed = _read(path, onnx)
    except Exception as error:  # of protobuf's and onnx's own kinds
        raise ModelError(f"{path}: not an ONNX model, or damaged: {_cause(error)}") from None
    try:
        session = onnxruntime.InferenceSession(content, options, providers=onnxruntime.get_available_providers())
    except Exception as error:  # of onnxruntime's own kinds
        raise ModelError(f"{path}: ONNX Runtime does not take it: {_cause(error)}") from None
    inputs, outputs = session.get_inputs(), session.get_outputs()
    check_graph(path, [entry.shape for entry in inputs], [entry.shape for entry in outputs])
    name, kind, first = inputs[0].name, inputs[0].type, (inputs[0].shape or [0])[0]
    if kind not in _FLOATS:
        raise ModelError(f"{path}: takes {kind}, not float32, float16 or float64")
    own = input_range == "auto" and _begins_with(graph, name) == ["Sub", "Mul"]
    pixels = own or input_range == "0-255"

    def run(images: np.ndarray) -> list[np.ndarray]:
        given = to_pixels(images) if pixels else images
        try:
            return session.run(None, {name: given.astype(_FLOATS[kind])})
        except Exception as error:  # of onnxruntime's own kinds
            raise ModelError(f"{path}: ONNX Runtime cannot run it: {_cause(error)}") from None

    names = [entry.name for entry in outputs]
    forward = graph_forward(path, run, names, first if isinstance(first, int) and first > 0 else 0)
    if changed:
        log.warning("%s: the slopes of %d PReLU are one per channel: [C] is taken as [C, 1, 1]", path, changed)
    if own:
        log.warning("%s: begins with a subtraction and a multiplication: it gets pixels from 0 to 255", path)
    return forward, "0-255" if pixels else "-1-1"


def _read(path: Path, onnx: Any) -> tuple[str | bytes, Any, int]:
    """Returns what ONNX Runtime shall load: the file itself, or the model with its slopes put right; the graph; and how
    many slopes that were."""
    from evaluation.models.onnx_slopes import shape_slopes

    model = onnx.load(str(path), load_external_data=False)
    if not (changed := shape_slopes(model)):
        return str(path), model.graph, 0
    onnx.load_external_data_for_model(model, str(path.parent))
    return model.SerializeToString(), model.graph, changed


def _begins_with(graph: Any, name: str) -> list[str]:
    """Returns the kinds of the first two nodes that change the input of a graph."""
    kinds: list[str] = []
    for node in graph.node:
        if name in node.input and len(kinds) < 2:
            kinds += [] if node.op_type in ("Identity", "Cast") else [node.op_type]
            name = node.output[0]
    return kinds


def _cause(error: Exception) -> str:
    """Returns an error of ONNX Runtime in one line, without its places in the source."""
    text = " ".join(str(error).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    return re.sub(r"\S*/onnxruntime\S*:\d+ [^()]*\([^()]*\) (const )?", "", text)[:300]

"""ONNX files as models, by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from evaluation.embedder import Forward
from evaluation.models.model import ModelError, check_graph, in_batches


def onnx_forward(path: Path) -> Forward:
    """Returns an ONNX model as a function.

    MXNet's old ArcFace models begin with a subtraction and a multiplication of the pixels; they get pixels, 0 to 255.
    Source: insightface, python-package/insightface/model_zoo/arcface_onnx.py, which tells them so too.

    Raises:
        ModelError: not of faces, damaged, or ONNX Runtime is not installed.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError:
        raise ModelError(f"{path}: needs onnxruntime: pip install 'faceshards[eval]'") from None
    try:
        session = onnxruntime.InferenceSession(str(path), providers=onnxruntime.get_available_providers())
        nodes = onnx.load(str(path), load_external_data=False).graph.node[:2]
    except Exception as error:  # of onnxruntime's and protobuf's own kinds
        raise ModelError(f"{path}: not an ONNX model, or damaged: {' '.join(str(error).split())[:200]}") from None
    inputs, outputs = session.get_inputs(), session.get_outputs()
    check_graph(path, [entry.shape for entry in inputs], [entry.shape for entry in outputs])
    if (inputs[0].type, outputs[0].type) != ("tensor(float)", "tensor(float)"):
        raise ModelError(f"{path}: takes {inputs[0].type} and gives {outputs[0].type}, not float32")
    own = [node.op_type for node in nodes] == ["Sub", "Mul"] and inputs[0].name in nodes[0].input
    name, first = inputs[0].name, inputs[0].shape[0]

    def run(images: np.ndarray) -> np.ndarray:
        return session.run(None, {name: images * np.float32(127.5) + np.float32(127.5) if own else images})[0]

    return in_batches(path, run, first if isinstance(first, int) and first > 0 else 0)

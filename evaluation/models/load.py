"""Models to embed with: our checkpoints, files of weights, ONNX and MindIR. docs/models.md says what is taken."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn

from evaluation.embedder import SIZE, Forward
from faceshards.errors import FaceshardsError, WeightsError
from faceshards.files import file_digest
from training import checkpoint
from training.backbones.registry import BACKBONES, create_backbone, find_spec
from training.device.cpu import adapt_to_cpu
from training.weights import read as weights
from training.weights.assign import embedding_size, set_parameters, set_weights

GRAPHS = (".onnx", ".mindir")
SHAPE = (3, *SIZE)  # of an image
CPU_BATCH = 16  # images that MindSpore takes together on a CPU: 128 of mbf take 16 GB, 16 are as fast and take 2


class ModelError(FaceshardsError):
    """A model is missing, damaged, or not of faces of 112 x 112."""


@dataclass(frozen=True)
class Model:
    """A model to embed with.

    Args:
        forward: (B, 3, 112, 112) float32, RGB, (x / 255 - 0.5) / 0.5, to (B, D) float32. Callers keep to one B: for
            another one a backbone is compiled anew.
        backbone: its name, "" if it is not known.
        path: of the file, or of the checkpoint that was chosen.
        sha256: hex, of the file, or of the checkpoint's weights.
        card: what is known of it, by the keys of a card (docs/models.md); may be empty.
    """

    forward: Forward
    backbone: str
    path: Path
    sha256: str
    card: dict[str, Any]


@dataclass(frozen=True)
class Source:
    """A backbone with its weights, in evaluation mode and not adapted to a device; the rest as in Model."""

    cell: nn.Cell
    backbone: str
    path: Path
    sha256: str
    card: dict[str, Any]


def load_model(path: Path, backbone: str = "") -> Model:
    """Returns a model to embed with.

    Args:
        path: a checkpoint, a run's folder (its best checkpoint, or without verification the last), a file of weights
            (training.weights.read), .onnx or .mindir.
        backbone: name for a file of weights; not needed where a card beside it says it.

    Raises:
        ModelError: see the class, or a file of weights and no backbone.
        WeightsError: weights that are damaged or of another backbone.
        CheckpointError: a checkpoint that is damaged.
    """
    if path.suffix not in GRAPHS or path.is_dir():
        source = load_source(path, backbone)
        if ms.get_context("device_target") == "CPU":
            adapt_to_cpu(source.cell)
        return Model(cell_forward(source.cell), source.backbone, source.path, source.sha256, source.card)
    digest, card = _facts(path)
    forward = _onnx(path) if path.suffix == ".onnx" else _mindir(path)
    return Model(forward, str(card.get("backbone", backbone)), path, digest, card)


def load_source(path: Path, backbone: str = "") -> Source:
    """Returns the backbone of a checkpoint, run or file of weights; see load_model.

    Raises:
        ModelError, WeightsError, CheckpointError: as load_model.
    """
    if path.is_dir() or (not path.exists() and path.suffix not in (*GRAPHS, *weights.SUFFIXES)):
        return _of_checkpoint(path)
    if path.suffix in GRAPHS:
        raise ModelError(f"{path}: a graph, not weights by name; take the checkpoint or the weights it was made of")
    digest, card = _facts(path)
    state = weights.read_weights(path)
    backbone = backbone or str(card.get("backbone", ""))
    if not backbone:
        raise ModelError(f"{path}: does not say of which backbone it is; name one: {', '.join(BACKBONES)}")
    spec = find_spec(backbone)
    try:
        cell = create_backbone(backbone, embedding_size(state, spec))
        set_weights(cell, state)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    cell.set_train(False)
    return Source(cell, backbone, path, digest, card)


def cell_forward(cell: nn.Cell) -> Forward:
    """Returns a backbone as a function of arrays, always in evaluation mode.

    It is compiled at the first call and for every other shape anew: callers keep to full batches of one size. A CPU
    takes them 16 images at a time, for its memory.

    Args:
        cell: (B, 3, 112, 112) to (B, D).
    """
    compiled = _Compiled(cell)

    def forward(images: np.ndarray) -> np.ndarray:
        compiled.set_train(False)
        step = CPU_BATCH if ms.get_context("device_target") == "CPU" else len(images)
        parts = [np.ascontiguousarray(images[i : i + step], np.float32) for i in range(0, len(images), step)]
        return np.concatenate([compiled(ms.Tensor(part)).asnumpy() for part in parts])

    return forward


class _Compiled(nn.Cell):
    """A backbone as one graph."""

    def __init__(self, backbone: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.backbone = backbone

    @ms.jit
    def construct(self, images: ms.Tensor) -> ms.Tensor:
        """Returns (B, D) embeddings of (B, 3, 112, 112)."""
        return self.backbone(images)


def _of_checkpoint(path: Path) -> Source:
    """Returns the backbone of a checkpoint, or of a run's best or last."""
    if not (path / "checkpoint.json").is_file():
        known = checkpoint.known(path / "checkpoints")
        path = checkpoint.best(path / "checkpoints") or (known[-1] if known else path)
    meta = checkpoint.read_meta(path)
    name = str(meta.config["backbone"])
    cell = create_backbone(name, int(meta.config["embedding_size"]))
    parameters = cell.parameters_dict()
    shapes = {key: tuple(parameter.shape) for key, parameter in parameters.items()}
    set_parameters(parameters, checkpoint.read_arrays(path, meta, "backbone", shapes))
    cell.set_train(False)
    card = {
        "backbone": name, "embedding_size": int(meta.config["embedding_size"]), "dataset": meta.dataset,
        "fingerprint": meta.fingerprint, "classes": meta.classes, "steps": meta.step, "accuracy": meta.verification,
        "thresholds": meta.thresholds,
    }  # fmt: skip
    return Source(cell, name, path, meta.files["backbone.safetensors"][1], card)


def _facts(path: Path) -> tuple[str, dict[str, Any]]:
    """Returns the SHA-256 (hex) of a file, and the card beside it; empty if there is none.

    Raises:
        ModelError: no such file, or the card is damaged or of another file.
    """
    try:
        digest = file_digest(path)[1]
        card = json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))
        if card["sha256"] != digest:
            raise ModelError(f"{path}.json: the card of another file: its sha256 is {str(card['sha256'])[:12]}...")
    except FileNotFoundError:
        if not path.exists():
            raise ModelError(f"{path}: no such file") from None
        return digest, {}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path}: cannot be read, or the card {path.name}.json is damaged: {error}") from None
    return digest, card


def _onnx(path: Path) -> Forward:
    """Returns an ONNX model as a function.

    MXNet's old ArcFace models begin with a subtraction and a multiplication of the pixels; they get pixels, 0 to 255.
    Source: insightface, python-package/insightface/model_zoo/arcface_onnx.py, which tells them so too.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError:
        raise ModelError(f"{path}: needs onnxruntime: pip install 'faceshards[onnx]'") from None
    try:
        session = onnxruntime.InferenceSession(str(path), providers=onnxruntime.get_available_providers())
        nodes = onnx.load(str(path), load_external_data=False).graph.node[:2]
    except Exception as error:  # of onnxruntime's and protobuf's own kinds
        raise ModelError(f"{path}: not an ONNX model, or damaged: {' '.join(str(error).split())[:200]}") from None
    inputs, outputs = session.get_inputs(), session.get_outputs()
    _check(path, [entry.shape for entry in inputs], [entry.shape for entry in outputs])
    if (inputs[0].type, outputs[0].type) != ("tensor(float)", "tensor(float)"):
        raise ModelError(f"{path}: takes {inputs[0].type} and gives {outputs[0].type}, not float32")
    own = [node.op_type for node in nodes] == ["Sub", "Mul"] and inputs[0].name in nodes[0].input
    name, first = inputs[0].name, inputs[0].shape[0]

    def run(images: np.ndarray) -> np.ndarray:
        return session.run(None, {name: images * np.float32(127.5) + np.float32(127.5) if own else images})[0]

    return _in_batches(path, run, first if isinstance(first, int) and first > 0 else 0)


def _mindir(path: Path) -> Forward:
    """Returns a MindIR model as a function."""
    from mindspore.train.mind_ir_pb2 import ModelProto

    try:
        graph = ModelProto.FromString(path.read_bytes()).graph
        shapes = [[list(part.dims) for entry in side for part in entry.tensor] for side in (graph.input, graph.output)]
        _check(path, *shapes)
        cell = nn.GraphCell(ms.load(str(path)))
    except ModelError:
        raise
    except Exception as error:  # of protobuf's and MindSpore's own kinds
        raise ModelError(f"{path}: not a MindIR, or damaged: {' '.join(str(error).split())[:200]}") from None

    def run(images: np.ndarray) -> np.ndarray:
        return cell(ms.Tensor(images)).asnumpy()

    return _in_batches(path, run, max(shapes[0][0][0], 0))


def _check(path: Path, inputs: Sequence[Sequence[Any]], outputs: Sequence[Sequence[Any]]) -> None:
    """Refuses a graph that does not take images and give embeddings."""
    fits = len(inputs) == len(outputs) == 1 and len(inputs[0]) == 4 and len(outputs[0]) == 2
    if not fits or any(isinstance(n, int) and 0 < n != want for n, want in zip(inputs[0][1:], SHAPE, strict=True)):
        raise ModelError(
            f"{path}: takes {', '.join(str(list(shape)) for shape in inputs)} and gives "
            f"{', '.join(str(list(shape)) for shape in outputs)}, not one [B, 3, 112, 112] and one [B, D]"
        )


def _in_batches(path: Path, run: Callable[[np.ndarray], np.ndarray], batch: int) -> Forward:
    """Returns `run` for any number of images, where it takes `batch` of them (0: any number); filled up with zeros."""

    def forward(images: np.ndarray) -> np.ndarray:
        images = np.ascontiguousarray(images, np.float32)
        step = batch or max(len(images), 1)
        found = []
        for start in range(0, len(images), step):
            part = np.zeros((step, *images.shape[1:]), np.float32)
            part[: len(images) - start] = images[start : start + step]
            out = run(part)
            if out.ndim != 2 or len(out) != step:
                raise ModelError(f"{path}: gives {list(out.shape)} for {step} images, not [{step}, D]")
            found.append(out[: len(images) - start])
        return np.concatenate(found)

    return forward

"""Backbones with weights as models, by MindSpore: of checkpoints, of files of weights; and MindIR."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn

from evaluation.embedder import Forward
from evaluation.models.model import GRAPHS, ModelError, check_graph, graph_forward, read_card
from faceshards.errors import WeightsError
from training import checkpoint
from training.backbones.registry import BACKBONES, create_backbone, find_spec
from training.device.prepare import prepare_to_embed
from training.weights.assign import embedding_size, load_weights
from training.weights.read import SUFFIXES, read_weights

LARGEST_SIZE = 1 << 14  # components of an embedding, as in a run's settings


@dataclass(frozen=True)
class Backbone:
    """A backbone with its weights.

    Args:
        cell: in evaluation mode, not adapted to a device.
        name: of training.backbones.registry.BACKBONES.
        embedding_size: components of an embedding.
        path: as in Model.
        sha256: likewise.
        card: likewise.
    """

    cell: nn.Cell
    name: str
    embedding_size: int
    path: Path
    sha256: str
    card: dict[str, Any]


def load_backbone(path: Path, name: str = "") -> Backbone:
    """Returns the backbone of a checkpoint, run or file of weights; see load_model.

    Args:
        path: not of a graph.
        name: for a file of weights; not needed where a card beside it says it.

    Raises:
        ModelError, ConfigError, WeightsError, CheckpointError: as load_model.
    """
    if path.is_dir() or (not path.exists() and path.suffix not in (*GRAPHS, *SUFFIXES)):
        return _of_checkpoint(path)
    if path.suffix in GRAPHS:
        raise ModelError(f"{path}: a graph, not weights by name; take the checkpoint or the weights it was made of")
    return _of_weights(path, name)


def _of_weights(path: Path, name: str) -> Backbone:
    """Returns the backbone of a file of weights."""
    digest, card = read_card(path)
    state = read_weights(path)
    name = name or str(card.get("backbone", ""))
    if not name:
        raise ModelError(f"{path}: does not say of which backbone it is; name one: {', '.join(BACKBONES)}")
    spec = find_spec(name)
    try:
        size = embedding_size(state, spec)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    cell = create_backbone(name, size)
    load_weights(path, cell, state)
    cell.set_train(False)
    return Backbone(cell, name, size, path, digest, card)


def chosen(path: Path) -> Path:
    """Returns a checkpoint itself; of a run's folder its best, or else its last; what is neither, itself."""
    if (path / "checkpoint.json").is_file():
        return path
    known = checkpoint.known(path / "checkpoints")
    return checkpoint.best(path / "checkpoints") or (known[-1] if known else path)


def _of_checkpoint(path: Path) -> Backbone:
    """Returns the backbone of a checkpoint, or of a run's best or last."""
    path = chosen(path)
    meta = checkpoint.read_meta(path)
    state, name, size = meta.state, str(meta.config.get("backbone")), meta.config.get("embedding_size")
    if type(size) is not int or not 1 <= size <= LARGEST_SIZE:
        raise ModelError(f"{path / 'checkpoint.json'}: embedding_size {str(size)[:40]} is not 1 to {LARGEST_SIZE}")
    cell = create_backbone(name, size)
    checkpoint.set_from(path, meta, "backbone", cell.parameters_dict())
    cell.set_train(False)
    card = {
        "backbone": name,
        "embedding_size": size,
        "dataset": meta.dataset,
        "fingerprint": meta.fingerprint,
        "classes": meta.classes,
        "steps": state.step,
        "accuracy": state.verification,
        "thresholds": state.thresholds,
        "chosen_on": {},
    }
    # Unless a better one lies beside it, its accuracies may be why it is there.
    if checkpoint.best(path.resolve().parent) in (None, path.resolve()):
        card["chosen_on"] = {name: state.digests.get(name, "") for name in state.verification}
    return Backbone(cell, name, size, path, meta.files["backbone.safetensors"][1], card)


def cell_forward(cell: nn.Cell) -> Forward:
    """Returns a backbone as a function of arrays, always in evaluation mode, prepared for the device in use.

    It is compiled at the first call and for every other shape anew: callers keep to full batches of one size.

    Args:
        cell: (B, 3, 112, 112) to (B, D).
    """
    at_once = prepare_to_embed(cell)
    compiled = _Compiled(cell)

    def forward(images: np.ndarray) -> np.ndarray:
        compiled.set_train(False)
        step = at_once or len(images)
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


def mindir_forward(path: Path) -> Forward:
    """Returns a MindIR model as a function.

    Raises:
        ModelError: not of faces, damaged, or it cannot be run.
    """
    from mindspore.train.mind_ir_pb2 import ModelProto

    try:
        graph = ModelProto.FromString(path.read_bytes()).graph
        shapes = [[list(part.dims) for entry in side for part in entry.tensor] for side in (graph.input, graph.output)]
        check_graph(path, *shapes)
        cell = nn.GraphCell(ms.load(str(path)))
    except ModelError:
        raise
    except Exception as error:  # of protobuf's and MindSpore's own kinds
        raise ModelError(f"{path}: not a MindIR, or damaged: {' '.join(str(error).split())[:200]}") from None

    def run(images: np.ndarray) -> list[np.ndarray]:
        try:
            found = cell(ms.Tensor(images))
            return [out.asnumpy() for out in (found if isinstance(found, tuple) else (found,))]
        except (RuntimeError, ValueError, TypeError) as error:
            raise ModelError(f"{path}: MindSpore cannot run it: {' '.join(str(error).split())[:300]}") from None

    return graph_forward(path, run, [], max(shapes[0][0][0], 0))

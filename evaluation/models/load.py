"""Models to embed with: our checkpoints, files of weights, ONNX and MindIR. docs/models.md says what is taken."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from evaluation.models.model import GRAPHS, Model, read_card


def load_model(path: Path, backbone: str = "", channels: str = "rgb") -> Model:
    """Returns a model to embed with. Each kind imports what it needs: an ONNX file no MindSpore.

    Args:
        path: a checkpoint, a run's folder (its best checkpoint, or without verification the last), a file of weights
            (training.weights.read), .onnx or .mindir.
        backbone: name for a file of weights; not needed where a card beside it says it.
        channels: the order of colours that the model wants, of CHANNELS.

    Raises:
        ModelError: see the class, or a file of weights and no backbone.
        ConfigError: no backbone has that name.
        WeightsError: weights that are damaged or of another backbone.
        CheckpointError: a checkpoint that is damaged.
    """
    model = _loaded(path, backbone)
    if channels == "rgb":
        return model
    return dataclasses.replace(model, forward=lambda images: model.forward(images[:, ::-1]), channels=channels)


def _loaded(path: Path, backbone: str) -> Model:
    if path.is_dir() or path.suffix not in GRAPHS:
        from evaluation.models.backbone_model import cell_forward, load_backbone

        found = load_backbone(path, backbone)
        return Model(cell_forward(found.cell), found.name, found.path, found.sha256, found.card)
    digest, card = read_card(path)
    if path.suffix == ".onnx":
        from evaluation.models.onnx_model import onnx_forward as graph_forward
    else:
        from evaluation.models.backbone_model import mindir_forward as graph_forward
    return Model(graph_forward(path), str(card.get("backbone", backbone)), path, digest, card)

"""Models to embed with: checkpoints, files of weights, ONNX, MindIR, MXNet. docs/models.md says what is taken."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from evaluation.models.model import GRAPHS, Model, read_card, to_pixels
from evaluation.models.mxnet_model import find_mxnet, mxnet_digest, mxnet_forward


def load_model(path: Path, backbone: str = "", channels: str = "rgb", input_range: str = "auto") -> Model:
    """Returns a model to embed with. Each kind imports what it needs: an ONNX file no MindSpore.

    Args:
        path: a checkpoint, a run's folder (its best checkpoint, or without verification the last), a file of weights
            (training.weights.read), .onnx, .mindir, or a model of MXNet (evaluation.models.mxnet_model.find_mxnet).
        backbone: name for a file of weights; not needed where a card beside it says it.
        channels: the order of colours that the model wants, of CHANNELS.
        input_range: the range of pixels that it wants, of RANGES; "auto": 0-255 for a graph that begins with what
            normalises such pixels, -1-1 for the others.

    Raises:
        ModelError: see the class, or a file of weights and no backbone.
        ConfigError: no backbone has that name.
        WeightsError: weights that are damaged or of another backbone.
        CheckpointError: a checkpoint that is damaged.
    """
    model = _loaded(path, backbone, input_range)
    if channels == "rgb":
        return model
    return dataclasses.replace(model, forward=lambda images: model.forward(images[:, ::-1]), channels=channels)


def _loaded(path: Path, backbone: str, input_range: str) -> Model:
    if found := find_mxnet(path):
        digest = mxnet_digest(*found)
        forward, got = mxnet_forward(*found, input_range)
        return Model(forward, backbone, found[1], digest, {}, input_range=got)
    if path.is_dir() or path.suffix not in GRAPHS:
        from evaluation.models.backbone_model import cell_forward, load_backbone

        weights = load_backbone(path, backbone)
        model = Model(cell_forward(weights.cell), weights.name, weights.path, weights.sha256, weights.card)
        return in_pixels(model) if input_range == "0-255" else model
    digest, card = read_card(path)
    name = str(card.get("backbone", backbone))
    if path.suffix == ".onnx":
        from evaluation.models.onnx_model import onnx_forward

        forward, got = onnx_forward(path, input_range)
        return Model(forward, name, path, digest, card, input_range=got)
    from evaluation.models.backbone_model import mindir_forward

    model = Model(mindir_forward(path), name, path, digest, card)
    return in_pixels(model) if input_range == "0-255" else model


def in_pixels(model: Model) -> Model:
    """Returns a model that gets pixels from 0 to 255."""

    def forward(images: np.ndarray) -> np.ndarray:
        return model.forward(to_pixels(images))

    return dataclasses.replace(model, forward=forward, input_range="0-255")

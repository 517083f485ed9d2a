"""Backbones to evaluate: from our checkpoints."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
from mindspore import nn

from training import checkpoint
from training.backbones.cpu import adapt_to_cpu
from training.backbones.registry import create_backbone


def load_backbone(path: Path, device: str = "CPU") -> tuple[nn.Cell, str]:
    """Returns a backbone in evaluation mode, and its name.

    Args:
        path: a checkpoint, or a run's folder, of which the best checkpoint is taken, or without verification the last.
        device: "CPU", "GPU" or "Ascend".

    Raises:
        CheckpointError: nothing of the kind, or damaged.
    """
    if not (path / "checkpoint.json").is_file():
        known = checkpoint.known(path / "checkpoints")
        path = checkpoint.best(path / "checkpoints") or (known[-1] if known else path)
    meta = checkpoint.read_meta(path)
    name = str(meta.config["backbone"])
    backbone = create_backbone(name, int(meta.config["embedding_size"]))
    parameters = backbone.parameters_dict()
    shapes = {key: tuple(parameter.shape) for key, parameter in parameters.items()}
    for key, array in checkpoint.read_arrays(path, meta, "backbone", shapes).items():
        parameters[key].set_data(ms.Tensor(array, parameters[key].dtype))
    if device == "CPU":
        adapt_to_cpu(backbone)
    backbone.set_train(False)
    return backbone, name

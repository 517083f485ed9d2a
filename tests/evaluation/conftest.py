"""What the tests of evaluation share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_weights(tiny_backbone, tmp_path_factory) -> Path:
    """A file of weights of the untrained mbf_tiny, 32 components."""
    from safetensors.numpy import save_file

    from training.backbones.registry import create_backbone
    from training.weights.assign import to_torch

    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(to_torch(create_backbone("mbf_tiny", 32)), path)
    return path

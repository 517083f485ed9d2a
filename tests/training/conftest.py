"""What the tests of training share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from faceshards.dataset.manifest import Manifest


@pytest.fixture(scope="session", autouse=True)
def _tiny_backbone(tiny_backbone: None) -> None:
    """Has every test know the backbone of the tiny settings."""


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A dataset of 12 identities in 8 shards; tests read it, and change copies of it."""
    from tests.training.runs import tiny_dataset

    return tiny_dataset(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def run(data: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one epoch, by the tiny settings; tests read it, and change copies of it.

    It has a checkpoint in its middle, and began when the power was 2 by default.
    """
    from tests.training.runs import train

    out = tmp_path_factory.mktemp("run") / "run"
    done = train(data.path, out, power=2.0, epochs=1, warmup_epochs=0, checkpoint_steps=5, keep=9)
    assert done.exit_code == 0, done.output
    return out

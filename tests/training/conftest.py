"""What the tests of training share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from faceshards.dataset.manifest import Manifest


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A dataset of 12 identities in 8 shards; tests read it, and change copies of it."""
    from tests.training.runs import tiny_dataset

    return tiny_dataset(tmp_path_factory.mktemp("tiny"))

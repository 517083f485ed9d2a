"""What the tests of streams share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from faceshards.dataset.manifest import Manifest


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A dataset in 40 shards: five a lane, of some rows each."""
    from pipelines.config import BuildConfig
    from pipelines.synthetic.write import SyntheticSpec
    from tests.pipelines.build_fixtures import run_build, synthetic_set

    folder = tmp_path_factory.mktemp("many")
    spec = SyntheticSpec(identities=12, images=300, defects=0, unseen=0, pairs=0, seed=4)
    return run_build(synthetic_set(folder, spec), folder / "data", BuildConfig(shards=40))

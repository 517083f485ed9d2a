"""A small set with enough people to split, and what a split makes of it, for tests that only read them."""

from __future__ import annotations

from pathlib import Path

import pytest

from faceshards.dataset.manifest import Manifest
from pipelines.config import BuildConfig
from pipelines.split.plan import Request
from pipelines.split.split import split
from pipelines.synthetic.write import SyntheticSpec
from tests.pipelines.build_fixtures import by_shared_worker, run_build, synthetic_set

REQUEST = Request("45%", 400, seed=3)


def run_split(dataset: Manifest, out: Path, request: Request = REQUEST, **options: bool) -> Manifest:
    """Returns the dataset split off in this process."""
    return split(dataset.path, out, request, by_shared_worker(), **options)


@pytest.fixture(scope="session")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A dataset of 60 identities, some of which share photographs, without its blurred pictures."""
    source = synthetic_set(
        tmp_path_factory.mktemp("people"),
        SyntheticSpec(identities=60, images=360, defects=6, unseen=0, pairs=0, seed=3),
    )
    config = BuildConfig(shards=3, filters={"blur": {"min_variance": 150.0}})  # whose reason stays in the books
    return run_build(source, tmp_path_factory.mktemp("people-built") / "people", config)


@pytest.fixture(scope="session")
def child(parent: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The dataset that REQUEST splits off."""
    return run_split(parent, tmp_path_factory.mktemp("split") / "train")

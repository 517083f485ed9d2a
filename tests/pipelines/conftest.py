"""What tests of builds share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from distributed import Client

from faceshards.storage.location import StoredPath
from tests.pipelines.build_fixtures import shared_worker


@pytest.fixture
def worker(bucket: StoredPath) -> Iterator[str]:
    """The address of the shared worker, which reaches the bucket meanwhile."""
    address = shared_worker()
    variables = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    with Client(address, set_as_default=False) as client:
        client.run(lambda: os.environ.update(variables))
        yield address
        client.run(lambda: [os.environ.pop(name) for name in variables])

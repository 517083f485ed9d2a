"""What every test folder shares."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from faceshards.dataset.manifest import Manifest
    from faceshards.storage.location import StoredPath
    from tests.fault_proxy import FaultProxy


# A developer's machine looks for new examples each time; CI repeats the same ones: what it says is of the change.
settings.register_profile("repeat", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("repeat")


@pytest.fixture(scope="session")
def face_data() -> Path:
    """The folder of real sample sets: $FACESHARDS_DATA, or shared/data beside the repository."""
    folder = Path(os.environ.get("FACESHARDS_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("no sample sets: set FACESHARDS_DATA to the folder that holds dmlc/sample.rec and orl/")
    return folder


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


# One small synthetic set, and what a build makes of it, for all tests that only read them.


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a synthetic set with every planted defect."""
    from tests.pipelines.build_fixtures import synthetic_set

    return synthetic_set(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="session")
def tiny_dataset(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The dataset built of it in this process, by one worker and with the settings of CONFIG."""
    from tests.pipelines.build_fixtures import run_build

    return run_build(tiny_source, tmp_path_factory.mktemp("built") / "tiny")


@pytest.fixture(scope="session")
def tiny_digests(tiny_dataset: Manifest) -> dict[str, str]:
    """The SHA-256 of every file of it: what any other build of the same request has to publish."""
    from tests.pipelines.build_fixtures import digests

    return digests(tiny_dataset.path)


@pytest.fixture(scope="session")
def tiny_backbone() -> Iterator[None]:
    """Has this process know the backbone of few layers by the name mbf_tiny."""
    from tests.training.tiny_backbone import TINY
    from training.backbones.registry import BACKBONES

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "mbf_tiny", TINY)
        yield


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real object store, started when a test first asks for it: that takes seconds."""
    from tests.object_store import serving

    with serving(tmp_path_factory.mktemp("objects")) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def _buckets() -> Iterator[int]:
    return itertools.count()


@pytest.fixture
def bucket(object_store: str, _buckets: Iterator[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StoredPath:
    """An empty place in a bucket of it, for this process and those that it starts."""
    from faceshards.storage.location import StoredPath
    from tests.object_store import KEY, SECRET

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", object_store)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    place = StoredPath("s3", "faces", f"test-{next(_buckets)}")
    (place / ".made").write_bytes(b"")  # the server makes a bucket with its first object
    (place / ".made").unlink()
    return place


@pytest.fixture
def proxy(bucket: StoredPath, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """What that store is asked through from now on."""
    from tests.fault_proxy import FaultProxy

    with FaultProxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of its own, whose size the test may change: 16 MB, or as many as the fixture's parameter says."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = f"size={getattr(request, 'param', 16)}m"
    mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(disk)]
    if os.geteuid() or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small tmpfs can only be mounted by root, where the system lets it")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)  # MindSpore keeps files open


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts whole runs of training first: begun last, they are what one worker still does when all others are done."""
    items.sort(key=lambda item: "training" not in item.path.parts)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, as the system has it; .ci/run demands it where it could install it."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        if os.environ.get("FACESHARDS_BROWSER") == "required":
            pytest.fail("no browser, and FACESHARDS_BROWSER=required")
        pytest.skip("no browser: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox"], ignore_default_args=["--hide-scrollbars"]
        )
        yield launched
        launched.close()

"""The published bytes depend on the source and the settings, on nothing else."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from faceshards.errors import BuildError
from tests.pipelines.build_fixtures import digests, kill_group, run_build, start, synthetic_set, wait_for


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_set(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("expected") / "tiny"
    run_build(source, out, workers=1)
    found = digests(out)
    kinds = {Path(name).suffix for name in found}
    assert kinds == {".json", ".parquet", ".mindrecord", ".db"}
    return found


@pytest.mark.parametrize(
    ("workers", "partition_bytes"), [(1, 1 << 22), (2, 160_000), (2, 30_004)], ids=["one-part", "two-workers", "both"]
)
def test_workers_and_partitions_change_no_byte(
    source: Path, expected: dict[str, str], tmp_path: Path, workers: int, partition_bytes: int
) -> None:
    run_build(source, tmp_path / "tiny", workers=workers, partition_bytes=partition_bytes)
    assert digests(tmp_path / "tiny") == expected


def test_the_place_of_the_output_changes_no_byte(source: Path, expected: dict[str, str], tmp_path: Path) -> None:
    run_build(source, tmp_path / "elsewhere" / "another name")
    assert digests(tmp_path / "elsewhere" / "another name") == expected


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = start([sys.executable, "-m", *arguments])
    try:
        yield process
    finally:
        kill_group(process, signal.SIGTERM)
        try:
            process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            kill_group(process)


@pytest.mark.slow
def test_an_external_scheduler_changes_no_byte(source: Path, expected: dict[str, str], tmp_path: Path) -> None:
    note = tmp_path / "scheduler.json"
    with running(
        "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
        "--scheduler-file", str(note),
    ) as scheduler:  # fmt: skip
        assert wait_for(lambda: note.exists() and note.read_text().endswith("}"), scheduler)
        worker = ("distributed.cli.dask_worker", "--scheduler-file", str(note), "--nthreads", "1", "--no-dashboard",
                  "--local-directory", str(tmp_path / "scratch"), "--host", "127.0.0.1")  # fmt: skip
        address = json.loads(note.read_text())["address"]
        with running(*worker), running(*worker):
            run_build(source, tmp_path / "tiny", scheduler=address)
            # The cluster is not ours: it outlives a build, and serves the next.
            assert scheduler.poll() is None
            run_build(source, tmp_path / "again", scheduler=address, partition_bytes=50_000)
    assert digests(tmp_path / "tiny") == expected
    assert digests(tmp_path / "again") == expected


def test_a_scheduler_that_is_not_there_is_one_line(source: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"^scheduler nonsense://127\.0\.0\.1:1: "):
        run_build(source, tmp_path / "tiny", scheduler="nonsense://127.0.0.1:1")
    assert not (tmp_path / "tiny").exists()

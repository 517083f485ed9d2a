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
from tests.pipelines.build_fixtures import digests, kill_group, run_build, start, wait_for


@pytest.mark.parametrize(
    ("workers", "partition_bytes"), [(1, 1 << 22), (2, 160_000), (2, 30_004)], ids=["one-part", "two-workers", "both"]
)
def test_workers_and_partitions_change_no_byte(
    tiny_source: Path, tiny_digests: dict[str, str], tmp_path: Path, workers: int, partition_bytes: int
) -> None:
    run_build(tiny_source, tmp_path / "tiny", workers=workers, partition_bytes=partition_bytes)
    assert digests(tmp_path / "tiny") == tiny_digests


def test_a_dataset_is_of_these_kinds_of_files(tiny_digests: dict[str, str]) -> None:
    assert {Path(name).suffix for name in tiny_digests} == {".json", ".parquet", ".mindrecord", ".db"}


def test_the_place_of_the_output_changes_no_byte(
    tiny_source: Path, tiny_digests: dict[str, str], tmp_path: Path
) -> None:
    run_build(tiny_source, tmp_path / "elsewhere" / "another name")
    assert digests(tmp_path / "elsewhere" / "another name") == tiny_digests


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
def test_an_external_scheduler_changes_no_byte(tiny_source: Path, tiny_digests: dict[str, str], tmp_path: Path) -> None:
    note = tmp_path / "scheduler.json"
    host = ("--host", "127.0.0.1")
    serve = ("distributed.cli.dask_scheduler", *host, "--port", "0", "--no-dashboard", "--scheduler-file", str(note))
    work = ("distributed.cli.dask_worker", *host, "--nthreads", "1", "--no-dashboard", "--scheduler-file", str(note))
    worker = (*work, "--local-directory", str(tmp_path / "scratch"))
    with running(*serve) as scheduler:
        assert wait_for(lambda: note.exists() and note.read_text().endswith("}"), scheduler)
        address = json.loads(note.read_text())["address"]
        with running(*worker), running(*worker):
            run_build(tiny_source, tmp_path / "tiny", scheduler=address)
            # The cluster is not ours: it outlives a build, and serves the next.
            assert scheduler.poll() is None
            run_build(tiny_source, tmp_path / "again", scheduler=address, partition_bytes=50_000)
    assert digests(tmp_path / "tiny") == tiny_digests
    assert digests(tmp_path / "again") == tiny_digests


def test_a_scheduler_that_is_not_there_is_one_line(tiny_source: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"^scheduler nonsense://127\.0\.0\.1:1: "):
        run_build(tiny_source, tmp_path / "tiny", scheduler="nonsense://127.0.0.1:1")
    assert not (tmp_path / "tiny").exists()

"""An export that is killed, or whose disk is full, goes on, and publishes nothing by halves."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from faceshards.dataset.manifest import Manifest
from faceshards.errors import BuildError
from tests.pipelines.build_fixtures import digests, finish, kill_group, preload, run_here, start, wait_for
from tests.pipelines.exports.readers import exported

pytestmark = pytest.mark.slow

STEP = 50_000  # bytes of a piece: about a dozen of them

STAGES: dict[str, Callable[[Path], object]] = {
    "write": lambda work: any(work.glob("done/piece-*")),
    "joined": lambda work: any(work.glob("export/train.idx")),
    "described": lambda work: (work / "export" / "export.json").exists(),
}


def command(dataset: Path, out: Path, to: str, *more: str) -> list[str]:
    """Returns the command line of an export in several pieces."""
    export = [sys.executable, "-m", "faceshards", "export-data", str(dataset), str(out), "--to", to]
    return [*export, "--workers", "1", "--partition-bytes", str(STEP), "--quiet", *more]


@pytest.mark.parametrize(
    ("to", "stage"), [("recordio", "write"), ("recordio", "joined"), ("folder", "write"), ("webdataset", "described")]
)
def test_killed_and_run_again_is_as_if_never_killed(
    tiny_dataset: Manifest, tmp_path: Path, to: str, stage: str
) -> None:
    whole = digests(exported(tiny_dataset, tmp_path / "whole", to, partition_bytes=STEP))
    out, work = tmp_path / "out", tmp_path / ".out.exporting"
    first = start(command(tiny_dataset.path, out, to))
    wait_for(lambda: STAGES[stage](work), first)
    kill_group(first)
    published = out.exists()
    code, _, err = run_here(command(tiny_dataset.path, out, to))
    assert code == 0, err
    assert digests(out) == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]
    assert ("nothing to do" in err) if published else err == ""


def test_pieces_that_were_finished_are_not_written_again_and_nobody_else_goes_on(
    tiny_dataset: Manifest, tmp_path: Path
) -> None:
    out, work, held = tmp_path / "out", tmp_path / ".out.exporting", tmp_path / "held"
    held.touch()
    environment = preload(tmp_path, "faceshards.dataset.shard_images:check_image", b"shard-00003", "hold", held)
    first = start(command(tiny_dataset.path, out, "im2rec"), **environment)
    assert wait_for(lambda: any(work.glob("done/piece-*")), first)
    # While it is at work nobody else is, in its folder.
    code, text, err = run_here(command(tiny_dataset.path, out, "im2rec"))
    assert (code, text) == (1, "")
    assert err == f"Error: {out}: another export (process {first.pid}) is writing it\n"
    kill_group(first)
    kept = [*work.glob("done/piece-*"), *work.glob("routed/shard-*")]
    for path in kept:
        os.utime(path, ns=(1, 1))  # a time no clock says: what was written again would lose it
    # Another request does not go on with it.
    code, _, err = run_here(command(tiny_dataset.path, out, "webdataset"))
    assert (code, len(err.splitlines())) == (1, 1)
    assert "an interrupted export has another request (format: 'im2rec' then, 'webdataset' now)" in err
    second = start(command(tiny_dataset.path, out, "im2rec"), **environment)
    assert wait_for(lambda: any(work.glob("rooms/*")), second)
    assert [path.stat().st_mtime_ns for path in kept] == [1] * len(kept)
    held.unlink()
    code, _, err = finish(second)
    assert (code, err) == (0, "")
    whole = exported(tiny_dataset, tmp_path / "whole", "im2rec", partition_bytes=STEP)
    assert digests(out) == digests(whole)


@pytest.mark.parametrize(("to", "room"), [("recordio", 700), ("folder", 400)])
def test_a_full_disk_is_one_line_and_resumable(
    tiny_dataset: Manifest, small_disk: Path, tmp_path: Path, to: str, room: int
) -> None:
    def resize(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(small_disk)], check=True)

    out, work = small_disk / "out", small_disk / ".out.exporting"
    with pytest.raises(BuildError, match="a disk is mounted there, so it cannot appear by rename; name a folder in it"):
        exported(tiny_dataset, small_disk, to)
    resize("1m")
    with pytest.raises(BuildError, match="MB free, the export needs about"):
        exported(tiny_dataset, out, to)
    assert list(small_disk.iterdir()) == []
    resize("8m")
    process = start(command(tiny_dataset.path, out, to))
    assert wait_for(lambda: any(work.glob("plan/bounds.npy")), process)
    resize(f"{room}k")  # after the check of free space, as if others had filled the disk
    code, _, err = finish(process)
    assert (code, len(err.splitlines())) == (1, 1), err
    assert "disk full; free some space and run the same command to go on" in err
    assert not out.exists()
    resize("8m")
    code, _, err = run_here(command(tiny_dataset.path, out, to))
    assert (code, err) == (0, "")
    assert digests(out) == digests(exported(tiny_dataset, tmp_path / "whole", to))

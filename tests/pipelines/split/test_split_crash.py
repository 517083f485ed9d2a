"""A split that is killed, or whose disk is full, goes on, and publishes nothing by halves."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from faceshards.dataset.manifest import Manifest
from faceshards.errors import BuildError
from pipelines.runner import Runner
from pipelines.split.plan import Request
from tests.pipelines.build_fixtures import digests, finish, kill_group, run_here, start, wait_for
from tests.pipelines.split.conftest import REQUEST, run_split

pytestmark = pytest.mark.slow

STAGES: dict[str, Callable[[Path], object]] = {
    "route": lambda work: any(work.glob("held/shard-*")),
    "described": lambda work: (work / "dataset" / "unseen.bin").exists(),
}


def command(dataset: Path, out: Path) -> list[str]:
    asked = ["--unseen", REQUEST.unseen, "--pairs", str(REQUEST.pairs), "--seed", str(REQUEST.seed)]
    call = [sys.executable, "-m", "faceshards", "split", str(dataset), "--out", str(out)]
    return [*call, *asked, "--workers", "1", "--quiet"]


@pytest.mark.parametrize(("stage", "more"), [("route", ()), ("described", ("--restart",))])
def test_killed_and_run_again_is_as_if_never_killed(
    parent: Manifest, child: Manifest, tmp_path: Path, stage: str, more: tuple[str, ...]
) -> None:
    out, work = tmp_path / "out", tmp_path / ".out.splitting"
    first = start(command(parent.path, out))
    wait_for(lambda: STAGES[stage](work), first)
    kill_group(first)
    assert not out.exists() or digests(out) == digests(child.path)
    code, _, err = run_here([*command(parent.path, out), *more])
    assert code == 0, err
    assert digests(out) == digests(child.path)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_finished_pieces_are_not_made_again_and_nobody_else_goes_on(
    parent: Manifest, child: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, work = tmp_path / "out", tmp_path / ".out.splitting"
    tasks = Runner.map

    def interrupted(runner: Runner, function: Callable, todo: list) -> object:
        """Yields what the first task of writing gives; then the user has enough."""
        for number, found in enumerate(tasks(runner, function, todo)):
            yield found
            if function.__name__ == "write" and not number:
                raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "map", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_split(parent, out)
    kept = [*work.glob("routed/*"), *work.glob("held/*"), *work.glob("dropped/*"), *work.glob("done/*")]
    assert {path.parent.name for path in kept} == {"routed", "held", "dropped", "done"}
    made = {path: path.stat().st_mtime_ns for path in kept}
    with pytest.raises(
        BuildError, match=r"an interrupted split has another request \(seed: 3 then, 4 now\); .*--restart to begin anew"
    ):
        run_split(parent, out, Request(REQUEST.unseen, REQUEST.pairs, seed=4))
    seen: dict[Path, int] = {}

    def watched(runner: Runner, function: Callable, todo: list) -> object:
        seen.update({path: path.stat().st_mtime_ns for path in kept})
        yield from tasks(runner, function, todo)

    monkeypatch.setattr(Runner, "map", watched)
    assert run_split(parent, out).fingerprint == child.fingerprint
    assert seen == made
    assert digests(out) == digests(child.path)


def test_a_full_disk_is_one_line_and_resumable(
    parent: Manifest, child: Manifest, small_disk: Path, tmp_path: Path
) -> None:
    def resize(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(small_disk)], check=True)

    out, work = small_disk / "out", small_disk / ".out.splitting"
    resize("1m")
    code, _, err = run_here(command(parent.path, out))
    assert (code, len(err.splitlines())) == (1, 1)
    assert "MB free, the split needs about" in err
    assert list(small_disk.iterdir()) == []
    resize("16m")
    process = start(command(parent.path, out))
    assert wait_for(lambda: any(work.glob("held/shard-*")), process)
    used = sum(path.stat().st_blocks * 512 for path in small_disk.rglob("*"))
    resize(f"{used // 1024 + 200}k")  # after the check of free space, as if others had filled the disk
    code, _, err = finish(process)
    assert (code, len(err.splitlines())) == (1, 1), err
    assert "disk full; free some space and run the same command to go on" in err
    assert not os.path.lexists(out)
    resize("16m")
    code, _, err = run_here(command(parent.path, out))
    assert (code, err) == (0, "")
    assert digests(out) == digests(child.path)

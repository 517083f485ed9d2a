"""A disk that fills up under a run: one line, and the run goes on when there is room again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from faceshards.dataset.manifest import Manifest
from tests.training.runs import refused, trace, train
from training import preflight

pytestmark = pytest.mark.slow


def fill(disk: Path, room: int) -> Path:
    """Returns a file that leaves so many bytes of a disk."""
    path = disk / "others"
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - room)
    return path


@pytest.mark.parametrize("small_disk", [64], indirect=True)
def test_a_disk_that_fills_up_is_one_line_and_the_run_goes_on(
    data: Manifest, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its first file, and when it goes on from there, at its first checkpoint."""
    check, out = preflight.check, small_disk / "run"
    settings = {"epochs": 1, "warmup_epochs": 0}
    for room, options, line in (
        (0, (), "disk full; free some space"),
        (
            65536,
            ("--resume",),
            "cannot be written: disk full; free some space; --resume goes on from the last checkpoint",
        ),
    ):

        def then_filled(*arguments: Any, room: int = room, **named: Any) -> None:
            check(*arguments, **named)
            fill(small_disk, room)  # by others, after the check of free space

        with monkeypatch.context() as patch:
            patch.setattr(preflight, "check", then_filled)
            said = refused(train(data.path, out, *options, **settings))
        assert said.endswith(line)
        assert str(small_disk) in said
        assert not list(out.glob("checkpoints/step-*"))
        (small_disk / "others").unlink()
    done = train(data.path, out, "--resume", **settings)
    assert done.exit_code == 0, done.output
    assert min(trace(out)) == 1

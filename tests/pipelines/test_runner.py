"""The engine leaves the process as it found it, and says what it lacks."""

from __future__ import annotations

import copy
import importlib.util
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import dask
import pytest
from click.testing import CliRunner

from faceshards.cli.main import main
from faceshards.errors import BuildError
from pipelines.runner import Runner, WorkerKilledError


def double(value: int) -> int:
    return 2 * value


def state() -> tuple[dict[str, Any], dict[str, tuple[int, list[int]]]]:
    """Returns Dask's settings, and the level of every logger and of its handlers."""
    loggers = {name: logging.getLogger(name) for name in ("", "distributed", "bokeh", "pipelines")}
    levels = {name: (logger.level, [handler.level for handler in logger.handlers]) for name, logger in loggers.items()}
    return copy.deepcopy(dask.config.config), levels


def test_a_runner_leaves_settings_and_logging_as_they_were() -> None:
    before = state()
    with Runner(workers=1) as runner:
        assert sorted(result for _, result in runner.map(double, [(1,), (2,)])) == [2, 4]
        assert logging.getLogger("distributed").level == logging.CRITICAL
        assert dask.config.get("distributed.scheduler.allowed-failures") == 0
    assert state() == before


def test_a_runner_that_cannot_start_leaves_them_too() -> None:
    before = state()
    with (
        pytest.raises(BuildError, match=r"^scheduler nonsense://127\.0\.0\.1:1: "),
        Runner(1, "nonsense://127.0.0.1:1"),
    ):
        pass
    assert state() == before


def test_importing_the_runner_changes_nothing() -> None:
    code = (
        "import copy, logging, dask, distributed\n"
        "logger = logging.getLogger('distributed')\n"
        "before = logger.level, copy.deepcopy(dask.config.config)\n"
        "import pipelines.build, pipelines.runner\n"
        "assert (logger.level, dask.config.config) == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_dashboard_without_bokeh_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "bokeh" else find(name, *more))
    arguments = ["build", "synthetic", "--data-root", str(tmp_path / "raw"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, [*arguments, "--dashboard"])
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "Error: --dashboard needs bokeh, which is not installed: pip install 'faceshards[dashboard]'"
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_record_whose_worker_was_lost_to_something_else_is_sound(monkeypatch):
    runner, asked = Runner(1), []

    def alone(function, task):
        """Record 5 kills each worker; the first that has record 2 alone is lost to something else."""
        asked.append(task)
        low, high = task
        lost = task == (2, 3) and asked.count(task) == 1
        return WorkerKilledError() if low <= 5 < high or lost else high - low

    monkeypatch.setattr(runner, "alone", alone)
    assert runner.find_killers(abs, (), 0, 8) == [5]
    assert runner.find_killers(abs, (), 2, 3) == []
    assert asked[-2:] == [(2, 3), (2, 3)]

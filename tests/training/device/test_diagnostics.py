"""What MindSpore leaves when a graph fails to compile: never where the user stands."""

from __future__ import annotations

import os
import re
from importlib import import_module

import click
import mindspore as ms
import numpy as np
import pytest
from click.testing import CliRunner
from mindspore import nn, ops

from faceshards.cli.command import ModelCommand
from faceshards.cli.main import COMMANDS
from faceshards.errors import FaceshardsError
from tests.training.runs import refused, train
from training.backbones.registry import BACKBONES
from training.backbones.spec import Spec
from training.device.diagnostics import VARIABLES, DeviceError, diagnostics_in, reported_in


class Broken(nn.Cell):
    """A backbone whose product has no shape."""

    def __init__(self, embedding_size: int, _seed: int, _recompute: bool) -> None:
        super().__init__()
        self.fc = nn.Dense(3, embedding_size)

    @ms.jit
    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Fails."""
        return self.fc(ops.matmul(x, ops.ones((3, 4))))


def test_a_failed_compilation_is_in_the_logs_and_not_where_the_user_stands(data, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setitem(BACKBONES, "mbf_tiny", Spec(Broken, "fc"))
    said = refused(train(data.path, tmp_path / "run"))
    assert list(here.iterdir()) == []
    logs = tmp_path / "run" / "logs"
    (graph,) = logs.rglob("*.ir")
    report = logs / "error-rank-0.txt"
    assert re.fullmatch(rf"Error: \w+Error: For 'MatMulExt' op, .*; see {report} and {graph}", said)
    assert graph.name == "analyze_fail.ir"
    assert report.read_text().startswith("Traceback ")
    assert "ops.matmul(x, ops.ones((3, 4)))" in report.read_text()  # MindSpore's page, with the line of the backbone


def test_a_command_that_runs_a_model_leaves_it_in_a_temporary_folder(tmp_path, monkeypatch):
    @click.command(cls=ModelCommand)
    @click.option("--well", is_flag=True)
    def command(well: bool) -> None:
        if not well:
            Broken(4, 0, False)(ms.Tensor(np.ones((2, 3, 112, 112), np.float32)))

    (tmp_path / "here").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    assert CliRunner().invoke(command, ["--well"]).exit_code == 0
    assert list((tmp_path / "temporary").iterdir()) == []
    result = CliRunner().invoke(command, [])
    assert list((tmp_path / "here").iterdir()) == []
    (left,) = (tmp_path / "temporary").iterdir()
    (graph,) = left.rglob("*.ir")
    assert re.fullmatch(
        rf"Error: \w+Error: For 'MatMulExt' op, .*; see {left}/error-rank-0.txt and {graph}", refused(result)
    )


def test_every_command_that_runs_a_model_does_so():
    runs = set()
    for place, _ in COMMANDS.values():
        module, _, name = place.partition(":")
        command = getattr(import_module(module), name)
        if any(option.name == "backbone" for option in command.params):
            assert isinstance(command, ModelCommand), name
            runs.add(command.name)
    assert runs == {"compare", "embed", "eval", "export", "ijb"}


def test_what_the_user_has_set_stays(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLES[0], "mine")
    monkeypatch.delenv(VARIABLES[1], raising=False)
    with diagnostics_in(tmp_path):
        assert os.environ[VARIABLES[0]] == "mine"
        assert os.environ[VARIABLES[1]] == str(tmp_path)
    assert os.environ[VARIABLES[0]] == "mine"
    assert VARIABLES[1] not in os.environ


@pytest.mark.parametrize(
    ("error", "echo"),
    [
        (RuntimeError("Launch kernel failed, name:Default/AllGather-op0"), True),
        (RuntimeError("Launch kernel failed, name:Default/MatMul-op0"), False),
        (ValueError("For 'AllGather', the shape is wrong"), False),
    ],
)
def test_what_may_come_of_another_rank_is_marked(tmp_path, error, echo):
    with pytest.raises(DeviceError, match=re.escape(str(error))) as failure, reported_in(tmp_path):
        raise error
    assert failure.value.echo is echo


def test_what_is_one_line_already_passes(tmp_path):
    for error in (FaceshardsError("a"), OSError(2, "b"), ModuleNotFoundError("c"), click.UsageError("d")):
        with pytest.raises(type(error)), reported_in(tmp_path, click.ClickException):
            raise error
    assert list(tmp_path.iterdir()) == []

"""Whole runs as a user starts them: killed, gone on with, on one rank and on two."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from evaluation.models.load import load_model
from evaluation.origin import NOTE
from faceshards.formats.verification_bin import read_bin
from faceshards.versions import stamp_line
from pipelines.config import BuildConfig
from tests.pipelines.build_fixtures import external, run_build
from tests.training.runs import (
    SETTINGS,
    await_end,
    finish,
    rank_handles,
    start,
    steps,
    trace,
    train,
    wait_for_step,
    wait_until,
)
from training import checkpoint
from training.backbones.registry import create_backbone
from training.config import TrainConfig, verification_sets

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """A run that nothing interrupted, with a checkpoint every 5 steps and a sample of the class centres."""
    out = tmp_path_factory.mktemp("straight") / "run"
    code, said, errors = finish(start(data.path, out, "--json", checkpoint_steps=5, keep=9))
    assert code == 0, errors
    return out, json.loads(said), errors


# Training amplifies rounding: AdamW, say, makes whole steps of gradients that are nothing but noise around zero. So the
# losses of a run are what they are within a distance that grows with the steps and depends on the processor. It is
# measured: first weights that are changed by 1e-7 show how far a run of one rank parts from itself.
CALM = {"optimizer": "adamw", "lr": 3e-4, "global_batch": 32, "checkpoint_steps": 5, "keep": 9}
NUDGES, FACTOR = 1, 10  # a second nudge moved no bound; two ranks were a hundredth of it away (measured)


@pytest.fixture(scope="module")
def calm(data, tmp_path_factory):
    """Losses of one rank, one array; and of others that began 1e-7 beside it, (NUDGES, steps)."""
    folder = tmp_path_factory.mktemp("calm")
    first = create_backbone(SETTINGS["backbone"], SETTINGS["embedding_size"], seed=0).parameters_dict()
    traces = []
    for number in range(1 + NUDGES):
        rng = np.random.default_rng(number)
        nudge = 1e-7 if number else 0
        arrays = {name: found.asnumpy() for name, found in first.items()}
        arrays = {name: value * (1 + nudge * rng.choice([-1, 1], value.shape)) for name, value in arrays.items()}
        weights = folder / f"{number}.safetensors"
        save_file({name: value.astype(np.float32) for name, value in arrays.items()}, weights)
        done = train(data.path, folder / f"run-{number}", "--finetune", str(weights), **CALM)
        assert done.exit_code == 0, done.output
        traces.append(list(trace(folder / f"run-{number}").values()))
    return np.array(traces[0]), np.array(traces[1:])


def assert_same_losses(out, calm):
    """Checks that a run's losses are those of one rank, as far as these are determined."""
    want, nudged = calm
    found = trace(out)
    assert list(found) == list(range(1, 1 + len(want)))
    apart = np.maximum.accumulate(np.abs(nudged - want).max(axis=0))
    np.testing.assert_array_less(np.abs(np.array(list(found.values())) - want), FACTOR * np.maximum(apart, 1e-6 * want))


def test_a_run_learns_and_says_so(straight, data):
    out, result, errors = straight
    losses = trace(out)
    assert result["steps"] == len(losses) == 2 * (data.totals["kept"] // 16)
    assert np.mean(list(losses.values())[-5:]) < 0.9 * losses[1]
    assert "rank 0: centres 12 of 12 from 0 on" in errors
    assert "images/s  ETA 0:" in errors
    assert (out / "config.yaml").read_text().startswith("backbone: mbf_tiny")
    assert len(list((out / "tensorboard").glob("events.out.tfevents.*"))) == 1
    assert checkpoint.known(out / "checkpoints")[-1].name == f"step-{result['steps']:09d}"


def test_a_finished_run_is_known_wherever_it_is(straight, data, tmp_path, monkeypatch, caplog):
    out, result, _ = straight
    shutil.copytree(out, tmp_path / "moved" / "run")
    written = json.loads((tmp_path / "moved" / "run" / "result.json").read_text())
    assert written["checkpoint"] == f"checkpoints/{Path(result['checkpoint']).name}"
    monkeypatch.chdir(tmp_path)
    done = train(data.path, Path("moved/run"), "--resume", "--json", checkpoint_steps=5, keep=9)
    assert done.exit_code == 0, done.output
    assert "moved/run: finished already; this is its result" in caplog.messages
    assert json.loads(done.stdout) == result | {"checkpoint": f"moved/run/{written['checkpoint']}"}


def test_verification_sets_are_found_below_the_data_root(tmp_path, monkeypatch):
    (tmp_path / "raw" / "faces").mkdir(parents=True)
    (tmp_path / "raw" / "faces" / "lfw.bin").touch()
    (tmp_path / "mine.bin").touch()
    monkeypatch.chdir(tmp_path)
    config = TrainConfig(verify=("faces/lfw.bin", "mine.bin", str(tmp_path / "mine.bin")))
    found = verification_sets(config, Path("raw"))
    assert [path.is_file() for path in found] == [True] * 3
    assert found == [Path("raw/faces/lfw.bin"), Path("mine.bin"), tmp_path / "mine.bin"]


def test_real_faces_train(tmp_path):
    faces = run_build(external("orl"), tmp_path / "data", BuildConfig(shards=8))
    verify = [str(external("orl/orl.bin"))]
    out = tmp_path / "run"
    settings = {"epochs": 1, "lr": 0.02, "verify": verify}
    done = train(faces.path, out, "--json", **settings)
    assert done.exit_code == 0, done.output
    losses = list(trace(out).values())
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    result = json.loads(done.stdout)
    assert 0.5 <= result["accuracies"]["orl"] <= 1
    # What it prints names the checkpoint, the dataset and the set that chose; what embeds it knows them, too.
    lines = train(faces.path, out, "--resume", **settings).stdout.splitlines()
    assert lines[1].startswith(f"orl *: accuracy {result['accuracies']['orl']:.2%} at step {result['steps']}, the last")
    assert lines[2:5] == [
        NOTE,
        f"checkpoint {result['checkpoint']}",
        f"trained on {faces.info['name']}, fingerprint {faces.fingerprint[:12]}",
    ]
    assert lines[5] == stamp_line(result)
    assert load_model(out).origin().chosen_on == {"orl": read_bin(verify[0]).digest()}


def test_killed_in_an_epoch_it_goes_on_with_identical_losses(straight, data, tmp_path, caplog):
    out = tmp_path / "run"
    job = start(data.path, out, checkpoint_steps=5, keep=9)
    wait_for_step(job, out, 8)
    job.send_signal(signal.SIGKILL)
    job.communicate()
    done = steps(out)
    assert done < len(trace(straight[0]))
    resumed = train(data.path, out, "--resume", checkpoint_steps=5, keep=9)
    assert resumed.exit_code == 0, resumed.output
    assert "going on from" in caplog.text
    assert trace(out) == trace(straight[0])


def test_two_ranks_have_the_losses_of_one(calm, data, tmp_path):
    out = tmp_path / "run"
    code, said, errors = finish(start(data.path, out, "--devices", "2", "--json", **CALM))
    assert code == 0, errors
    assert "rank 1: centres 6 of 12 from 6 on" in errors
    assert_same_losses(out, calm)
    assert json.loads(said)["steps"] == len(calm[0])
    assert checkpoint.read_meta(checkpoint.known(out / "checkpoints")[-1]).world == 2


def test_ranks_die_with_their_launcher(data, tmp_path):
    out = tmp_path / "run"
    job = start(data.path, out, "--devices", "2", **CALM, epochs=9999)  # which does not end by itself
    # As soon as both have begun: what they do then, the kernel does not ask.
    wait_until(job, lambda: sum(bool(path.read_text()) for path in (out / "logs").glob("rank-*.pid")) == 2)
    ranks = rank_handles(out / "logs")
    job.kill()
    assert len(ranks) == 2
    assert await_end(ranks)
    job.communicate()


def test_a_rank_that_dies_is_named_and_one_rank_goes_on(calm, data, tmp_path, caplog):
    out = tmp_path / "run"
    job = start(data.path, out, "--devices", "2", **CALM)
    wait_for_step(job, out, 7)
    os.kill(int((out / "logs" / "rank-1.pid").read_text()), signal.SIGKILL)
    code, _, errors = finish(job)
    assert code == 1
    assert "Error: rank 1 was killed by signal 9 (SIGKILL)" in errors
    caplog.clear()
    done = train(data.path, out, "--resume", **CALM)
    assert done.exit_code == 0, done.output
    assert "written by 2 ranks" in caplog.text
    assert_same_losses(out, calm)

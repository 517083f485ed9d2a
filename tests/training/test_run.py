"""Whole runs as a user starts them: killed, gone on with, on one rank and on two."""

from __future__ import annotations

import json
import os
import signal
import time

import numpy as np
import pytest

from pipelines.config import BuildConfig
from tests.pipelines.build_fixtures import external, run_build
from tests.training.runs import finish, start, steps, tiny_dataset, trace, wait_for_step
from training import checkpoint


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """A run that nothing interrupted, with a checkpoint every 5 steps and a sample of the class centres."""
    out = tmp_path_factory.mktemp("straight") / "run"
    code, said, errors = finish(start(data.path, out, "--json", checkpoint_steps=5, keep=9))
    assert code == 0, errors
    return out, json.loads(said), errors


# Training amplifies rounding: with SGD and these few images a weight changed by 1e-7 changes the third loss by 1e-4 and
# the tenth by 1e-1, on one rank as well. With small steps of AdamW it is 1e-6 after ten steps and 1e-4 after twenty.
CALM = {"optimizer": "adamw", "lr": 3e-4, "global_batch": 48, "epochs": 4, "checkpoint_steps": 5, "keep": 9}


@pytest.fixture(scope="module")
def calm(data, tmp_path_factory):
    """The losses of one rank with settings that do not amplify rounding."""
    out = tmp_path_factory.mktemp("calm") / "run"
    code, _, errors = finish(start(data.path, out, **CALM))
    assert code == 0, errors
    return trace(out)


def assert_same_losses(got, want):
    assert got.keys() == want.keys()
    got, want = np.array(list(got.values())), np.array(list(want.values()))
    np.testing.assert_allclose(got[:8], want[:8], rtol=1e-4)
    np.testing.assert_allclose(got, want, rtol=2e-3)


def test_a_run_learns_and_says_so(straight, data):
    out, result, errors = straight
    losses = trace(out)
    assert result["steps"] == len(losses) == 2 * (data.totals["kept"] // 16)
    assert np.mean(list(losses.values())[-5:]) < 0.9 * losses[1]
    assert "rank 0: centres 12 of 12 from 0 on" in errors
    assert "images/s  ETA 0:" in errors
    assert (out / "config.yaml").read_text().startswith("backbone: mbf_narrow")
    assert len(list((out / "tensorboard").glob("events.out.tfevents.*"))) == 1
    assert checkpoint.known(out / "checkpoints")[-1].name == f"step-{result['steps']:09d}"


def test_real_faces_train(tmp_path):
    faces = run_build(external("orl"), tmp_path / "data", BuildConfig(shards=8))
    verify = [str(external("orl/orl.bin"))]
    out = tmp_path / "run"
    code, said, errors = finish(start(faces.path, out, "--json", epochs=2, lr=0.02, verify=verify))
    assert code == 0, errors
    losses = list(trace(out).values())
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert 0.5 <= json.loads(said)["accuracies"]["orl"] <= 1


def test_killed_in_an_epoch_it_goes_on_with_identical_losses(straight, data, tmp_path):
    out = tmp_path / "run"
    job = start(data.path, out, checkpoint_steps=5, keep=9)
    wait_for_step(job, out, 8)
    job.send_signal(signal.SIGKILL)
    job.communicate()
    done = steps(out)
    assert done < len(trace(straight[0]))
    code, _, errors = finish(start(data.path, out, "--resume", checkpoint_steps=5, keep=9))
    assert code == 0, errors
    assert "going on from" in errors
    assert trace(out) == trace(straight[0])
    # Once more: it is finished, and says so.
    code, said, errors = finish(start(data.path, out, "--resume", checkpoint_steps=5, keep=9))
    assert (code, "finished already" in errors, "loss" in said) == (0, True, True)


def test_two_ranks_have_the_losses_of_one(calm, data, tmp_path):
    out = tmp_path / "run"
    code, said, errors = finish(start(data.path, out, "--devices", "2", "--json", **CALM))
    assert code == 0, errors
    assert "rank 1: centres 6 of 12 from 6 on" in errors
    assert_same_losses(trace(out), calm)
    assert json.loads(said)["steps"] == len(calm)
    assert checkpoint.read_meta(checkpoint.known(out / "checkpoints")[-1]).world == 2


def test_a_rank_that_dies_is_named_and_one_rank_goes_on(calm, data, tmp_path):
    out = tmp_path / "run"
    job = start(data.path, out, "--devices", "2", **CALM)
    wait_for_step(job, out, 7)
    os.kill(int((out / "logs" / "rank-1.pid").read_text()), signal.SIGKILL)
    began = time.monotonic()
    code, _, errors = finish(job)
    assert time.monotonic() - began < 30  # the promise, not a measurement
    assert code == 1
    assert "Error: rank 1 was killed by signal 9 (SIGKILL)" in errors
    code, _, errors = finish(start(data.path, out, "--resume", **CALM))
    assert code == 0, errors
    assert "written by 2 ranks" in errors
    assert_same_losses(trace(out), calm)

"""Groups: of one, and of two processes that msrun starts."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import mindspore as ms
import numpy as np
import psutil
import pytest

from faceshards.errors import ConfigError, FaceshardsError
from tests.training.head.adaface_problem import FACTOR, STEPS, Training, worst
from tests.training.runs import LIMIT
from training import checkpoint
from training.device.distributed import Group, choose_device, init
from training.launch import TIMEOUTS

ROOT = Path(__file__).resolve().parents[3]
TRIES = 3  # now and then a rank dies by SIGSEGV while MindSpore 2.10 connects them (its RECV_EVENT_LOOP)


def test_alone_nothing_is_communicated():
    group = init("CPU", environ={})
    x = ms.Tensor(np.arange(6, dtype=np.float32).reshape(2, 3))
    assert (group.rank, group.world) == (0, 1)
    assert group.gather(x) is x
    assert group.sum(x) is x
    assert group.max(x) is x
    assert group.gather_object("a") == ["a"]
    group.barrier()
    group.barrier()


def test_a_job_of_one_is_alone():
    assert init("CPU", environ={"MS_WORKER_NUM": "1"}).world == 1


@pytest.mark.parametrize("device", ["GPU", "Ascend"])
def test_a_missing_device_is_one_line(device):
    if ms.hal.is_available(device):
        pytest.skip(f"{device} is here")
    with pytest.raises(FaceshardsError, match=rf"device {device} is not available here \(available: CPU") as failure:
        init(device, environ={})
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("there", [["Ascend", "GPU", "CPU"], ["GPU", "CPU"], ["CPU"]])
def test_auto_is_the_best_device_there_is(monkeypatch, there):
    monkeypatch.setattr(ms.hal, "is_available", there.__contains__)
    assert choose_device("auto") == there[0]
    assert choose_device("GPU") == "GPU"  # one that is named is that, there or not


def test_an_unknown_device_is_refused():
    with pytest.raises(ConfigError, match="'TPU' is not one of Ascend, GPU, CPU"):
        init("TPU", environ={})


def test_a_number_of_workers_that_is_none_is_refused():
    with pytest.raises(FaceshardsError, match="MS_WORKER_NUM='two'"):
        init("CPU", environ={"MS_WORKER_NUM": "two"})


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What tests/training/device/two_ranks.py wrote, one dictionary per rank."""
    for _ in range(TRIES):
        folder = tmp_path_factory.mktemp("pair")
        said = run_pair(folder)
        if said is None:
            return [{"folder": folder, **json.loads((folder / f"rank-{rank}.json").read_text())} for rank in range(2)]
    pytest.fail(said)


def run_pair(folder: Path) -> str | None:
    """Runs two_ranks.py on two ranks; returns None if both came to their end, else what was said."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environ = {
        **TIMEOUTS,
        **os.environ,
        # A rank that waits for another's work waits longer than this; without heartbeats nothing else knows of it.
        "MS_NODE_TIMEOUT": "3",
        "MS_DISABLE_HEARTBEAT": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # msrun starts the first python there
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    arguments = [
        *("msrun", "--worker_num=2", "--local_worker_num=2", "--master_addr=127.0.0.1", f"--master_port={port}"),
        *(f"--log_dir={folder / 'log'}", "--join=True", "--cluster_time_out=120"),
        *(str(ROOT / "tests/training/device/two_ranks.py"), str(folder)),
    ]
    with open(folder / "said", "wb") as said:
        job = subprocess.Popen(arguments, env=environ, cwd=ROOT, stdout=said, stderr=said, start_new_session=True)
    ranks, most, until = [folder / f"rank-{rank}.json" for rank in range(2)], 0, time.monotonic() + LIMIT
    while job.poll() is None and not all(path.exists() for path in ranks):
        most = max(most, found := alive(job.pid))
        if found < most or time.monotonic() > until:  # the others would wait for it
            os.killpg(job.pid, signal.SIGKILL)
            break
        time.sleep(0.2)
    if job.wait(LIMIT) == 0:
        return None
    logs = (path.read_text(errors="replace")[-3000:] for path in sorted((folder / "log").glob("worker_*.log")))
    return (folder / "said").read_text(errors="replace")[-2000:] + "".join(logs)


def alive(launcher: int) -> int:
    """Returns how many processes of the job there are; one that ended, and is not waited for yet, has no command."""
    found = 0
    for one in psutil.Process(launcher).children():
        with suppress(psutil.Error):
            found += any(word.endswith("two_ranks.py") for word in one.cmdline())
    return found


@pytest.mark.slow
def test_two_ranks_gather_sum_and_take_the_maximum(pair):
    x, y = [[1, -5], [2, 7]], [[-2, 10], [-4, -14]]
    want = [x + y, [[-1, 5], [-2, -7]], [[1, 10], [2, 7]]]
    for result in pair:
        assert result["world"] == 2
        assert result["eager"] == want
        assert result["graph"] == want
        assert result["objects"] == [{"rank": 0}, {"rank": 1}]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "compared"),
    [
        *[(case, "loss d_embeddings d_rows d_backbone rows") for case in ("rate 0.3", "adamw")],
        *[(case, "loss norm d_rows rows gradients weights statistics") for case in ("backbone", "backbone in float16")],
    ],
)
def test_two_ranks_train_as_one(pair, case, compared):
    """What differs is rounding: at most ten times what a change of one unit in the last place makes."""
    for result in pair:
        assert result[case].keys() == set(compared.split())
        assert max(result[case].values()) < 10, result[case]


@pytest.mark.slow
def test_what_is_too_large_for_float16_on_one_rank_is_skipped_on_both(pair):
    first, second = (result["overflow"]["together"] for result in pair)
    assert first == second  # scale, skipped or not, weights and momentum to the bit, and the centres' steps
    skipped = [entry[1] for entry in first]
    alone = [entry[1] for entry in pair[0]["overflow"]["alone"]]  # what the first rank's own images give
    assert skipped.index(False) > alone.index(False)
    for (_, _, before, steps), (_, none, after, later) in itertools.pairwise(first):
        assert (before == after, steps == later) == (none, none)


@pytest.mark.slow
def test_a_long_sum_is_the_same_bits_each_time(pair):
    """What a run that goes on repeats: its calls are others than the first run's."""
    assert len({norm for result in pair for norm in result["norms"]}) == 1


@pytest.mark.slow
def test_two_ranks_have_adaface_of_float64(pair):
    first, second = (result["adaface"] for result in pair)
    assert first["statistics"] == second["statistics"]  # to the bit
    for result in (first, second):
        assert max(result["worst"].values()) < FACTOR, result["worst"]


@pytest.mark.slow
def test_one_rank_takes_over_adafaces_statistics(pair):
    path = checkpoint.known(pair[0]["folder"] / "checkpoints")[-1]
    meta = checkpoint.read_meta(path)
    training = Training(Group(), rate=0.8)
    checkpoint.set_from(path, meta, "backbone", {training.weight.name: training.weight})
    checkpoint.set_from(path, meta, "optimizer", training.step.slots)
    checkpoint.restore_rank(path, meta, training.centers)
    training.samples = [np.array(ids) for ids in pair[0]["adaface"]["samples"][: meta.state.step]]
    training.run(meta.state.step, STEPS)
    found = worst(training)
    assert max(found.values()) < FACTOR, found

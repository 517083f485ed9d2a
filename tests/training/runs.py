"""What the tests of whole runs share: a tiny dataset, tiny settings, and runs as processes."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from click.testing import CliRunner, Result

from faceshards.cli.main import main
from faceshards.dataset.manifest import Manifest
from pipelines.config import BuildConfig
from pipelines.synthetic.write import SyntheticSpec
from tests.pipelines.build_fixtures import ROOT, run_build, synthetic_set

LIMIT = 600  # seconds until a process counts as lost; beside other work they take a few times what they take alone
SETTINGS = {
    "backbone": "mbf_tiny",
    "embedding_size": 32,
    "sync_bn": True,
    "margin": [1, 0, 0.2],
    "scale": 16,
    "global_batch": 16,
    "lr": 0.05,
    "lr_batch": 0,
    "epochs": 2,
    "warmup_epochs": 0.5,
    "log_steps": 1,
    "threads": 1,
}


def tiny_dataset(folder: Path, seed: int = 3) -> Manifest:
    """Returns a published dataset of 12 identities in 8 shards."""
    spec = SyntheticSpec(identities=12, images=240, defects=0, unseen=0, pairs=0, seed=seed)
    return run_build(synthetic_set(folder, spec), folder / "data", BuildConfig(shards=8))


def arguments(data: Path, out: Path, *options: str, **settings: object) -> list[str]:
    """Returns what follows ``faceshards train`` for a run with the tiny settings, whose recipe is written."""
    out.parent.mkdir(parents=True, exist_ok=True)
    recipe = out.parent / f"{out.name}.yaml"
    recipe.write_text(json.dumps({**SETTINGS, **settings}))
    return [str(recipe), "--data", str(data), "--out", str(out), *options]


def train(data: Path, out: Path, *options: str, **settings: object) -> Result:
    """Returns the outcome of ``faceshards train`` in this process."""
    return CliRunner().invoke(main, ["train", *arguments(data, out, *options, **settings)])


def start(
    data: Path, out: Path, *options: str, inside: Sequence[str] = (), **settings: object
) -> subprocess.Popen[str]:
    """Starts ``faceshards train`` with the tiny settings, in an environment where their backbone is installed.

    Args:
        data: the dataset.
        out: the run's folder.
        options: of the command.
        inside: a command that runs this one.
        settings: over the tiny ones.
    """
    command = [*inside, sys.executable, "-m", "faceshards", "train", *arguments(data, out, *options, **settings)]
    paths = filter(None, (str(ROOT / "tests/training/plugin"), str(ROOT), os.environ.get("PYTHONPATH")))
    environment = {**os.environ, "GLOG_v": "3", "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(job: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Returns exit code, stdout and stderr of a run that ends by itself."""
    out, errors = job.communicate(timeout=LIMIT)
    return job.returncode, out, errors


def rank_handles(logs: Path) -> list[int]:
    """Returns a descriptor (pidfd_open(2)) of each rank that writes its logs there; to be closed."""
    return [os.pidfd_open(int(path.read_text())) for path in logs.glob("rank-*.pid")]


def await_end(handles: list[int], seconds: float = LIMIT) -> bool:
    """Returns whether processes have ended, or do so in time; closes their descriptors."""
    ended = [select.select([handle], [], [], seconds)[0] == [handle] for handle in handles]
    for handle in handles:
        os.close(handle)
    return all(ended)


def steps(out: Path) -> int:
    """Returns how many steps a run has written down."""
    path = out / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_for_step(job: subprocess.Popen[str], out: Path, step: int) -> None:
    """Returns when a run has come to a step."""
    wait_until(job, lambda: steps(out) >= step)


def wait_until(job: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    """Returns when a run has come so far; fails where it ends before."""
    until = time.monotonic() + LIMIT
    while not reached():
        assert job.poll() is None, job.communicate()
        if time.monotonic() > until:
            raise TimeoutError(f"not so far after {LIMIT} s")
        time.sleep(0.01)


def trace(out: Path) -> dict[int, float]:
    """Returns the loss of every step."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def refused(result: Result) -> str:
    """Returns the one line of a refusal."""
    lines = [line for line in result.stderr.splitlines() if not line.startswith(("INFO", "WARNING", "[WARNING"))]
    assert result.exit_code in (1, 2, 130), result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert len(lines) == 1, lines
    return lines[0]

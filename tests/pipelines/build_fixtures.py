"""What the tests of whole builds share: a tiny synthetic set, independent readers, and builds as processes."""

from __future__ import annotations

import atexit
import csv
import functools
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from distributed import LocalCluster

from evaluation.models import mxnet_import
from faceshards.cli.main import main
from faceshards.dataset.manifest import Manifest
from pipelines.build import Execution, build
from pipelines.config import BuildConfig
from pipelines.sources.find import find_files
from pipelines.synthetic.write import SyntheticSpec, write_set

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("FACESHARDS_DATA") or ROOT.parent / "shared" / "data")

SPEC = SyntheticSpec(identities=12, images=240, defects=4, unseen=0, pairs=0, seed=3)
CONFIG = BuildConfig(shards=4)
PLANTED = (
    "WARNING tiny: 12 of 272 records are broken and left out (undecodable 8, wrong_size 4)\n"  # said by its builds
)
PARTITION_BYTES = 160_000  # several partitions of a set of about 0.8 MB

# Seconds until a process that should end, or a file that should appear, counts as lost.
LIMIT = 300


def synthetic_set(folder: Path, spec: SyntheticSpec = SPEC) -> Path:
    """Returns the folder of a small synthetic set, rendered into `folder`."""
    out = folder / "tiny"
    write_set(out, spec)
    return out


def external(path: str) -> Path:
    """Returns a file of the test data that is not in the repository; skips the test where it is absent."""
    if not (DATA / path).exists():
        pytest.skip(f"{path} is not in {DATA} (FACESHARDS_DATA)")
    return DATA / path


@functools.cache
def shared_worker() -> str:
    """Returns the address of a cluster of one worker for all that this process builds and exports.

    A cluster of its own costs a build here several times its work; test_golden's builds, those of two workers and the
    commands that start() starts have one.
    """
    found = LocalCluster(n_workers=1, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0")
    atexit.register(found.close)
    # Its scheduler is in this process, and logs each client that comes and goes, at any moment.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    return str(found.scheduler_address)


def by_shared_worker(partition_bytes: int = 0) -> Execution:
    """Returns how tests build, plan, split and export unless it is about workers: by the shared one, in silence.

    Whatever disk they run on, images are not carried through the work folder.
    """
    return Execution(1, shared_worker(), partition_bytes, quiet=True, shuffle="direct")


def run_build(
    source: Path,
    out: Path,
    config: BuildConfig = CONFIG,
    *,
    workers: int = 1,
    partition_bytes: int = PARTITION_BYTES,
    scheduler: str | None = None,
    **options: Any,
) -> Manifest:
    """Returns the dataset built in this process; by the shared worker, unless it is to have several or others."""
    files, _ = find_files(source)
    if workers == 1 and scheduler is None:
        scheduler = shared_worker()
    execution = Execution(workers, scheduler, partition_bytes, quiet=True)
    return build("tiny", files, out, config, execution, **options)


def read_rec(rec: Path) -> dict[int, tuple[int, bytes]]:
    """Returns label and image of every image record by key, as MXNet's reader sees them."""
    recordio = mxnet_import.load().recordio
    reader = recordio.MXIndexedRecordIO(str(rec.with_suffix(".idx")), str(rec), "r")
    found = {}
    for key in reader.keys:
        header, image = recordio.unpack(reader.read_idx(key))
        if header.flag == 0:
            found[key] = (int(header.label), image)
    reader.close()
    return found


def read_defects(folder: Path) -> list[dict[str, str]]:
    """Returns the planted defects: key, identity, kind, of_key."""
    with (folder / "defects.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def digests(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file below a folder by its relative path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def rewrite_info(folder: Path, change: Callable[[dict], object] = lambda info: None, *, schema: int = 2) -> None:
    """Has a dataset's dataset.json say what its files are now, with a change, and a checksum that is right again.

    Args:
        folder: of the dataset.
        change: of the content of dataset.json, in place.
        schema: 2, or 1 for what earlier releases wrote: the same without the checksum.
    """
    info = json.loads((folder / "dataset.json").read_text())
    info.pop("sha256", None)
    info["schema_version"] = schema
    for name in info["files"]:
        data = (folder / name).read_bytes()
        info["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change(info)
    if schema > 1:
        text = json.dumps(info, sort_keys=True, separators=(",", ":"))
        info["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "dataset.json").write_text(json.dumps(info, indent=2) + "\n")


def flip_bit(path: Path, bit: int) -> None:
    """Flips a bit of a file, counted from the lowest one of its first byte."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def command(source: Path, out: Path, *more: str) -> list[str]:
    """Returns the command line of a build with the settings of CONFIG."""
    build = [sys.executable, "-m", "faceshards", "build", "--source", str(source), "--out", str(out)]
    return [*build, "--set", "shards=4", "--workers", "1", "--partition-bytes", str(PARTITION_BYTES), "--quiet", *more]


def start(arguments: Sequence[str], **environment: str) -> subprocess.Popen[str]:
    """Returns a process in a group of its own, so that it can be killed with all its workers."""
    return subprocess.Popen(
        arguments,
        cwd=ROOT,
        env={**os.environ, **environment},
        text=True,
        start_new_session=True,
        # What a shell runs in the background ignores Ctrl-C, and so would all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Returns exit code, stdout and stderr of a process; kills its group if it does not end."""
    try:
        out, err = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        kill_group(process)
        raise
    return process.returncode, out, err


def run(arguments: Sequence[str], **environment: str) -> tuple[int, str, str]:
    """Returns exit code, stdout and stderr of a command."""
    return finish(start(arguments, **environment))


def run_here(arguments: Sequence[str]) -> tuple[int, str, str]:
    """Returns exit code, stdout and stderr of a command() in this process, with the shared worker.

    For what is refused, and for what follows a build that was ended. It logs as a process of its own would: to stderr.
    """
    scheduler, root = shared_worker(), logging.getLogger()
    level, handlers, root.handlers = root.level, root.handlers, []
    try:
        result = CliRunner().invoke(main, [*arguments[3:], "--scheduler", scheduler])
    finally:
        root.handlers = handlers
        root.setLevel(level)
    return result.exit_code, result.stdout, result.stderr


def kill_group(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    """Sends a signal to a process and its workers, and waits for it if it is SIGKILL."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return
    if number == signal.SIGKILL:
        process.communicate(timeout=LIMIT)


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> bool:
    """Polls until `condition` holds; returns False if the process ended before it did."""
    end = time.monotonic() + LIMIT
    while not condition():
        if process.poll() is not None:
            return bool(condition())
        if time.monotonic() > end:
            kill_group(process)
            raise TimeoutError("what the test waits for never came")
        time.sleep(0.0005)
    return True


# Dask imports this in every worker: a function of ours that first kills the process, or waits, when the test says so.
_PRELOAD = """
import importlib, os, signal, time
from pathlib import Path

module = importlib.import_module({module!r})
real = getattr(module, "untouched", getattr(module, {name!r}))  # Dask loads this twice
module.untouched = real

def kill(file):
    os.kill(os.getpid(), signal.SIGKILL)

def kill_once(file):
    try:
        Path(file).touch(exist_ok=False)
    except FileExistsError:
        return
    kill(file)

def hold(file):
    while os.path.exists(file):
        time.sleep(0.01)

def acting(first, *more, **named):
    if {mark!r} in (os.fsencode(first) if isinstance(first, Path) else bytes(first)):
        {act}({file!r})
    return real(first, *more, **named)

setattr(module, {name!r}, acting)
"""


def preload(folder: Path, function: str, mark: bytes, act: str, file: Path | str = "") -> dict[str, str]:
    """Returns the environment in which a function acts up in every worker.

    Args:
        folder: for the script.
        function: MODULE:NAME, as its callers look it up.
        mark: it acts up when these bytes are in its first argument.
        act: "kill" the worker, "kill_once" if `file` is not there yet, or "hold" it as long as `file` is there.
        file: of `act`.
    """
    module, name = function.split(":")
    path = folder / "preload.py"
    path.write_text(_PRELOAD.format(module=module, name=name, mark=mark, act=act, file=str(file)))
    return {"DASK_DISTRIBUTED__WORKER__PRELOAD": json.dumps([str(path)])}

"""Starts the ranks of a run on this host with MindSpore's msrun, and ends them when the job has ended anywhere."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import faceshards
from training import ranks
from training.board import GO_ON, Board, Cause
from training.deadman import Deadman
from training.device.diagnostics import GLOG
from training.hosts import MSRUN, Hosts, LaunchError
from training.watch import Follower, Watch, exit_code

# Seconds. A dead host is noticed by MindSpore's scheduler after NODE; a dead process on this host by msrun within one.
# A rank may wait long for another that verifies or writes a checkpoint, so waiting for a message is no sign of death,
# nor is waiting in a collective, which on CPU would otherwise fail after NODE (measured: MindSpore 2.10).
TIMEOUTS = {
    "MS_NODE_TIMEOUT": "15",
    "MS_HEARTBEAT_RETRY_TIMEOUT": "5",
    "MS_TOPO_TIMEOUT": "120",
    "MS_RECEIVE_MSG_TIMEOUT": "7200",
    "MS_CPU_COMM_OP_TIMEOUT": "7200",
}
GRACE = 5.0  # seconds for the processes of a job that has ended to leave by themselves
TURN = 0.2  # seconds; shorter than a second, after which msrun kills the ranks beside one that has died


def launch(arguments: Sequence[str], log_dir: Path, hosts: Hosts) -> None:
    """Runs ``faceshards train ARGUMENTS`` as this host's ranks, and returns when all have ended well.

    The log of the first rank here is passed on to stderr; every rank's is in `log_dir`/worker_RANK.log. Whatever ends
    this function, and this process too, ends the ranks: SIGTERM and SIGHUP as Ctrl-C, and SIGKILL.

    Args:
        arguments: of the command train, the same for all ranks.
        log_dir: folder for logs, made if absent; of this host alone, and of several beside the other hosts' (host-R) on
            a disk that they share.
        hosts: of the job; checked.

    Raises:
        LaunchError: msrun does not start, or the job ended early, here or on another host; the message says what ended
            it.
    """
    log_dir.mkdir(parents=True, exist_ok=True)
    for pattern in ("worker_*.log", "scheduler.log", "*.pid", "*.end"):
        for old in log_dir.glob(pattern):
            old.unlink()
    board = Board(log_dir.parent, hosts.names, hosts.rank)
    with _stopped_by(signal.SIGTERM, signal.SIGHUP):
        try:
            job = _start(arguments, log_dir, hosts)
            deadman = Deadman(hosts)
            try:
                with deadman.watching():
                    cause = _follow(job, log_dir, hosts, board, deadman)
            finally:
                _end(job, log_dir)
        except (KeyboardInterrupt, SystemExit) as stop:
            how = "Ctrl-C" if isinstance(stop, KeyboardInterrupt) else signal.Signals(int(str(stop.code)) - 128).name
            board.tell(Cause(f"host {hosts.name} was told to stop ({how}){GO_ON}"))
            if isinstance(stop, SystemExit):
                print(f"Error: told to stop ({how}){GO_ON}", file=sys.stderr)
            raise
    if cause is not None:
        raise LaunchError(cause.text)
    board.done()


def _start(arguments: Sequence[str], log_dir: Path, hosts: Hosts) -> subprocess.Popen[bytes]:
    """Returns msrun, started with this host's ranks; it dies with this process, and they with it."""
    names = hosts.names or ("127.0.0.1",)
    msrun = [
        str(MSRUN),
        f"--worker_num={hosts.world}",
        f"--local_worker_num={hosts.devices}",
        f"--node_rank={hosts.rank if len(names) > 1 else -1}",
        f"--master_addr={names[0]}",
        f"--master_port={hosts.port or _free_port()}",
        f"--log_dir={log_dir}",
        "--cluster_time_out=120",
        "--join=True",
        f"--tail_worker_log={hosts.world}",  # of no rank: for each it would start a process that outlives it
        *([f"--rank_table_file={hosts.rank_table}"] if hosts.rank_table else []),
        *("python", str(Path(faceshards.__file__).with_name("__main__.py")), "train", *arguments),
    ]
    environment = {
        **TIMEOUTS,
        **os.environ,
        GLOG: min(os.environ.get(GLOG, "3"), "3"),  # errors, into logs: among them what the scheduler has to say
        "PATH": f"{MSRUN.parent}{os.pathsep}{os.environ.get('PATH', '')}",  # msrun starts `python` from there
        ranks.LOGS: str(log_dir),
        "PYTHONUNBUFFERED": "1",
    }
    command = [sys.executable, "-I", ranks.__file__, str(os.getpid()), *msrun]
    try:
        with open(log_dir / "msrun.log", "wb") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    except OSError as error:
        raise LaunchError(f"{error.filename or command[0]}: {error.strerror}") from None


@contextmanager
def _stopped_by(*numbers: signal.Signals) -> Iterator[None]:
    """Has signals end the program as an exception, so that what it started can be ended; restores what was there."""

    def stop(number: int, _frame: Any) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _follow(job: subprocess.Popen[bytes], log_dir: Path, hosts: Hosts, board: Board, deadman: Deadman) -> Cause | None:
    """Returns why the job ended, None if it did well here; what is left of it then may still run."""
    follower, watch = Follower(log_dir / f"worker_{hosts.ranks[0]}.log"), Watch(log_dir, hosts, board)
    until = None
    while True:
        code = job.poll()
        follower.turn()
        board.turn()
        deadman.turn()
        if code == 0:
            return None
        cause = watch.verdict(job.poll)
        if cause is not None:
            until = time.monotonic() + GRACE if until is None else until
            if code is not None or time.monotonic() > until:
                return cause
        time.sleep(TURN)


def _end(job: subprocess.Popen[bytes], log_dir: Path) -> None:
    """Ends msrun, and with it what it started; returns when nothing of it lives."""
    job.kill()
    job.wait()
    until = time.monotonic() + GRACE
    while (left := list(_living(log_dir))) and time.monotonic() < until:
        for pid in left:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(TURN)


def _living(log_dir: Path) -> Iterator[int]:
    """Yields the processes of the job on this host that have not ended."""
    mark = os.fsencode(f"{ranks.LOGS}={log_dir}")
    for path in log_dir.glob("*.pid"):
        with suppress(OSError, ValueError):  # it is gone; or it died as it wrote its number
            pid = int(path.read_text())
            # A number may have been given to another process since.
            if exit_code(pid) is None and mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                yield pid

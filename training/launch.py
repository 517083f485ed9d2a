"""Starts the ranks of a run on this host with MindSpore's msrun, and says which one ended the job."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faceshards
from faceshards.errors import FaceshardsError
from faceshards.formats.json_files import read_json

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
MSRUN = Path(sys.executable).with_name("msrun")
_EXIT = re.compile(r"Worker process (\d+) exit with exception\. Error code: (-?\d+)")


class LaunchError(FaceshardsError):
    """The ranks could not be started, or one of them ended early."""


@dataclass(frozen=True)
class Hosts:
    """Where the ranks are: so many devices on each of these hosts, of which this is one.

    Args:
        devices: ranks on each host.
        names: all hosts of the job, the first of which runs the scheduler; empty for this host alone.
        rank: this host's place among them.
        port: of the scheduler; 0 takes a free one.
        rank_table: Ascend's rank table file.
    """

    devices: int = 1
    names: tuple[str, ...] = ()
    rank: int = 0
    port: int = 0
    rank_table: Path | None = None

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.devices * max(1, len(self.names))

    @property
    def ranks(self) -> range:
        """Those of this host."""
        return range(self.rank * self.devices, (self.rank + 1) * self.devices)

    def check(self) -> None:
        """Refuses a job that could not be started from here.

        Raises:
            LaunchError: names the option.
        """
        if len(self.names) > 1 and not self.port:
            raise LaunchError("several hosts need one --port that is free on the first of them")
        if twice := next((name for name in self.names if self.names.count(name) > 1), None):
            raise LaunchError(f"--hosts: {twice} is there twice; --devices says how many ranks a host has")
        if self.rank_table is not None:
            try:
                read_json(self.rank_table)
            except OSError as error:
                raise LaunchError(f"--rank-table: {self.rank_table}: {error.strerror}") from None
            except ValueError as error:
                raise LaunchError(f"--rank-table: {self.rank_table}: not JSON: {error}") from None
        if self.world > 1 and not MSRUN.is_file():
            raise LaunchError(f"{MSRUN}: No such file or directory; it comes with mindspore")
        if self.world > 1 and self.port and self.rank == 0:
            try:
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("", self.port))
            except OSError as error:
                raise LaunchError(f"--port {self.port}: {error.strerror}; choose another, on all hosts") from None


def launch(arguments: Sequence[str], log_dir: Path, hosts: Hosts) -> None:
    """Runs ``faceshards train ARGUMENTS`` as this host's ranks, and returns when all have ended well.

    The log of the first rank here is passed on to stderr; every rank's is in `log_dir`/worker_RANK.log. SIGTERM and
    SIGHUP end the ranks here too, as Ctrl-C does.

    Args:
        arguments: of the command train, the same for all ranks.
        log_dir: folder for logs, made if absent; of this host alone.
        hosts: of the job; checked.

    Raises:
        LaunchError: msrun does not start, or a rank ended early; the message names the rank and its last words.
    """
    names = hosts.names or ("127.0.0.1",)
    log_dir.mkdir(parents=True, exist_ok=True)
    for old in (*log_dir.glob("worker_*.log"), *log_dir.glob("rank-*.pid")):
        old.unlink()
    command = [
        str(MSRUN),
        f"--worker_num={hosts.world}",
        f"--local_worker_num={hosts.devices}",
        f"--node_rank={hosts.rank if len(names) > 1 else -1}",
        f"--master_addr={names[0]}",
        f"--master_port={hosts.port or _free_port()}",
        f"--log_dir={log_dir}",
        "--cluster_time_out=120",
        "--join=True",
        *([f"--rank_table_file={hosts.rank_table}"] if hosts.rank_table else []),
        *("python", str(Path(faceshards.__file__).with_name("__main__.py")), "train", *arguments),
    ]
    environment = {
        **TIMEOUTS,
        "GLOG_v": "3",
        **os.environ,
        "PATH": f"{MSRUN.parent}{os.pathsep}{os.environ.get('PATH', '')}",  # msrun starts `python` from there
        "FACESHARDS_LOGS": str(log_dir),
        "PYTHONUNBUFFERED": "1",
    }
    with _stopped_by(signal.SIGTERM, signal.SIGHUP):
        try:
            with open(log_dir / "msrun.log", "wb") as log:
                job = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        except OSError as error:
            raise LaunchError(f"{command[0]}: {error.strerror}; it comes with mindspore") from None
        try:
            _follow(job, log_dir / f"worker_{hosts.ranks[0]}.log")
        except BaseException:
            _end(job, log_dir)
            raise
    if job.returncode:
        raise LaunchError(_cause(log_dir, job.returncode))


def announce() -> None:
    """Writes which rank this process is, for the launcher; does nothing in a process that msrun did not start."""
    if "FACESHARDS_LOGS" in os.environ and os.environ.get("MS_ROLE") == "MS_WORKER":
        Path(os.environ["FACESHARDS_LOGS"], f"rank-{os.environ['RANK_ID']}.pid").write_text(str(os.getpid()))


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


def _follow(job: subprocess.Popen[bytes], log: Path) -> None:
    """Passes a log on to stderr until the job has ended."""
    place = 0
    while True:
        ended = job.poll() is not None
        if log.exists():
            with open(log, "rb") as file:
                file.seek(place)
                text = file.read()
            place += len(text)
            sys.stderr.write(text.decode(errors="replace"))
            sys.stderr.flush()
        if ended:
            return
        time.sleep(0.2)


def _end(job: subprocess.Popen[bytes], log_dir: Path) -> None:
    """Ends msrun, which ends its ranks; and them too, if it does not listen."""
    job.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        job.wait(10)
        return
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    for file in log_dir.glob("rank-*.pid"):  # msrun gives its ranks groups of their own
        with suppress(OSError, ValueError):
            os.kill(int(file.read_text()), signal.SIGKILL)


def _cause(log_dir: Path, code: int) -> str:
    """Returns one line on why a job ended: the rank, how it ended, and its last error."""
    ranks = {pid.read_text(): pid.stem.partition("-")[2] for pid in log_dir.glob("rank-*.pid")}
    said = (log_dir / "msrun.log").read_text(errors="replace")
    for pid, text in _EXIT.findall(said):
        rank, ended = ranks.get(pid, f"of process {pid}"), int(text)
        if ended < 0:
            return f"rank {rank} was killed by signal {-ended} ({signal.Signals(-ended).name}); --resume goes on"
        log = log_dir / f"worker_{rank}.log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        errors = [line.partition("Error: ")[2] for line in lines if "Error: " in line]
        return f"rank {rank} ended with code {ended}: {errors[-1] if errors else 'see ' + str(log)}"
    return f"msrun ended with code {code}; see {log_dir / 'msrun.log'}"

"""What ended a job: told by the processes of a host, and by hosts to each other."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from faceshards.locks import exclusive_folder
from tests.training.runs import LIMIT, refused, train
from training import ranks
from training.board import LOST, SILENT, Board, Cause
from training.deadman import STALLED, Deadman, answers
from training.hosts import Hosts
from training.ranks import last_words
from training.watch import PATIENCE, SETTLE, Follower, Watch, exit_code

NAMES = ("n0", "n1")


def runs() -> None:
    """Is msrun's exit code while it runs."""


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Job:
    """A job on hosts of one rank each, seen by all of their launchers; their processes are those of a test."""

    def __init__(self, folder: Path, names: tuple[str, ...] = NAMES) -> None:
        self.clock, self.folder = Clock(), folder
        self.places = list(range(len(names)))
        for place in self.places:
            self.logs(place).mkdir(parents=True)
        self.boards = [Board(folder, names, place, self.clock) for place in self.places]
        self.watches = [
            Watch(self.logs(place), Hosts(1, names, place), board, self.clock)
            for place, board in enumerate(self.boards)
        ]
        self.pass_by(3)

    def logs(self, place: int) -> Path:
        return self.folder / f"host-{place}"

    def pass_by(self, seconds: float, *places: int) -> None:
        """Lets time pass, and the launchers of some hosts, or all, count on."""
        for _ in range(round(seconds)):
            self.clock.now += 1
            for place in places or self.places:
                self.boards[place].turn()

    def verdicts(self) -> list[str | None]:
        found = [watch.verdict(runs) for watch in self.watches]
        return [cause and cause.text for cause in found]

    def ends(self, place: int, text: str, echo: bool, name: str = "") -> None:
        """Has a process write down its end, as it does."""
        path = self.logs(place) / f"{name or f'rank-{place}'}.end"
        path.with_suffix(".pid").write_text(str(os.getpid()))
        path.write_text(json.dumps({"text": text, "echo": echo}))


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path)


@pytest.fixture
def killed():
    """Starts a process and kills it; until the end of the test nobody asks how it ended."""
    started = []

    def kill(number: signal.Signals) -> int:
        process = subprocess.Popen(["sleep", str(LIMIT)])
        started.append(process)
        process.send_signal(number)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        return process.pid

    yield kill
    for process in started:
        process.wait()


def test_while_all_goes_well_nothing_is_said(job):
    assert job.verdicts() == [None, None]
    job.pass_by(LOST)
    assert job.verdicts() == [None, None]


@pytest.mark.parametrize("place", [0, 1])
def test_both_hosts_name_the_rank_that_was_killed(job, killed, place):
    (job.logs(place) / f"rank-{place}.pid").write_text(str(killed(signal.SIGKILL)))
    job.ends(1 - place, "Launch kernel failed, name:Default/AllGather-op0", echo=True)
    job.pass_by(1)
    job.verdicts()
    job.pass_by(1)
    said = f"rank {place} on n{place} was killed by signal 9 (SIGKILL); --resume goes on"
    assert job.verdicts() == [said, said]


def test_both_hosts_name_the_scheduler_that_was_killed(job, killed):
    (job.logs(0) / "scheduler.pid").write_text(str(killed(signal.SIGKILL)))
    for place in (0, 1):  # MindSpore's way of ending ranks that have lost the scheduler
        (job.logs(place) / f"rank-{place}.pid").write_text(str(killed(signal.SIGTERM)))
    job.verdicts()
    job.pass_by(2)
    assert job.verdicts() == ["the scheduler on n0 was killed by signal 9 (SIGKILL); --resume goes on"] * 2


def test_an_error_is_named_and_not_its_echo(job):
    job.ends(0, "cannot join", echo=True)
    job.pass_by(SETTLE + 1)
    assert job.verdicts() == [None, None]  # the other may still say why
    job.ends(1, "shard-3: damaged", echo=False)
    job.pass_by(1)
    job.verdicts()
    job.pass_by(1)
    assert job.verdicts() == ["rank 1 on n1: shard-3: damaged"] * 2


def test_a_silent_host_is_lost_at_once_if_something_failed(job):
    job.pass_by(SILENT + 1, 0)
    assert job.verdicts()[0] is None
    job.ends(0, "Launch kernel failed", echo=True)
    job.verdicts()
    job.pass_by(SETTLE, 0)
    assert str(job.verdicts()[0]).startswith("host n1 was lost: its launcher was not heard of for ")


def test_a_silent_host_is_lost_after_a_while_anyway(job):
    job.pass_by(LOST, 1)
    assert job.verdicts()[1] is None
    job.pass_by(1, 1)
    assert (
        job.verdicts()[1] == f"host n0 was lost: its launcher was not heard of for {LOST + 1:.0f} s; --resume goes on"
    )


def test_a_host_that_is_done_is_not_lost(job):
    job.boards[1].done()
    job.pass_by(LOST + 2, 0)
    assert job.verdicts()[0] is None


def test_a_cut_between_hosts_that_live_is_what_the_scheduler_says(job):
    (job.logs(0) / "scheduler.log").write_text("[ERROR] UpdateTopoState] The node: 1 is timed out. It may exit\n")
    job.ends(0, "cannot join the job: The total number of timed out node is 1", echo=True, name="scheduler")
    job.ends(1, "Launch kernel failed", echo=True)
    job.verdicts()
    job.pass_by(SETTLE)
    job.verdicts()
    job.pass_by(1)
    said = "host n1 was lost: its rank 1 reaches the scheduler on n0 no more; --resume goes on"
    assert job.verdicts() == [said, said]


def test_without_any_other_cause_an_echo_is_one(job):
    job.ends(0, "Launch kernel failed", echo=True)
    job.verdicts()
    job.pass_by(PATIENCE)
    assert job.verdicts()[0] == "rank 0 on n0: Launch kernel failed"


def test_a_host_that_never_came_is_named(tmp_path):
    job = Job(tmp_path)
    (job.logs(1) / "host.json").unlink()
    alone = Board(tmp_path, NAMES, 0, job.clock)
    watch = Watch(job.logs(0), Hosts(1, NAMES, 0), alone, job.clock)
    job.ends(0, "cannot join the job of 2 processes", echo=True)
    watch.verdict(runs)
    job.clock.now += SETTLE
    assert watch.verdict(runs) == Cause("host n1 did not start: it needs this command with --host-rank 1")


def test_what_was_said_of_a_job_before_counts_no_more(job):
    job.boards[1].tell(Cause("old"))
    again = Board(job.folder, NAMES, 0, job.clock)
    job.boards[1].turn()  # it is still ending
    again.turn()
    assert again.told() == []
    Board(job.folder, NAMES, 1, job.clock).tell(Cause("new"))
    job.clock.now += 1
    again.turn()
    assert again.told() == [Cause("new")]


def test_a_launcher_that_was_started_anew_is_of_another_job(job):
    again = Board(job.folder, NAMES, 0, job.clock)  # the first one was killed, its host's ranks with it
    watch = Watch(job.logs(0), Hosts(1, NAMES, 0), again, job.clock)
    for _ in range(3):
        job.clock.now += 1
        again.turn()
        job.boards[1].turn()
    job.ends(1, "Launch kernel failed", echo=True)
    cause = job.watches[1].verdict(runs)
    assert cause == Cause("host n0 was lost: its launcher has been started anew; --resume goes on")
    job.clock.now += 1
    again.turn()
    assert watch.verdict(runs) is None


def test_half_of_a_file_says_nothing(job):
    path = job.logs(1) / "host.json"
    path.write_text(path.read_text()[:20])
    job.pass_by(1, 0)
    assert job.boards[0].told() == []


def test_ranks_that_msrun_has_killed_are_not_the_cause(tmp_path, killed):
    job = Job(tmp_path, names=("n0",))
    first, second = killed(signal.SIGKILL), killed(signal.SIGKILL)
    for rank, pid in enumerate((first, second)):
        (job.logs(0) / f"rank-{rank}.pid").write_text(str(pid))
    (job.logs(0) / "msrun.log").write_text(f"[ERROR] Worker process {second} exit with exception. Error code: -9.\n")
    assert job.verdicts() == ["rank 1 was killed by signal 9 (SIGKILL); --resume goes on"]


def test_ranks_that_died_with_msrun_are_not_the_cause(job, killed):
    (job.logs(0) / "rank-0.pid").write_text(str(killed(signal.SIGKILL)))
    found = job.watches[0].verdict(lambda: -9)
    assert found == Cause("msrun on n0 was killed by signal 9 (SIGKILL); --resume goes on")


def test_an_exit_code_is_known_before_anybody_waited(killed):
    assert exit_code(killed(signal.SIGKILL)) == -9
    assert exit_code(os.getpid()) is None


def test_a_host_is_cut_off_if_neither_its_disk_nor_another_host_answers():
    clock, there = Clock(), {"n1", "n2"}
    deadman = Deadman(Hosts(1, ("n0", "n1", "n2"), 0, 8118), lambda name, port: port == 8118 and name in there, clock)
    there.clear()
    clock.now += STALLED
    assert not deadman.cut_off()  # the disk may yet answer
    clock.now += 1
    assert deadman.cut_off()
    there.add("n2")
    assert not deadman.cut_off()  # it is the disk alone
    there.clear()
    deadman.turn()
    assert not deadman.cut_off()


def test_a_port_that_refuses_is_an_answer():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # and does not listen
        assert answers("127.0.0.1", probe.getsockname()[1])
        probe.listen()
        assert answers("127.0.0.1", probe.getsockname()[1])
    assert not answers("no-such-host.invalid", 8118)


def test_a_log_is_passed_on_without_what_is_not_for_the_terminal(tmp_path, capsys):
    log = tmp_path / "worker_0.log"
    follower = Follower(log)
    follower.turn()
    log.write_text("a\nINFO b\n[ERROR] DEVICE(1,2,python): a page\n\nof lines\nWARNING c\nrank-0 ends: d\nINFO half")
    follower.turn()
    assert capsys.readouterr().err == "a\nINFO b\nWARNING c\n"
    log.write_text(log.read_text() + " and \x1b[31mhalf\n")
    follower.turn()
    assert capsys.readouterr().err == "INFO half and \\x1b[31mhalf\n"


def test_a_rank_writes_its_end_down_and_leaves(tmp_path):
    environment = {ranks.LOGS: str(tmp_path), "MS_ROLE": "MS_WORKER", "RANK_ID": "3"}
    child = os.fork()
    if not child:
        with last_words(environment):
            raise ValueError("two\nlines")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert json.loads((tmp_path / "rank-3.end").read_text()) == {"text": "two lines", "echo": False}


def test_a_process_dies_with_the_one_that_started_it():
    start = f"""
import os, subprocess, sys
command = [sys.executable, "-I", {ranks.__file__!r}, str(os.getpid()), "/bin/sh", "-c", "echo $$; exec sleep {LIMIT}"]
subprocess.Popen(command).wait()
"""
    with subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    try:
        assert select.select([child], [], [], LIMIT)[0] == [child]
    finally:
        os.close(child)


def test_a_process_whose_starter_is_gone_does_not_begin(tmp_path):
    command = [sys.executable, "-I", ranks.__file__, "1", "/bin/sh", "-c", f"touch {tmp_path}/begun"]
    assert subprocess.run(command, check=False).returncode == 1
    assert list(tmp_path.iterdir()) == []


def test_a_start_beside_a_rank_of_an_earlier_one_is_refused(data, tmp_path):
    out = tmp_path / "run"
    with exclusive_folder(out, ".lock-rank-1"):
        said = refused(train(data.path, out))
    assert f"{out}: rank 1 of an earlier start (process {os.getpid()} of its host) is at work there still" in said

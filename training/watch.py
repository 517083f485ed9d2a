"""Watches a job from one of its hosts: passes a log on, and finds out what ended the job, here or on another host."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from faceshards.errors import harmless
from faceshards.formats.json_files import read_json
from training.board import GO_ON, LOST, SILENT, Board, Cause
from training.hosts import Hosts
from training.ranks import SCHEDULER

# Seconds after the first error that may be an echo: until a cause on this host, or another host's, would have shown.
SETTLE, PATIENCE = 2.0, 20.0

_EXIT = re.compile(r"Worker process (\d+) exit with exception\. Error code: (-?\d+)")
_TIMED_OUT = re.compile(r"The node: (\d+) is timed out")
# Not for the terminal: MindSpore's pages, up to a line of our own, and what a rank says of its end: it may be an echo.
_ASIDE, _OWN = (
    re.compile(r"\[(DEBUG|INFO|WARNING|ERROR|CRITICAL)\]|rank-\d+ ends: "),
    re.compile(r"(INFO|WARNING|ERROR) "),
)


class Follower:
    """Passes a log on to stderr, line by line.

    Args:
        path: of the log, which need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._place, self._aside = path, 0, False

    def turn(self) -> None:
        """Passes on what has come since the last time."""
        if not self._path.exists():
            return
        with open(self._path, "rb") as file:
            file.seek(self._place)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._place += len(whole)
        for line in whole.decode(errors="replace").split("\n")[:-1]:
            self._aside = bool(_ASIDE.match(line)) or (self._aside and not _OWN.match(line))
            if not self._aside:
                sys.stderr.write(f"{harmless(line)}\n")
        sys.stderr.flush()


class Watch:
    """Finds out why a job ends.

    Args:
        log_dir: of this host.
        hosts: of the job.
        board: what its hosts tell each other.
        clock: seconds that only grow.
    """

    def __init__(self, log_dir: Path, hosts: Hosts, board: Board, clock: Callable[[], float] = time.monotonic) -> None:
        self._logs, self._hosts, self._board, self._clock = log_dir, hosts, board, clock
        self._signs: dict[str, Cause] = {}
        self._since: float | None = None

    def verdict(self, poll: Callable[[], int | None]) -> Cause | None:
        """Returns why the job ends, once that is known; None before, and of a job that ends well.

        A cause counts before an echo of it, which is what most ranks meet. So after an echo the others have some
        seconds to name the cause; that a host is silent, or was never there, is one, too.

        Args:
            poll: returns the exit code of msrun, None while it runs.
        """
        for sign in self._look(poll):
            self._signs.setdefault(sign.text, sign)
        found = [*self._signs.values(), *self._board.told()]
        real = next((cause for cause in found if not cause.echo), None) or self._board.silent(LOST)
        if real is not None or not found:
            return real and self._tell(real)
        now = self._clock()
        self._since = now if self._since is None else self._since
        if now - self._since < SETTLE:
            return None
        self._board.tell(found[0])
        if lost := self._board.silent(SILENT) or self._board.absent():
            return self._tell(lost)
        if now - self._since < PATIENCE and not self._board.agreed():
            return None
        return self._tell(self._cut_off() or found[0])

    def _tell(self, cause: Cause) -> Cause:
        self._board.tell(cause)
        return cause

    def _look(self, poll: Callable[[], int | None]) -> Iterator[Cause]:
        """Yields what has ended on this host, and how."""
        before = {path: exit_code(int(_text(path) or 0)) for path in self._logs.glob("*.pid")}
        code = poll()  # only now: the ranks die with msrun, and it is not they that were killed
        if code is not None and code < 0:
            yield Cause(f"msrun{self._at()} {killed_by(code)}")
            return
        reported = {int(pid): int(text) for pid, text in _EXIT.findall(_text(self._logs / "msrun.log"))}
        for path, seen in before.items():
            # Of processes that end after the first one that msrun saw, it was msrun that killed them.
            ended = reported.get(int(_text(path) or 0), None if reported and path.stem != SCHEDULER else seen)
            if sign := self._sign(path.stem, ended):
                yield sign
        if code and not self._signs:
            for ended in reported.values():
                yield Cause(f"a rank{self._at()} ended with code {ended} as it started: see {self._logs}")
            if not reported:
                yield Cause(f"msrun{self._at()} ended with code {code}: see {self._logs / 'msrun.log'}")

    def _sign(self, name: str, ended: int | None) -> Cause | None:
        """Returns what the end of a process of this host says, None if it goes on or has ended well.

        Args:
            name: rank-R or scheduler.
            ended: its exit code, as far as it is known.
        """
        who = f"{'the scheduler' if name == SCHEDULER else name.replace('-', ' ')}{self._at()}"
        try:
            said = read_json(self._logs / f"{name}.end")
            return Cause(f"{who}: {said['text']}", bool(said["echo"]))
        except (OSError, ValueError, KeyError, TypeError):
            pass
        if not ended:
            return None
        if ended < 0:  # MindSpore ends ranks that have lost the scheduler with SIGTERM
            return Cause(f"{who} {killed_by(ended)}", echo=-ended == signal.SIGTERM)
        log = self._logs / (f"{SCHEDULER}.log" if name == SCHEDULER else f"worker_{name.partition('-')[2]}.log")
        errors = [line.partition("Error: ")[2] for line in _text(log).splitlines() if "Error: " in line]
        return Cause(f"{who} ended with code {ended}: {errors[-1] if errors else f'see {log}'}")

    def _cut_off(self) -> Cause | None:
        """Returns that a rank reached the scheduler no more, if the scheduler says so."""
        names = self._hosts.names
        logs = self._logs.with_name("host-0") if len(names) > 1 else self._logs
        found = _TIMED_OUT.search(_text(logs / f"{SCHEDULER}.log"))
        if found is None:
            return None
        rank = int(found[1])
        if len(names) < 2:
            return Cause(f"rank {rank} was lost: it answers the scheduler no more{GO_ON}")
        host = names[min(rank // self._hosts.devices, len(names) - 1)]
        if host == names[0]:
            return Cause(f"rank {rank} on {host} was lost: it answers the scheduler no more{GO_ON}")
        return Cause(f"host {host} was lost: its rank {rank} reaches the scheduler on {names[0]} no more{GO_ON}")

    def _at(self) -> str:
        return f" on {self._hosts.name}" if len(self._hosts.names) > 1 else ""


def killed_by(code: int) -> str:
    """Returns what a negative exit code means."""
    try:
        name = f" ({signal.Signals(-code).name})"
    except ValueError:
        name = ""
    return f"was killed by signal {-code}{name}{GO_ON}"


def exit_code(pid: int) -> int | None:
    """Returns how a process ended that its parent has not asked for yet, as Popen.returncode has it; None else.

    Source: proc_pid_stat(5), fields 3 and 52.
    """
    fields = _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return os.waitstatus_to_exitcode(int(fields[49])) if len(fields) > 49 and fields[0] == "Z" else None


def _text(path: Path) -> str:
    """Returns the text of a file, "" if it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""

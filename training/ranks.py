"""The first and the last that a process of a job does: it dies with its launcher, and leaves at its first error.

Run as a program, this file becomes another one that dies with the process that started it:
``python -I ranks.py PARENT COMMAND...``; so the launcher starts msrun, whose children the ranks are.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

LOGS, MSRUN = "FACESHARDS_LOGS", "FACESHARDS_MSRUN"  # variables: the folder of logs, the number of msrun's process
SCHEDULER = "scheduler"
_PR_SET_PDEATHSIG = 1  # prctl(2)


def join(environ: Mapping[str, str] = os.environ) -> None:
    """Has this process die with msrun, and writes its number for the launcher; nothing if no launcher started it."""
    if LOGS not in environ or MSRUN not in environ or "MS_ROLE" not in environ:
        return
    die_with(int(environ[MSRUN]))
    Path(environ[LOGS], f"{_name(environ)}.pid").write_text(str(os.getpid()))


def die_with(parent: int) -> None:
    """Has Linux kill this process as soon as its parent has ended, however it ends.

    Args:
        parent: its number; if it is the parent no more, it has ended before, and so does this process.
    """
    if sys.platform == "linux":  # nowhere else is there such a call, and msrun
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


@contextmanager
def last_words(environ: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Has an error inside end the process at once, written down for the launcher as NAME.end.

    MindSpore's own shutdown may wait for ever for a host that cannot be reached (measured: 2.10, a link cut).
    """
    if LOGS not in environ:
        yield
        return
    try:
        yield
    except BaseException as error:
        end = {"text": " ".join(str(error).split()) or type(error).__name__, "echo": getattr(error, "echo", False)}
        path = Path(environ[LOGS], f"{_name(environ)}.end")
        with suppress(OSError):  # of a disk that is full or gone: the exit code is left
            path.with_suffix(".part").write_text(json.dumps(end))
            path.with_suffix(".part").replace(path)
        with suppress(OSError):
            print(f"{_name(environ)} ends: {end['text']}", file=sys.stderr, flush=True)
        os._exit(1)


def _name(environ: Mapping[str, str]) -> str:
    """Returns how the files about a process are called: rank-R or scheduler."""
    return f"rank-{environ['RANK_ID']}" if environ["MS_ROLE"] == "MS_WORKER" else SCHEDULER


def _become(parent: int, command: list[str]) -> None:
    """Turns this process into a command whose children know its number."""
    die_with(parent)
    os.environ[MSRUN] = str(os.getpid())
    os.execv(command[0], command)


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])

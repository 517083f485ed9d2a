"""What MindSpore says when it fails: one line for the user, and the rest of it in a folder of the run's."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from faceshards.errors import FaceshardsError

# MindSpore 2.10 looks these up when it writes, and takes the current folder for each that is not set: the graph that
# failed (rank_R/om/analyze_fail.ir); kernels compiled on the spot, and their lock (akg_kernel_meta,
# kernel_build_tmp.key); graphs as text and .dot.
VARIABLES = ("MS_OM_PATH", "MS_COMPILER_CACHE_PATH", "MS_DEV_SAVE_GRAPHS_PATH")
GLOG = "GLOG_v"  # from which level on it writes to stderr: 3 errors, 4 what ends the process

# What a rank's MindSpore says when another rank, or the scheduler, has gone (2.10).
_ECHO = re.compile(r"All(Gather|Reduce)|Broadcast|collective|cluster|scheduler", re.IGNORECASE)


class DeviceError(FaceshardsError):
    """MindSpore cannot compile or compute something, or a process cannot join a job.

    Args:
        message: one line.
        echo: it may be what a rank meets when another has ended.
    """

    def __init__(self, message: str, echo: bool = False) -> None:
        super().__init__(message)
        self.echo = echo


def quieten() -> None:
    """Keeps MindSpore's pages off stderr, which are in its exceptions, too; to be called before it is imported.

    A level that the user has set (GLOG_v) stays.
    """
    os.environ.setdefault(GLOG, "4")


@contextmanager
def reported_in(folder: Path, *others: type[BaseException]) -> Iterator[None]:
    """Has what MindSpore raises inside end as one line; what is one already passes.

    Args:
        folder: made if it is to hold the report: the traceback, and all that MindSpore says.
        others: errors that pass, too.

    Raises:
        DeviceError: names the report, and the graph if MindSpore has written one there.
    """
    passing: tuple[type[BaseException], ...] = (FaceshardsError, OSError, ModuleNotFoundError, *others)
    before = _graphs(folder)
    try:
        yield
    except passing:
        raise
    except Exception as error:
        report = folder / f"error-rank-{os.environ.get('RANK_ID', '0')}.txt"
        with suppress(OSError):  # what failed is what matters
            folder.mkdir(parents=True, exist_ok=True)
            report.write_text(traceback.format_exc(), encoding="utf-8")
        files = [report, *(path for path, written in _graphs(folder).items() if before.get(path) != written)]
        where = " and ".join(str(path) for path in files if path.exists())
        echo = isinstance(error, RuntimeError) and _ECHO.search(str(error)) is not None
        raise DeviceError(
            f"{type(error).__name__}: {first_line(error)}" + f"; see {where}" * bool(where), echo
        ) from error


def _graphs(folder: Path) -> dict[Path, int]:
    """Returns the graphs that MindSpore could not compile, and when it wrote them."""
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("analyze_fail.ir"))}


def first_line(error: Exception) -> str:
    """Returns the first sentence of MindSpore's message."""
    lines = str(error).strip().splitlines()
    return lines[0].split(". ")[0] if lines else type(error).__name__


@contextmanager
def diagnostics_in(folder: Path) -> Iterator[None]:
    """Has MindSpore, here and in processes started meanwhile, write what it leaves behind into a folder.

    Nothing is made here: MindSpore makes the folder when it has something to write. A variable that the user has set
    stays as it is.

    Args:
        folder: where to; need not be there.
    """
    ours = [name for name in VARIABLES if name not in os.environ]
    os.environ.update(dict.fromkeys(ours, str(folder.absolute())))
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)

"""What a process tells about itself: progress of a stage on stderr (tqdm), what is logged, and its peak of memory."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

from tqdm import tqdm

_Image = TypeVar("_Image")
_LINE = 30  # seconds between two lines where there is no terminal


class _Lines:
    """Makes lines on stderr of what a bar writes: no carriage returns, and nothing of what only clears one."""

    def write(self, text: str) -> None:
        """Writes a state of the bar as a line."""
        if line := text.strip():
            sys.stderr.write(line + "\n")

    def flush(self) -> None:
        """Flushes stderr."""
        sys.stderr.flush()


def bar(name: str, total: int | None, quiet: bool) -> tqdm:
    """Returns a bar that counts images on stderr; where that is no terminal, a line every 30 s and one in the end.

    Args:
        name: of the stage.
        total: images, if that is known.
        quiet: show nothing.
    """
    shared: Any = {"desc": name, "unit": " images", "total": total, "disable": quiet}
    if sys.stderr.isatty():
        return tqdm(**shared, mininterval=0.5, dynamic_ncols=True)
    # Work that ends before the first line is due has none.
    return tqdm(**shared, file=_Lines(), ascii=True, ncols=79, mininterval=_LINE, maxinterval=_LINE, delay=_LINE)


def counted(images: Iterable[_Image], shown: tqdm) -> Iterator[_Image]:
    """Yields images, each counted by a bar as it is taken."""
    for image in images:
        yield image
        shown.update()


class Progress:
    """A bar for one stage; a context manager. The number of images becomes known as the bytes are read.

    Args:
        stage: its name.
        total: units of work (bytes, rows).
        quiet: show nothing.
    """

    def __init__(self, stage: str, total: int, quiet: bool) -> None:
        self._work, self._done = total, 0
        self._bar = bar(f"{stage:<8}", None, quiet)

    def __enter__(self) -> Progress:
        return self

    def advance(self, work: int, images: int) -> None:
        """Counts `work` units as done, with `images` images in them."""
        self._done += work
        if self._done:
            self._bar.total = round((self._bar.n + images) * max(self._work, self._done) / self._done)
        self._bar.update(images)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Lets results be printed to stdout; on a terminal, not into the bar."""
        with self._bar.external_write_mode(sys.stdout):
            yield

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


def peak_memory() -> int:
    """Returns the most memory that this process has held resident, in bytes, as the Linux kernel counts it.

    getrusage's figure is not this: a process starts with the peak of the one that it was forked from.

    Source: VmHWM in proc_pid_status(5).
    """
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) * 1024


@contextmanager
def logging_at(name: str, level: int) -> Iterator[None]:
    """Has a logger, and those below it, say what is of a level or above; as before afterwards."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)

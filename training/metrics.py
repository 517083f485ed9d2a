"""What a run tells while it goes: lines on stderr, metrics.jsonl, and its loggers; rank 0 only."""

from __future__ import annotations

import datetime
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from faceshards.errors import FaceshardsError, why
from faceshards.files import replacing
from faceshards.progress import peak_memory
from training.loggers.base import Logger, first_line
from training.state import GO_ON

log = logging.getLogger(__name__)


class RunLog:
    """The record of a run. Another rank's (or a silent) one keeps the counts and writes nothing.

    Args:
        out: the run's folder; None writes nothing.
        total: optimiser steps of the whole run.
        steps_per_epoch: for the epoch shown.
        images: images in a step, over all ranks.
        every: steps between two lines.
        start: steps that are done already; what an interrupted run wrote beyond them is forgotten.
        pending: losses of steps that are done and in no line yet.
        loggers: by name, told what metrics.jsonl is; closed with it.
    """

    def __init__(
        self,
        out: Path | None,
        total: int,
        steps_per_epoch: int,
        images: int,
        every: int,
        start: int,
        pending: Sequence[float] = (),
        loggers: Mapping[str, Logger] | None = None,
    ) -> None:
        self._total, self._epoch, self._images, self._every = total, steps_per_epoch, images, every
        self._file, self._loggers = None, dict(loggers or {})
        self._losses, self._fresh = list(pending), 0  # of the next line; steps among them that this process did
        self._last, self._began, self._done = time.perf_counter(), time.perf_counter(), 0
        self._idle = 0.0
        if out is None:
            return
        path = out / "metrics.jsonl"
        try:
            lines = path.read_text(encoding="utf-8").splitlines() if start and path.exists() else []
            with replacing(path) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in lines if _step(line) <= start), encoding="utf-8")
            self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed in close()
        except OSError as error:
            raise FaceshardsError(f"{path}: {why(error)}") from None

    def step(self, step: int, loss: float, lr: float, norm: float, scaling: tuple[float, int] | None = None) -> None:
        """Counts a step that is done; `step` counts from 1.

        Args:
            step: number of the step.
            loss: mean over its images.
            lr: learning rate.
            norm: L2 norm of the backbone's gradient before clipping; of a skipped step it is not finite, and not told.
            scaling: of mixed precision: the loss scale, and the run's steps that were skipped for it so far.
        """
        self._losses.append(loss)
        self._done, self._fresh = self._done + 1, self._fresh + 1
        if step % self._every and step != self._total:
            return
        now = time.perf_counter()
        rate = self._fresh * self._images / max(now - self._last - self._idle, 1e-9)  # images/s
        left = (self._total - step) * (now - self._began) / self._done  # s
        mean = sum(self._losses) / len(self._losses)
        peak = peak_memory()  # bytes
        self._losses, self._fresh, self._last, self._idle = [], 0, now, 0.0
        norms = {"gradient_norm": norm} if math.isfinite(norm) else {}  # JSON has no infinity
        scales = dict(zip(("loss_scale", "skipped_steps"), scaling, strict=True)) if scaling else {}
        self.write(step, {"loss": mean, "lr": lr, **norms, "images_per_second": rate, "peak_memory": peak, **scales})
        if self._file:
            log.info(
                "step %d/%d  epoch %.2f  loss %.4f  lr %.5f  %.0f images/s  ETA %s  peak %.2f GiB%s",
                *(step, self._total, step / self._epoch, mean, lr, rate),
                *(str(datetime.timedelta(seconds=round(left))), peak / 2**30),
                "  loss scale {:,.0f}, {:,} steps skipped".format(*scaling) if scaling else "",
            )

    @property
    def pending(self) -> tuple[float, ...]:
        """Losses of the steps since the last line."""
        return tuple(self._losses)

    def pause(self, seconds: float) -> None:
        """Takes time that is not training (verification, a checkpoint) out of images/s."""
        self._idle += seconds

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Writes values of a step to metrics.jsonl, and tells the loggers."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            raise FaceshardsError(f"{self._file.name}: {why(error)}; {GO_ON}") from None
        for name, logger in [*self._loggers.items()]:
            if not _told(name, partial(logger.write, step, values)):
                del self._loggers[name]

    def close(self) -> None:
        """Closes the file and the loggers."""
        try:
            if self._file:
                self._file.close()
        except OSError as error:
            log.warning("metrics.jsonl: %s", error.strerror)
        for name, logger in self._loggers.items():
            _told(name, logger.close)


def _told(name: str, tell: Callable[[], None]) -> bool:
    """Returns whether a logger took what it was told; warns if not: no logger ends a run."""
    try:
        tell()
    except Exception as error:  # of the services' own kinds
        log.warning("%s is told no more: %s; metrics.jsonl goes on", name, first_line(error))
        return False
    return True


def _step(line: str) -> int:
    """Returns the step of a line of metrics.jsonl; a huge one for a line that was cut."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 1 << 62

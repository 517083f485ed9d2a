"""What a run needs of a place that is told its numbers, whichever it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Run:
    """A run as a logger sees it.

    Args:
        out: its folder.
        config: its settings by name.
        start: steps that are done already; what was told beyond them is told again.
    """

    out: Path
    config: Mapping[str, Any]
    start: int


class Logger(Protocol):
    """A place for numbers; a member has a file of its own, and a line in LOGGERS, which gives it of a Run.

    Whatever it raises ends it with a warning, and the run goes on.
    """

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the values of a step by their names; steps ascend."""

    def close(self) -> None:
        """Ends it: the run is over, or interrupted."""


def first_line(error: Exception) -> str:
    """Returns what an error says, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def kept_id(path: Path, start: int) -> str:
    """Returns the name under which a service knows a run, "" for a run that begins; see keep_id."""
    return path.read_text(encoding="utf-8").strip() if start and path.exists() else ""


def keep_id(path: Path, name: str) -> str:
    """Keeps the name that a service gave a run, for when it goes on; returns it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{name}\n", encoding="utf-8")
    return name

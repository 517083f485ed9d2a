"""How far a run has come, and what a checkpoint says of itself: checkpoint.json."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from faceshards.checksums import check_seal, sealed

_LARGEST = (1 << 63) - 1
FORMAT = 2
"""Format 1 is the same without a checksum of checkpoint.json itself, and is read too."""

GO_ON = "--resume goes on from the last checkpoint"


@dataclass
class RunState:
    """What the loop changes from step to step, weights apart; a checkpoint saves and restores it.

    Args:
        step: optimiser steps done.
        epoch: of the next step.
        batch: steps done in that epoch.
        loss_scale: in force, with the steps since it last changed; None in a checkpoint that has none.
        skipped: steps that moved nothing, because the loss scale proved too large for them.
        losses: of the run's first step and of the last one; NaN before them.
        pending: losses of the steps since the last line of progress, of which the next line's mean is also made.
        verification: accuracies by set, when they were measured at this step.
        thresholds: cosines by set, likewise: from there on two images count as one person.
        digests: SHA-256 (hex) of the sets' pairs, likewise: which sets these are.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    loss_scale: tuple[float, int] | None = None
    skipped: int = 0
    losses: tuple[float, float] = (math.nan, math.nan)
    pending: tuple[float, ...] = ()
    verification: dict[str, float] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    def count(self, loss: float, steps_per_epoch: int, skipped: bool = False) -> None:
        """Counts a step that is done, or was skipped; what was measured before it is no longer of this step."""
        self.step, self.batch, self.skipped = self.step + 1, self.batch + 1, self.skipped + skipped
        if self.batch >= steps_per_epoch:
            self.epoch, self.batch = self.epoch + 1, 0
        self.losses = (loss if math.isnan(self.losses[0]) else self.losses[0], loss)
        self.verification, self.thresholds, self.digests = {}, {}, {}


@dataclass(frozen=True)
class Meta:
    """What checkpoint.json says.

    Args:
        state: of the run.
        lanes: of the stream; with another number the order of images is another.
        fingerprint: of the dataset.
        classes: identities of the dataset.
        world: ranks that wrote it.
        config: every setting of the run.
        dataset: its name.
        files: bytes and SHA-256 (hex) by file name.
    """

    state: RunState
    lanes: int
    fingerprint: str
    classes: int
    world: int
    config: dict[str, Any]
    dataset: str = ""
    files: dict[str, tuple[int, str]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns the content of checkpoint.json: the fields of the state beside its own, and a checksum of all."""
        own = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self) if entry.name != "state"}
        return sealed({"format": FORMAT, **vars(self.state), **own})

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Meta:
        """Returns what to_json() was called on, from its result, of this format or of 1.

        Raises:
            TypeError, KeyError: a field lacks, is too many, or is no such thing.
            ValueError: the checksum is of other content, or a number is out of range.
        """
        if content["format"] != 1 or "sha256" in content:
            check_seal(content)
        content = {key: value for key, value in content.items() if key not in ("format", "sha256")}
        names = {entry.name for entry in dataclasses.fields(RunState)}
        state = {name: content.pop(name) for name in names & content.keys()}
        for name in ("losses", "pending"):
            state[name] = tuple(state[name])
        if state.get("loss_scale") is not None:
            state["loss_scale"] = tuple(state["loss_scale"])
        found = cls(state=RunState(**state), **content)
        found._check()
        return found

    def _check(self) -> None:
        """Raises ValueError if a number is none or out of range, TypeError if something else is none."""
        if not isinstance(self.config, dict) or not isinstance(self.fingerprint, str):
            raise TypeError("no config, or no fingerprint")
        for name, size in self.files.items():
            if len(size) != 2 or not _is_number(size[0], 0) or not isinstance(size[1], str):
                raise TypeError(f"files: {name} has no size or checksum")
        run = self.state
        for measured in (run.verification, run.thresholds):
            if not all(type(value) in (int, float) for value in measured.values()):
                raise TypeError("an accuracy or a threshold is no number")
        scale = [] if run.loss_scale is None else [run.loss_scale]
        if not all(len(pair) == 2 for pair in (run.losses, *scale)):
            raise TypeError("losses or loss_scale is no pair")
        if not all(type(value) in (int, float) for value in (*run.losses, *run.pending, *sum(scale, ()))):
            raise TypeError("a loss or the loss scale is no number")
        numbers = {name: (getattr(run, name), 0, _LARGEST) for name in ("step", "epoch", "batch", "skipped")}
        numbers |= {"classes": (self.classes, 1, _LARGEST), "lanes": (self.lanes, 1, _LARGEST)}
        numbers["world"] = (self.world, 1, len(self.files))  # each rank has written a file
        for name, (number, low, high) in numbers.items():
            if not _is_number(number, low, high):
                raise ValueError(f"{name} {str(number)[:40]} is no whole number from {low} to {high}")


def _is_number(value: Any, low: int, high: int = _LARGEST) -> bool:
    return type(value) is int and low <= value <= high

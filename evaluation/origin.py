"""What figures are of: the model, what it was trained on, which sets chose it, and what measured it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from faceshards.versions import stamp, stamp_line

MARK = " *"  # behind the name of a set that chose the model
NOTE = "* this set chose the checkpoint, so that its figure is the best of several: expect less on other faces"
_SHORT = 12  # digits of a digest that people see


@dataclass(frozen=True)
class Origin:
    """What figures are of; an empty value is one that is not known.

    Args:
        file: the model, or the embeddings.
        sha256: hex, of the file, or of the checkpoint's weights.
        backbone: its name.
        channels: the order of colours that it got, "rgb" or "bgr".
        input_range: of the pixels that it got, "0-255" or "-1-1".
        step: optimiser steps of its training.
        dataset: it was trained on, by its name.
        fingerprint: of this dataset.
        trained_on: the name of the set by which published figures are found: the user's, or the dataset's.
        chosen_on: the sets whose accuracies chose it among the checkpoints of its run: the SHA-256 of their pairs
            (VerificationSet.digest) by name; "" where only the name is known.
        stamp: versions and date; of now, if it is not given.
        kind: what the file is, "model" or "embeddings".
    """

    file: str
    sha256: str
    backbone: str = ""
    channels: str = ""
    input_range: str = ""
    step: int | None = None
    dataset: str = ""
    fingerprint: str = ""
    trained_on: str = ""
    chosen_on: Mapping[str, str] = field(default_factory=dict)
    stamp: Mapping[str, Any] = field(default_factory=stamp)
    kind: str = "model"

    def chosen_by(self, name: str, digest: str) -> bool:
        """Returns whether a set, by its name and the SHA-256 of its pairs, is one of those that chose the model."""
        return self.chosen_on.get(name) == "" or (digest != "" and digest in self.chosen_on.values())

    def facts(self) -> dict[str, Any]:
        """Returns what JSON results have beside the figures: model, versions and date."""
        names = ("file", "sha256", "backbone", "channels", "input_range", "step", "dataset", "fingerprint")
        model = {name: getattr(self, name) for name in names}
        unknown = {name: None for name, value in model.items() if value == ""}
        more = {"trained_on": self.trained_on or None, "chosen_on": list(self.chosen_on)}
        return {"model": {**model, **unknown, **more}, **self.stamp}

    def lines(self) -> list[str]:
        """Returns the same as lines of text."""
        step = "" if self.step is None else f"step {self.step:,}"
        channels = "channels bgr" if self.channels == "bgr" else ""
        pixels = "pixels 0-255" if self.input_range == "0-255" else ""
        known = ", ".join(filter(None, (self.backbone, channels, pixels, step, f"sha256 {self.sha256[:_SHORT]}")))
        return [f"{self.kind} {self.file}: {known}", self._training(), stamp_line(dict(self.stamp))]

    def _training(self) -> str:
        if not self.dataset:
            return f"trained on {self.trained_on}, as --trained-on says" if self.trained_on else "trained on: not known"
        exactly = f", fingerprint {self.fingerprint[:_SHORT]}" if self.fingerprint else ""
        other = f", compared as {self.trained_on}" if self.trained_on not in ("", self.dataset) else ""
        return f"trained on {self.dataset}{exactly}{other}"

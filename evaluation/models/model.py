"""A model to embed with, whatever it was read from; needs no MindSpore."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.embedder import SIZE, Forward
from evaluation.origin import Origin
from faceshards.errors import FaceshardsError
from faceshards.files import file_digest
from faceshards.formats.verification_bin import printable

GRAPHS = (".onnx", ".mindir")
SHAPE = (3, *SIZE)  # of an image


class ModelError(FaceshardsError):
    """A model is missing, damaged, or not of faces of 112 x 112."""


@dataclass(frozen=True)
class Model:
    """A model to embed with.

    Args:
        forward: (B, 3, 112, 112) float32, RGB, (x / 255 - 0.5) / 0.5, to (B, D) float32. Callers keep to one B: for
            another one a backbone is compiled anew.
        backbone: its name, "" if it is not known.
        path: of the file, or of the checkpoint that was chosen.
        sha256: hex, of the file, or of the checkpoint's weights.
        card: what is known of it, by the keys of a card (docs/models.md); may be empty.
    """

    forward: Forward
    backbone: str
    path: Path
    sha256: str
    card: dict[str, Any]

    def origin(self, trained_on: str = "") -> Origin:
        """Returns what figures of this model are of.

        Args:
            trained_on: the name of its dataset for published figures; "" takes what the card says.
        """
        dataset, steps = str(self.card.get("dataset") or ""), self.card.get("steps")
        # A card without an entry is of an older release, which exported the best checkpoint of a run.
        chosen_on = self.card.get("chosen_on", dict.fromkeys(self.card.get("accuracy") or {}, ""))
        return Origin(
            file=printable(str(self.path if self.path.name else self.path.resolve())),
            sha256=self.sha256,
            backbone=self.backbone,
            step=steps if isinstance(steps, int) else None,
            dataset=dataset,
            fingerprint=str(self.card.get("fingerprint") or ""),
            trained_on=trained_on or dataset,
            chosen_on={str(name): str(digest) for name, digest in dict(chosen_on).items()},
        )


def read_card(path: Path) -> tuple[str, dict[str, Any]]:
    """Returns the SHA-256 (hex) of a file, and the card beside it; empty if there is none.

    Raises:
        ModelError: no such file, or the card is damaged or of another file.
    """
    try:
        digest = file_digest(path)[1]
        card = json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))
        if card["sha256"] != digest:
            raise ModelError(f"{path}.json: the card of another file: its sha256 is {str(card['sha256'])[:12]}...")
    except FileNotFoundError:
        if not path.exists():
            raise ModelError(f"{path}: no such file") from None
        return digest, {}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path}: cannot be read, or the card {path.name}.json is damaged: {error}") from None
    return digest, card


def check_graph(path: Path, inputs: Sequence[Sequence[Any]], outputs: Sequence[Sequence[Any]]) -> None:
    """Refuses a graph that does not take images and give embeddings.

    Args:
        path: of the graph, for messages.
        inputs: the shape of each input; a side may be a number, or a name or number below 1 where it is free.
        outputs: likewise.

    Raises:
        ModelError: it does not.
    """
    fits = len(inputs) == len(outputs) == 1 and len(inputs[0]) == 4 and len(outputs[0]) == 2
    if not fits or any(isinstance(n, int) and 0 < n != want for n, want in zip(inputs[0][1:], SHAPE, strict=True)):
        raise ModelError(
            f"{path}: takes {', '.join(str(list(shape)) for shape in inputs)} and gives "
            f"{', '.join(str(list(shape)) for shape in outputs)}, not one [B, 3, 112, 112] and one [B, D]"
        )


def in_batches(path: Path, run: Callable[[np.ndarray], np.ndarray], batch: int) -> Forward:
    """Returns a graph as a function of any number of images.

    Args:
        path: of the graph, for messages.
        run: the graph, (batch, 3, 112, 112) float32 to (batch, D).
        batch: images that it takes at once, the last ones filled up with zeros; 0: any number.
    """

    def forward(images: np.ndarray) -> np.ndarray:
        images = np.ascontiguousarray(images, np.float32)
        step = batch or max(len(images), 1)
        found = []
        for start in range(0, len(images), step):
            part = np.zeros((step, *images.shape[1:]), np.float32)
            part[: len(images) - start] = images[start : start + step]
            out = run(part)
            if out.ndim != 2 or len(out) != step:
                raise ModelError(f"{path}: gives {list(out.shape)} for {step} images, not [{step}, D]")
            found.append(out[: len(images) - start])
        return np.concatenate(found)

    return forward

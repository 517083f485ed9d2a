"""A model to embed with, whatever it was read from; needs no MindSpore."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.embedder import SIZE, Forward
from evaluation.origin import Origin
from faceshards.checksums import file_digest
from faceshards.errors import FaceshardsError, as_typed, first_few
from faceshards.formats.json_files import read_json
from faceshards.formats.verification_bin import printable

log = logging.getLogger(__name__)

GRAPHS = (".onnx", ".mindir")
SHAPE = (3, *SIZE)  # of an image
CHANNELS = ("rgb", "bgr")  # the orders of colours that a model may want
RANGES = ("auto", "0-255", "-1-1")  # of its pixels
Run = Callable[[np.ndarray], list[np.ndarray]]  # (b, 3, 112, 112) float32 to all outputs of a graph


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
        channels: the order of colours that it gets, of CHANNELS; forward takes RGB whichever it is.
        input_range: of the pixels that it gets, likewise, "0-255" or "-1-1".
    """

    forward: Forward
    backbone: str
    path: Path
    sha256: str
    card: dict[str, Any]
    channels: str = "rgb"
    input_range: str = "-1-1"

    @property
    def identity(self) -> str:
        """By which embeddings that are kept are told from those of another model."""
        return " ".join((f"{self.backbone} {self.sha256}", *self.unusual()))

    def unusual(self) -> list[str]:
        """Returns order of colours and range of pixels, as far as they are not the usual ones."""
        found = [self.channels] if self.channels != "rgb" else []
        return found + ([self.input_range] if self.input_range != "-1-1" else [])

    def origin(self, trained_on: str = "") -> Origin:
        """Returns what figures of this model are of.

        Args:
            trained_on: the name of its dataset for published figures; "" takes what the card says.
        """
        dataset, steps = str(self.card.get("dataset") or ""), self.card.get("steps")
        # A card without an entry is of an older release, which exported the best checkpoint of a run.
        chosen_on = self.card.get("chosen_on", dict.fromkeys(self.card.get("accuracy") or {}, ""))
        return Origin(
            file=printable(as_typed(self.path if self.path.name else self.path.resolve())),
            sha256=self.sha256,
            backbone=self.backbone,
            channels=self.channels,
            input_range=self.input_range,
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
        card = read_json(path.with_name(f"{path.name}.json"))
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
    """Refuses a graph that does not take images; what it gives, graph_forward tries.

    Args:
        path: of the graph, for messages.
        inputs: the shape of each input; a side may be a number, or a name or number below 1 where it is free.
        outputs: likewise, for messages.

    Raises:
        ModelError: it does not.
    """
    sides = list(inputs[0]) if len(inputs) == 1 else []
    if len(sides) == 4 and sides[3] == SHAPE[0] and sides[1] != SHAPE[0]:
        raise ModelError(f"{path}: takes {sides}, channels last; only channels first, [B, 3, 112, 112], is taken")
    fits = len(inputs) == 1 and len(sides) in (0, 4)  # 0: it does not say
    if not fits or any(isinstance(n, int) and 0 < n != want for n, want in zip(sides[1:], SHAPE, strict=False)):
        raise ModelError(
            f"{path}: takes {', '.join(str(list(shape)) for shape in inputs)} and gives "
            f"{', '.join(str(list(shape)) for shape in outputs)}, not one [B, 3, 112, 112] and one [B, D]"
        )


def to_pixels(images: np.ndarray) -> np.ndarray:
    """Returns images from -1 to 1 as pixels from 0 to 255, float32."""
    return np.asarray(images * np.float32(127.5) + np.float32(127.5), np.float32)


def graph_forward(path: Path, run: Run, names: Sequence[str], batch: int) -> Forward:
    """Returns a graph as a function of any number of images, after it was tried.

    Args:
        path: of the graph, for messages.
        run: the graph, (b, 3, 112, 112) float32 to all its outputs; raises ModelError.
        names: of the outputs, as far as they have some.
        batch: images that it takes at once, the last ones filled up with zeros; 0: any number.

    Raises:
        ModelError: it fails, none of its outputs is [B, D], more than one is, or its embeddings are not finite.
    """
    try:
        place = _tried(path, run, names, batch or 2)
    except ModelError:
        if batch:
            raise
        place, batch = _tried(path, run, names, 1), 1
        log.warning("%s: takes one image at a time, whatever its input says", path)

    def forward(images: np.ndarray) -> np.ndarray:
        step = batch or max(len(images), 1)
        found = []
        for start in range(0, len(images), step):
            part = np.zeros((step, *images.shape[1:]), np.float32)
            part[: len(images) - start] = images[start : start + step]
            out = run(part)[place]
            if not _is_embedding(out, step):
                raise ModelError(f"{path}: gives {list(out.shape)} for {step} images, not [{step}, D]")
            found.append(out.reshape(step, -1)[: len(images) - start].astype(np.float32))
        return np.concatenate(found)

    return forward


def _tried(path: Path, run: Run, names: Sequence[str], count: int) -> int:
    """Returns the place of the embeddings among the outputs of a graph, from what it gives for random images."""
    found = run(np.random.default_rng(0).uniform(-1, 1, (count, *SHAPE)).astype(np.float32))
    known = names if len(names) == len(found) else [f"output {place}" for place in range(len(found))]
    shapes = [f"{name} {_shown_shape(out.shape, count)}" for name, out in zip(known, found, strict=True)]
    places = [place for place, out in enumerate(found) if _is_embedding(out, count)]
    if len(places) != 1:
        many = "more than one" if places else "none"
        raise ModelError(
            f"{path}: gives {', '.join(shapes)}: {many} of them [B, D], floats, D above 1"
            + ("; keep one of them (onnx.utils.extract_model)" if places else "")
        )
    if not np.isfinite(found[places[0]]).all():
        raise ModelError(f"{path}: its embeddings of random images are not finite")
    if others := [shape for place, shape in enumerate(shapes) if place not in places]:
        log.warning("%s: of its outputs takes %s, not %s", path, shapes[places[0]], first_few(others))
    return places[0]


def _shown_shape(shape: tuple[int, ...], count: int) -> str:
    """Returns a shape for a message, "B" for its first side where that is the number of images."""
    return f"[{', '.join('B' if axis == 0 and side == count else str(side) for axis, side in enumerate(shape))}]"


def _is_embedding(out: np.ndarray, count: int) -> bool:
    """Returns whether an output is (count, D) float, D above 1; axes of length 1 may follow."""
    return out.dtype.kind == "f" and out.ndim >= 2 and len(out) == count and 1 < out.shape[1] == out[0].size

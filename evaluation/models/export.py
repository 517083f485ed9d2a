"""A backbone as a file for other programs: ONNX, MindIR or safetensors, each with a card. docs/models.md lists both."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np

from evaluation.models.backbone_model import Backbone, load_backbone
from evaluation.models.load import load_model
from evaluation.models.model import SHAPE
from faceshards import __version__
from faceshards.checksums import file_digest
from faceshards.errors import FaceshardsError, stands_for
from faceshards.files import deliver
from faceshards.formats.safetensors import write_arrays
from faceshards.formats.verification_bin import printable
from faceshards.locks import own_folder
from faceshards.storage.location import Location, StoredPath
from pipelines.sources.catalog import terms_of
from training.backbones.counts import count_parameters
from training.device.prepare import prepare_to_embed
from training.weights.assign import to_torch

SUFFIXES = (".onnx", ".mindir", ".safetensors")
LARGEST = 1e-4  # difference of a component, of the largest component: float32 sums in another order give 1e-6
BATCHES = {".onnx": (1, 3), ".mindir": (2,)}  # images in the comparisons; MindSpore's convolutions are slow on a CPU
PREPROCESSING = (
    "112 x 112, RGB, aligned to the ArcFace reference points; (x / 255 - 0.5) / 0.5; float32, channels first. In "
    "evaluation the embeddings of image and mirror image are added, then normalised."
)


class ExportError(FaceshardsError):
    """A model cannot be written in the format wanted."""


def export(path: Path, out: Location, backbone: str = "", licence: str = "") -> dict[str, Any]:
    """Returns the card of a model after writing it to `out`, with the card beside it as OUT.json and OUT.md.

    The written file is loaded again and compared with the model before it takes its name; on any failure, or when
    interrupted, what was at `out` before is as it was. Killed between the renames of the three files, a new card may
    lie beside the model before, which load_model refuses by its checksum: the same call puts it right.

    Args:
        path: a checkpoint, run or file of weights.
        out: .onnx, .mindir or .safetensors, which says the format; or an object of such a name.
        backbone: name for a file of weights.
        licence: of the model; without it the card gives the terms of its data.

    Raises:
        ExportError: another format, onnx is not installed, the disk refuses, or the embeddings differ.
        ModelError, ConfigError, WeightsError, CheckpointError: see load_backbone.
    """
    if out.suffix not in SUFFIXES:
        raise ExportError(f"{out}: writes {', '.join(SUFFIXES)}, by the file's suffix")
    model = load_backbone(path, backbone)
    card = _card(model, licence)
    with _beside(out) as folder:
        made = folder / out.name
        _write(model, made)
        card["bytes"], card["sha256"] = file_digest(made)
        card["largest_difference"] = _difference(model, made, out)
        made.with_name(f"{out.name}.json").write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", "utf-8")
        made.with_name(f"{out.name}.md").write_text(_page(out, card), "utf-8")
        # The model last: it is there with its card.
        deliver(folder, (f"{out.name}.md", f"{out.name}.json", out.name), out.parent)
    return card


def _card(model: Backbone, licence: str) -> dict[str, Any]:
    """Returns what is known of a model, without what the written file adds."""
    card: dict[str, Any] = {
        "format": 1,
        "backbone": model.name,
        "embedding_size": model.embedding_size,
        "parameters": count_parameters(model.cell),
        "dataset": "",
        "fingerprint": "",
        "terms": "",
        "accuracy": {},
        "thresholds": {},
        "chosen_on": {},
        **model.card,
        "licence": licence or str(model.card.get("licence", "")),
        "preprocessing": PREPROCESSING,
        "source": printable(model.path.name),
        "source_sha256": model.sha256,
        "faceshards": __version__,
    }
    card["terms"] = card["terms"] or terms_of(card["dataset"])
    return card


@contextlib.contextmanager
def _beside(out: Location) -> Iterator[Path]:
    """Yields a folder beside `out` that is gone afterwards, and says in a line what the disk refuses."""
    if isinstance(out, StoredPath):
        with own_folder() as folder:
            stands_for(folder, out.parent)
            yield folder
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            yield Path(folder)
    except OSError as error:
        raise ExportError(f"{error.filename or out}: cannot be written: {error.strerror or error}") from None


def _write(model: Backbone, made: Path) -> None:
    """Writes a model in the format of the suffix, and has it on disk."""
    if made.suffix == ".safetensors":
        write_arrays(made, to_torch(model.cell))
    elif made.suffix == ".onnx":
        _write_onnx(model, made)
    else:
        _write_mindir(model, made)
    with open(made, "rb") as file:
        os.fsync(file.fileno())


def _write_onnx(model: Backbone, made: Path) -> None:
    try:
        import onnx

        from evaluation.models.onnx_graph import convert
    except ImportError:
        raise ExportError(f"{made.name}: needs onnx: pip install 'faceshards[eval]'") from None
    facts = {"backbone": model.name, "preprocessing": PREPROCESSING}
    onnx.save(convert(model.cell, model.embedding_size, facts), str(made))


def _write_mindir(model: Backbone, made: Path) -> None:
    images = ms.Tensor(shape=[None, *SHAPE], dtype=ms.float32)
    try:
        ms.export(model.cell, images, file_name=str(made), file_format="MINDIR")
    except (RuntimeError, ValueError, TypeError) as error:
        raise ExportError(f"{made.name}: MindSpore gives no MindIR: {' '.join(str(error).split())[:200]}") from None
    if not made.is_file():  # from 1 GiB on MindSpore writes a folder of parameters
        raise ExportError(f"{made.name}: too large for one MindIR file")
    os.chmod(made, 0o644)


def _difference(model: Backbone, made: Path, out: Location) -> float:
    """Returns the largest difference between the embeddings of the file and of the model, of the largest component.

    Raises:
        ExportError: it is above LARGEST.
    """
    if made.suffix == ".safetensors":
        pairs = zip(load_backbone(made, model.name).cell.get_parameters(), model.cell.get_parameters(), strict=True)
        if not all(np.array_equal(got.asnumpy(), want.asnumpy()) for got, want in pairs):
            raise ExportError(f"{out}: its weights are not those of the model, or not finite")
        return 0.0
    again = load_model(made)
    prepare_to_embed(model.cell)  # the same but for rounding, and seconds instead of minutes
    worst = 0.0
    for count in BATCHES[made.suffix]:
        images = np.random.default_rng(count).uniform(-1, 1, (count, *SHAPE)).astype(np.float32)
        want, got = model.cell(ms.Tensor(images)).asnumpy(), again.forward(images)
        if got.shape != want.shape:
            raise ExportError(f"{out}: gives {list(got.shape)}, the model {list(want.shape)}")
        found = float(np.abs(got - want).max() / np.abs(want).max())
        if not found <= LARGEST:  # or not a number
            raise ExportError(f"{out}: its embeddings of {count} images differ by {found:.1e} of the largest component")
        worst = max(worst, found)
    return worst


def _page(out: Location, card: dict[str, Any]) -> str:
    """Returns the card for people."""
    data = card["dataset"] or "unknown"
    rows = {
        "backbone": f"{card['backbone']}, {card['parameters']:,} parameters",
        "embedding": f"{card['embedding_size']} components, float32",
        "input": card["preprocessing"],
        "trained on": f"{data}, fingerprint {card['fingerprint'][:12]}" if card["fingerprint"] else data,
        "terms of the data": card["terms"] or "unknown",
        "licence": card["licence"] or "not stated; the terms of the data hold",
        "accuracy": _by_set(card["accuracy"]) or "not measured",
        "chosen among its run's checkpoints by": ", ".join(card["chosen_on"]) or "no set that is known",
        "threshold (cosine)": _by_set(card["thresholds"]) or "unknown",
        "made from": f"{card['source']}, sha256 {card['source_sha256'][:12]}, with faceshards {card['faceshards']}",
        "largest difference to it": f"{card['largest_difference']:.1e} of the largest component",
        "sha256": card["sha256"],
    }
    return f"# {printable(out.name)}\n\n| | |\n|---|---|\n" + "".join(
        f"| {name} | {str(value).replace('|', '/')} |\n" for name, value in rows.items()
    )


def _by_set(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in figures.items())

"""The files of IJB-B and IJB-C."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv

from faceshards.errors import FaceshardsError


class IjbError(FaceshardsError):
    """Files that are not the benchmark's, or embeddings from which nothing follows."""


@dataclass(frozen=True)
class Protocol:
    """The benchmark's files; N images, P pairs of templates.

    Args:
        name: ``ijbb`` or ``ijbc``.
        images: folder of the loose crops.
        names: N file names.
        template: (N,) int64.
        media: (N,) int64.
        points: (N, 5, 2) float32, landmarks in pixels of the loose crop.
        score: (N,) float32, of the face's detection.
        pairs: (P, 2) int64, templates.
        same: (P,) bool.
    """

    name: str
    images: Path
    names: list[str]
    template: np.ndarray
    media: np.ndarray
    points: np.ndarray
    score: np.ndarray
    pairs: np.ndarray
    same: np.ndarray


def read_protocol(root: Path) -> Protocol:
    """Returns the benchmark in a folder: meta/ijbX_face_tid_mid.txt, ijbX_template_pair_label.txt,
    ijbX_name_5pts_score.txt, and loose_crop.

    Raises:
        IjbError: a file is missing or has a line that does not belong there, or the files disagree.
    """
    found = sorted((root / "meta").glob("ijb?_face_tid_mid.txt"))
    if len(found) != 1:
        raise IjbError(f"{root / 'meta'}: {len(found)} files ijbb_ or ijbc_face_tid_mid.txt, not one")
    name = found[0].name[:4]
    faces = _columns(found[0], {"name": pa.string(), "template": pa.int64(), "media": pa.int64()})
    points, score = _marks(found[0].with_name(f"{name}_name_5pts_score.txt"), faces["name"].to_pylist(), found[0].name)
    template = faces["template"].to_numpy()
    pairs, same = _pairs(found[0].with_name(f"{name}_template_pair_label.txt"), template)
    return Protocol(
        name=name,
        images=root / "loose_crop",
        names=faces["name"].to_pylist(),
        template=template,
        media=faces["media"].to_numpy(),
        points=points,
        score=score,
        pairs=pairs,
        same=same,
    )


def _marks(path: Path, names: list[str], listed: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns (N, 5, 2) landmarks and (N,) scores, float32 both, of the images `names` that the file `listed` has."""
    points = [f"{axis}{i}" for i in range(5) for axis in "xy"]
    marks = _columns(path, {"name": pa.string(), **dict.fromkeys(points, pa.float32()), "score": pa.float32()})
    if names != (others := marks["name"].to_pylist()):
        lines = enumerate(zip(names, others, strict=False), 1)
        line = next((i for i, (a, b) in lines if a != b), min(len(names), len(others)) + 1)
        raise IjbError(f"{path}:{line}: not the image of the same line of {listed}")
    score = marks["score"].to_numpy()
    _refuse(path, ~np.isfinite(score), "a score that is not finite")
    return np.stack([marks[column].to_numpy() for column in points], axis=1).reshape(-1, 5, 2), score


def _pairs(path: Path, template: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (P, 2) int64, the pairs of templates, and (P,) bool, whether a pair is one person."""
    lines = _columns(path, {"a": pa.int64(), "b": pa.int64(), "same": pa.int64()})
    pairs, same = np.stack([lines["a"].to_numpy(), lines["b"].to_numpy()], axis=1), lines["same"].to_numpy()
    _refuse(path, ~np.isin(pairs, np.unique(template)).all(axis=1), "a template without images")
    _refuse(path, (same != 0) & (same != 1), "a label that is neither 0 nor 1")
    return pairs, same == 1


def _refuse(path: Path, wrong: np.ndarray, what: str) -> None:
    """Names the first line that is wrong, if one is; `wrong` has a bool a line."""
    if wrong.any():
        raise IjbError(f"{path}:{int(wrong.argmax()) + 1}: {what}")


def _columns(path: Path, types: dict[str, pa.DataType]) -> pa.Table:
    """Returns the columns of a file of words between blanks."""
    try:
        return csv.read_csv(
            path,
            read_options=csv.ReadOptions(column_names=list(types), use_threads=False),
            parse_options=csv.ParseOptions(delimiter=" ", quote_char=False),
            convert_options=csv.ConvertOptions(column_types=types, null_values=[], strings_can_be_null=False),
        )
    except (OSError, pa.ArrowException) as error:
        raise IjbError(f"{path}: {' '.join(str(error).split())}") from None

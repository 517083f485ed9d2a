"""The files of IJB-B and IJB-C."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from evaluation.ijb.lines import IjbError, Lines, read_lines


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
        IjbError: a file is missing or has a line that does not belong there, the files disagree, or nothing can be
            measured, whatever the model.
    """
    if not root.is_dir():
        raise IjbError(f"{root}: {'no folder' if root.exists() else 'no such folder'}")
    found = sorted((root / "meta").glob("ijb?_face_tid_mid.txt"))
    if len(found) != 1:
        raise IjbError(f"{root / 'meta'}: {len(found)} files ijbb_ or ijbc_face_tid_mid.txt, not one")
    name = found[0].name[:4]
    faces = read_lines(found[0], {"image": pa.string(), "template": pa.float64(), "medium": pa.float64()})
    template, names = faces.integers("template"), faces.column("image").tolist()
    points, score = _marks(found[0].with_name(f"{name}_name_5pts_score.txt"), names, faces)
    pairs, same = _pairs(found[0].with_name(f"{name}_template_pair_label.txt"))
    there = np.isin(pairs, np.unique(template[score != 0])).all(axis=1)
    if len(np.unique(same[there])) < 2:
        raise IjbError(
            f"{root}: of {len(pairs):,} pairs {np.count_nonzero(there):,} have two templates with an image of a score "
            f"other than 0, all of one kind: nothing can be measured"
        )
    return Protocol(
        name=name,
        images=root / "loose_crop",
        names=names,
        template=template,
        media=faces.integers("medium"),
        points=points,
        score=score,
        pairs=pairs,
        same=same,
    )


def _marks(path: Path, names: list[str], faces: Lines) -> tuple[np.ndarray, np.ndarray]:
    """Returns (N, 5, 2) landmarks and (N,) scores, float32 both, of the images `names`, which `faces` lists."""
    points = [f"{axis}{i}" for i in range(1, 6) for axis in "xy"]
    marks = read_lines(path, {"image": pa.string(), **dict.fromkeys((*points, "score"), pa.float32())})
    others = marks.column("image").tolist()
    if names != others:
        rows = enumerate(zip(names, others, strict=False))
        row = next((i for i, (a, b) in rows if a != b), min(len(names), len(others)))
        raise IjbError(f"{path}:{marks.number(row)}: not the image of {faces.path.name}:{faces.number(row)}")
    score = marks.column("score")
    marks.refuse(~np.isfinite(score), "a score that is not finite")
    return np.stack([marks.column(name) for name in points], axis=1).reshape(-1, 5, 2), score


def _pairs(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns (P, 2) int64, the pairs of templates, and (P,) bool, whether a pair is one person."""
    lines = read_lines(path, {"first": pa.float64(), "second": pa.float64(), "label": pa.float64()})
    same = lines.column("label")
    lines.refuse((same != 0) & (same != 1), "a label that is neither 0 nor 1")
    return np.stack([lines.integers("first"), lines.integers("second")], axis=1), same == 1

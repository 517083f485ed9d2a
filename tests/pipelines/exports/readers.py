"""Exports as other people's readers see them: MXNet, the webdataset package, and a walk through folders."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.models import mxnet_import
from faceshards.dataset.manifest import Manifest
from pipelines.exports.base import Request
from pipelines.exports.export import export
from tests.pipelines.build_fixtures import by_shared_worker


class Found(NamedTuple):
    """An image, told by its bytes."""

    label: float | str
    sha256: str


def exported(dataset: Manifest, out: Path, to: str, *, partition_bytes: int = 100_000, **request: Any) -> Path:
    """Returns the folder of an export, in several pieces."""
    export(dataset.path, out, Request(to, **request), by_shared_worker(partition_bytes))
    return out


def expected(dataset: Manifest, label: str = "label") -> set[Found]:
    """Returns what a dataset holds."""
    rows = dataset.table("images", [label, "sha256"]).to_pylist()
    return {Found(row[label], row["sha256"].hex()) for row in rows}


def by_mxnet(rec: Path) -> tuple[dict[int, Found], dict[int, list[float]]]:
    """Returns the images of an indexed .rec by key, and the labels of the records without image."""
    recordio = mxnet_import.load().recordio
    reader = recordio.MXIndexedRecordIO(str(rec.with_suffix(".idx")), str(rec), "r")
    images, structural = {}, {}
    for key in reader.keys:
        header, image = recordio.unpack(reader.read_idx(key))
        assert header.id == key
        if header.flag:
            assert (header.flag, image) == (2, b"")
            structural[key] = header.label.tolist()
        else:
            images[key] = Found(header.label, hashlib.sha256(image).hexdigest())
    reader.close()
    return images, structural


def by_insightface(rec: Path) -> tuple[list[Found], dict[int, tuple[int, int]]]:
    """Returns the images in the order of arcface_torch's MXFaceDataset, and the keys of each identity's images as
    InsightFace's FaceImageIter takes them: both trust the header record."""
    images, structural = by_mxnet(rec)
    behind_images, behind_all = map(int, structural[0])
    chosen = [images[key] for key in range(1, behind_images)]
    ranges = {key: tuple(map(int, structural[key])) for key in range(behind_images, behind_all)}
    return chosen, ranges  # type: ignore[return-value]


def by_folders(root: Path) -> set[Found]:
    """Returns what lies in the sub-folders of a folder."""
    return {
        Found(path.parent.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in root.glob("*/*.[jp][pn]g")
    }

"""WebDataset: .tar files in the shuffled order of the shards; of each image SID.jpg, SID.cls and SID.json.

Source: https://github.com/webdataset/webdataset, its naming of samples: the name up to the first dot is the sample's.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from faceshards.checksums import file_digest
from faceshards.dataset.manifest import Manifest
from pipelines.exports.base import Piece, Request, Sample, Written
from pipelines.exports.cuts import by_size, shard_starts
from pipelines.exports.images import suffix

__all__ = ["BESIDE", "BY_IDENTITY", "FILE_EACH", "IN_PLACE", "NUMBERS", "bounds", "finish", "refuse", "write"]

BY_IDENTITY, NUMBERS, IN_PLACE = False, True, True
FILE_EACH = False
BESIDE = 6 * tarfile.BLOCKSIZE  # three headers, a block of .cls, one of .json, and what fills up the image's last


def refuse(_images: int, _labels: Any) -> None:
    """Refuses nothing: a label is text; see Format."""


def bounds(manifest: Manifest, request: Request, _: int) -> np.ndarray:
    """Returns where each .tar begins, and the end; see Format."""
    if not request.shard_bytes:
        return shard_starts(manifest)
    return by_size(manifest, request.shard_bytes - tarfile.RECORDSIZE, BESIDE - tarfile.BLOCKSIZE)


def write(piece: Piece, samples: Iterator[Sample], room: Path, _out: Path) -> dict[str, Any]:
    """Returns name, bytes and SHA-256 of a .tar; see Format."""
    path = room / f"shard-{piece.number:0{max(6, len(str(piece.of - 1)))}d}.tar"
    with open(path, "wb") as tar:
        for sample in samples:
            about = {
                "label": sample.label,
                "label_original": sample.label_original,
                "sha256": sample.sha256.hex(),
                "sid": sample.sid,
                "source": sample.source,
                "key": sample.key,
            }
            stem = piece.stem(sample.sid)
            _add(tar, f"{stem}{suffix(sample)}", sample.image)
            _add(tar, f"{stem}.cls", str(sample.label).encode())
            _add(tar, f"{stem}.json", json.dumps(about, ensure_ascii=False).encode())
        # Two empty blocks are the end; writers fill up to records (POSIX ustar).
        tar.write(bytes(2 * tarfile.BLOCKSIZE))
        tar.write(bytes(-tar.tell() % tarfile.RECORDSIZE))
    size, sha256 = file_digest(path)
    return {"name": path.name, "bytes": size, "sha256": sha256}


def _add(tar: BinaryIO, name: str, data: bytes) -> None:
    """Adds a file that says nothing of who wrote it, nor when: the same images make the same .tar.

    Not by TarFile.add, which keeps a list of all that it added.
    """
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.write(entry.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % tarfile.BLOCKSIZE))


def finish(_: Written) -> list[str]:
    """Has nothing to do: the files are whole; see Format."""
    return []

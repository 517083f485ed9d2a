"""Image folders in a bucket: names, order, warnings, rows and datasets are those of the same folder on a disk."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from faceshards.errors import SourceError
from faceshards.storage import requests
from faceshards.storage.location import Location, StoredPath
from pipelines.sources.find import cut, find_files
from pipelines.sources.folder_listing import LISTINGS, with_records
from pipelines.sources.registry import doubt_of, identity_names, labels, scan
from tests.faceshards.test_stored_dataset import upload
from tests.recs import jpeg, write_im2rec

IMAGE = jpeg(1, 8, 8)

TREES: dict[str, list[str]] = {
    # Whole keys sort as a!, a-b, a, a.c; folders as a, a!, a-b, a.c; a0 comes last of either.
    "order": [
        *("a/1.jpg", "a-b/1.jpg", "a!/1.jpg", "a.c/1.jpg", "a0/1.jpg", "a/b/1.jpg", "a/b-c.jpg", "a/b.jpg", "a/B.PNG"),
        *("é/日本 語%41.jpeg", "Z/1.jpg", "#1/+ &?.jpg", "😀/1.jpg", "\uffee/1.jpg"),
    ],
    "aside": [
        *("alice/0.jpg", "alice/._0.jpg", "alice/@eaDir/0.jpg/x.jpg", "alice/@eaDir/0.jpg/y.txt", "alice/notes.TXT"),
        *(".git/a/b.jpg", ".git/c.jpg", ".DS_Store", ".hidden.jpg", "bob/.thumbs/deep/.x/1.png", "bob/Thumbs.db"),
        *("bob/1.png", "readme", "face.jpg", "face.txt", "zoe/x.webp", "yan/.DS_Store", "xi/deep/er/.keep"),
        *("carl/a/b/c/1.jpg", "__MACOSX/alice/._0.jpg", "alice.txt/1.jpg"),
    ],
    "too high": ["train/a/0.jpg", "train/b/0.jpg", "val/a/0.jpg", "val/sheet.jpg"],
    "deep": ["ann/0.jpg", "ann/old/1.jpg", "bob/0.jpg"],
    "nobody": [".alice/0.jpg", "@eaDir/1.jpg", "a.jpg", "b.txt", "sub/deep/x.rec"],
    "beside tars": ["0.tar", "x/1.jpg"],
    "beside compressed": ["0.tar.gz", "x/a/1.jpg"],
}
"""Paths of files with a picture in each."""


def tree(root: Path, paths: list[str]) -> Path:
    """Writes files, each with a picture of its own size, and returns the root."""
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(IMAGE + bytes(number))
    return root


def found(root: Location, work: Path, step: int = 0) -> object:
    """Returns all that is found in a folder, but for where it lies."""

    def plain(line: str) -> str:
        return line.replace(str(root), "")

    try:
        files, warnings = find_files(root)
    except SourceError as error:
        return plain(str(error))
    work.mkdir()
    parts, told = cut(files, work, step)
    rows = [scan(part) for part in parts]
    return (
        [(file.name, file.kind, file.bytes) for file in files],
        list(map(plain, (*warnings, *told))),
        [(part.start, part.stop, part.last) for part in parts],
        [(identity_names(part), labels(part).tolist(), plain(doubt_of(part))) for part in parts],
        [[np.asarray(value).tolist() for name, value in vars(row).items() if name != "images"] for row in rows],
        [image if image is None else bytes(image) for row in rows for image in row.images],
    )


@pytest.mark.parametrize(("name", "step"), [*((name, 0) for name in TREES), ("order", 1500)])
def test_a_prefix_is_read_as_the_folder(name: str, step: int, bucket: StoredPath, tmp_path: Path) -> None:
    local = tree(tmp_path / "set", TREES[name])
    stored = upload(local, bucket / "set")
    assert found(stored, tmp_path / "stored", step) == found(local, tmp_path / "local", step)

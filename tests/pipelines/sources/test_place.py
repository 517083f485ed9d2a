"""A record's image is found again by the key that the manifest has."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from faceshards.errors import SourceError
from pipelines.sources import rec_places
from pipelines.sources.find import find_files
from pipelines.sources.registry import read_record
from tests.recs import MAGIC, jpeg, pack, pack_flag, write_rec

IMAGES = [jpeg(seed)[:-2] + MAGIC * (seed % 3) + b"\xff\xd9" for seed in range(7)]  # some records are of several parts
PAYLOADS = [pack(image, [1.0, 2.0] if i % 2 else 1.0) for i, image in enumerate(IMAGES)]


def entry(path: Path) -> dict:
    (file,), _ = find_files(path)
    return dataclasses.asdict(file)


def test_by_the_index_by_offset_and_by_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [5, 3, 9, 1, 70, 2, 4]
    offsets = write_rec(tmp_path / "a.rec", PAYLOADS, keys)
    indexed = entry(tmp_path / "a.rec")
    for key, offset, image in zip(keys, offsets, IMAGES, strict=False):
        assert read_record(indexed, str(key)) == image
        assert read_record(indexed, f"@{offset}") == image
    (tmp_path / "a.idx").unlink()
    plain = entry(tmp_path / "a.rec")
    for step in (1 << 26, 4096, 4):  # records are counted over many stretches of the file
        monkeypatch.setattr(rec_places, "_STEP", step)
        assert [read_record(plain, str(i)) for i in range(7)] == IMAGES
    with pytest.raises(SourceError, match=r"a.rec: has 7 records, none of the place 7"):
        read_record(plain, "7")
    with pytest.raises(SourceError, match=r"a.idx: No such file"):
        read_record(indexed, "5")


def test_where_there_is_no_image(tmp_path: Path) -> None:
    payloads = [PAYLOADS[0], pack(b"", 1.0), pack_flag(9, 1.0, b"abc"), PAYLOADS[1]]
    offsets = write_rec(tmp_path / "a.rec", payloads, range(4))
    with open(tmp_path / "a.idx", "a") as file:
        file.write(f"50\t{offsets[1] + 4}\n51\t{offsets[-1]}\n52\t-4\n53\t{offsets[1] + 1}\n")
    found = entry(tmp_path / "a.rec")
    for key in ("1", "2"):
        with pytest.raises(SourceError, match=rf"a.rec: record {key} at byte {offsets[int(key)]} has no image: "):
            read_record(found, key)
    for key, byte in {"50": offsets[1] + 4, "51": offsets[-1], "52": -4, "53": offsets[1] + 1}.items():
        with pytest.raises(SourceError, match=rf"a.rec: record {key}: none begins at byte {byte}$"):
            read_record(found, key)
    with pytest.raises(SourceError, match=r"a.idx: has the key 99 0 times"):
        read_record(found, "99")


def test_of_a_folder(tmp_path: Path) -> None:
    for name in ("ann/1.jpg", "bob/deep/2.jpg"):
        (tmp_path / "faces" / name).parent.mkdir(parents=True)
        (tmp_path / "faces" / name).write_bytes(name.encode())
    found = entry(tmp_path / "faces")
    assert read_record(found, "bob/deep/2.jpg") == b"bob/deep/2.jpg"
    changed = tmp_path / "faces" / "ann" / "1.jpg"
    os.utime(changed, ns=(0, found["mtime_ns"] + 1))
    with pytest.raises(SourceError, match=rf"{changed}: changed since it was scanned"):
        read_record(found, "ann/1.jpg")
    changed.unlink()
    with pytest.raises(SourceError, match=rf"{changed}: No such file"):
        read_record(found, "ann/1.jpg")


def test_of_a_kind_that_is_not_known(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"/x: of a kind that this release does not read"):
        read_record({"path": "/x", "kind": "lmdb"}, "1")

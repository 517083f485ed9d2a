"""Sources in a bucket: the same files, warnings and rows as on a disk, and the same dataset."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from faceshards.dataset.manifest import Manifest
from faceshards.errors import SourceError
from faceshards.storage.location import StoredPath
from pipelines.exports.base import Request
from pipelines.exports.export import export
from pipelines.sources.base import OpenFiles, Place
from pipelines.sources.find import cut, find_files
from pipelines.sources.registry import claims, labels, read_images, read_record, read_records, scan
from tests.faceshards.test_stored_dataset import upload
from tests.fault_proxy import FaultProxy
from tests.pipelines.build_fixtures import by_shared_worker


@pytest.fixture
def stored(tiny_source: Path, bucket: StoredPath) -> StoredPath:
    """The tiny set in a bucket."""
    return upload(tiny_source, bucket / "raw set")


@pytest.mark.parametrize("partition_bytes", [0, 70_000])
def test_a_rec_is_read_as_on_a_disk(
    tiny_source: Path, stored: StoredPath, tmp_path: Path, partition_bytes: int
) -> None:
    found = {}
    for name, path in (("local", tiny_source), ("stored", stored)):
        files, warnings = find_files(path)
        (tmp_path / name).mkdir()
        parts, told = cut(files, tmp_path / name, partition_bytes)
        rows = [scan(part) for part in parts]
        with OpenFiles() as opened:
            some = [
                (
                    files[0],
                    Place("", *(int(getattr(found, column)[i]) for column in ("offset", "header", "size", "parts"))),
                )
                for found in rows
                for i in np.flatnonzero(found.reason == 0)
            ]
            images = read_images(files[0], [place for _, place in some], opened)
        key = next(key for key in rows[0].key if key)
        found[name] = (
            [line.replace(str(path), "") for line in (*warnings, *told)],
            [(part.start, part.stop, part.last) for part in parts],
            [np.asarray(labels(part)).tolist() for part in parts],
            claims(files[0]),
            [[np.asarray(value).tolist() for name, value in vars(row).items() if name != "images"] for row in rows],
            [bytes(image) for row in rows for image in row.images if image is not None],
            images,
            read_record(dataclasses.asdict(files[0]), key),
        )
    for local, other in zip(*found.values(), strict=True):
        assert local == other
    assert len(found["stored"][6]) > 200


def test_names_of_objects_are_named_as_files_are(tiny_source: Path, stored: StoredPath, bucket: StoredPath) -> None:
    (by_name,), _ = find_files(stored / "train.rec")
    (by_prefix,), _ = find_files(stored)
    assert by_name == by_prefix
    assert by_name.path == f"{stored}/train.rec"
    assert by_name.index == f"{stored}/train.idx"
    assert by_name.bytes == (tiny_source / "train.rec").stat().st_size


def test_a_source_that_changed_is_refused(stored: StoredPath) -> None:
    (file,), _ = find_files(stored)
    (stored / "train.rec").write_bytes(b"another")
    with OpenFiles() as opened:
        for _ in range(2):
            with pytest.raises(SourceError, match=r"train\.rec: changed since it was scanned"):
                opened.file(file)
    found = read_records(dataclasses.asdict(file), ["5", "6"])
    assert [str(error) for error in found] == [f"{stored}/train.rec: changed since it was scanned"] * 2
    (stored / "train.rec").unlink()  # an OSError would be taken for one of the disk that is written to
    with OpenFiles() as opened, pytest.raises(SourceError, match=r"train\.rec: no such object"):
        opened.read_ahead(file, [Place("1", 0, 24, 100, 1)])


def test_what_cannot_be_read_is_said(bucket: StoredPath) -> None:
    (bucket / "pictures" / "1.jpg").write_bytes(b"")
    (bucket / "empty.rec").write_bytes(b"")
    for name in ("sets/a/train.rec", "sets/b/c/x.tar", "done/dataset.json"):
        (bucket / name).write_bytes(b"1")
    (bucket / "no.rec").write_bytes(b"no records" * 100)
    (bucket / "packed.tar.gz").write_bytes(b"\x1f\x8b" + bytes(100))
    for name, cause in (
        ("none", "no such file or folder"),
        ("none.rec", "no such file or folder"),
        ("pictures", "no .rec file, and no sub-folder with .jpg or .png images; 1 pictures lie in the folder itself"),
        ("sets", f"a .rec lies deeper: --source {bucket}/sets/a"),
        ("done", "is a dataset, and no source of one"),
        ("empty.rec", "empty file"),
        ("no.rec", "not RecordIO"),
        ("packed.tar.gz", "compressed"),
    ):
        with pytest.raises(SourceError) as caught:
            find_files(bucket / name)
        assert str(caught.value).startswith(f"{bucket / name}: ")
        assert cause in str(caught.value)


def test_tars_are_read_as_on_a_disk(tiny_dataset: Manifest, bucket: StoredPath, tmp_path: Path) -> None:
    export(tiny_dataset.path, tmp_path / "tars", Request("webdataset"), by_shared_worker())
    for odd in ("export.json", "identities.parquet"):
        (tmp_path / "tars" / odd).unlink()
    stored = upload(tmp_path / "tars", bucket / "tars")
    found = {}
    for name, path in (
        ("local", tmp_path / "tars"),
        ("stored", stored),
        ("range", bucket / "tars" / "shard-{000000..000003}.tar"),
    ):
        files, warnings = find_files(path)
        (tmp_path / name).mkdir()
        parts, told = cut(files, tmp_path / name, 70_000)
        rows = [scan(part) for part in parts]
        assert (warnings, told) == ([], [])
        found[name] = (
            [(file.name, file.bytes) for file in files],
            [np.asarray(labels(part)).tolist() for part in parts],
            [row.key for row in rows],
            [bytes(image) for row in rows for image in row.images if image is not None],
            read_record(dataclasses.asdict(files[-1]), rows[-1].key[0]),
        )
    assert found["local"] == found["stored"] == found["range"]
    assert len(found["local"][3]) == tiny_dataset.totals["kept"]


@pytest.mark.parametrize("form", ["rec", "tar"])
def test_records_of_one_source_are_read_together(
    tiny_source: Path, tiny_dataset: Manifest, bucket: StoredPath, proxy: FaultProxy, tmp_path: Path, form: str
) -> None:
    """Of a .tar by one walk; and one that is not there keeps no other from being read."""
    if form == "tar":
        export(tiny_dataset.path, tmp_path / "tars", Request("webdataset"), by_shared_worker())
        path = upload(tmp_path / "tars", bucket / "tars") / "shard-000000.tar"
    else:
        path = upload(tiny_source, bucket / "raw") / "train.rec"
    (file,), _ = find_files(path)
    (part,), _ = cut([file], tmp_path, 0)
    rows = scan(part)
    here = [i for i in np.flatnonzero((rows.reason == 0) & (rows.size > 0)).tolist() if rows.key[i]][::-3]
    keys = [*(str(rows.key[i]) for i in here), "999999"]
    proxy.asked.clear()
    *images, none = read_records(dataclasses.asdict(file), keys)
    assert images == [bytes(rows.images[i]) for i in here]
    assert isinstance(none, SourceError)
    assert len(proxy.asked) < 10 < len(here)
    assert sum(asked.answered for asked in proxy.asked if asked.method == "GET") < 2.5 * file.bytes

"""Stage write: what a shard's images are compared with on their way, and what of a wrong shard is seen."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from faceshards.dataset.row_check import check_rows
from faceshards.errors import ShardError, SourceError
from faceshards.formats.mindrecord.geometry import Geometry
from faceshards.formats.mindrecord.index import verify_index
from faceshards.formats.mindrecord.layout import frames, raw_rows, read_raw_rows
from faceshards.formats.mindrecord.reader import Shard
from pipelines.build import build
from pipelines.plan import plan
from pipelines.records import ROUTED_SCHEMA
from pipelines.sources.find import find_files
from pipelines.stages import write as stage
from tests.pipelines.build_fixtures import (
    CONFIG,
    PARTITION_BYTES,
    by_shared_worker,
    read_rec,
    run_build,
    synthetic_set,
)


class Given:
    """Images that are there already, by sid.

    Args:
        images: encoded; here any bytes.
    """

    names = ("given",)

    def __init__(self, images: list[bytes]) -> None:
        self._images = images

    def images(self, table: pa.Table) -> Iterator[bytes]:
        yield from (self._images[sid] for sid in table["sid"].to_pylist())


def routed(folder: Path, images: list[bytes], pieces: int) -> list[Path]:
    """Returns the files that `route` would leave of images, (pieces,), each in order of its rows."""
    n = len(images)
    rng = np.random.default_rng(n)
    columns = {
        "shard": np.zeros(n, np.int32),
        "row": rng.permutation(n).astype(np.int32),
        "sid": np.arange(n),
        "bytes": np.array([len(image) for image in images]),
        "label": rng.integers(0, 1 << 24, n).astype(np.int32),
        "label_original": [str(i) for i in range(n)],
        "key": [str(i) for i in range(n)],
        "sha256": [hashlib.sha256(image).digest() for image in images],
        "phash": [bytes(32)] * n,
    }
    names = ROUTED_SCHEMA.names
    table = pa.table({name: columns.get(name, np.zeros(n, np.int32)) for name in names}, ROUTED_SCHEMA)
    paths = [folder / f"{piece}.arrow" for piece in range(pieces)]
    for piece, path in enumerate(paths):
        rows = table.take(np.arange(piece, n, pieces)).sort_by("row").combine_chunks()
        with pa.ipc.new_file(str(path), ROUTED_SCHEMA) as writer:
            writer.write_table(rows)
    return paths


def random_images(sizes: np.ndarray) -> list[bytes]:
    rng = np.random.default_rng(5)
    return [rng.bytes(size) for size in sizes.tolist()]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    for name in ("images", "shards"):
        (tmp_path / name).mkdir()
    return tmp_path / "images", tmp_path / "shards", tmp_path / "done.json"


@pytest.mark.parametrize(
    ("sizes", "pages"),
    [
        (np.array([1]), 1),
        (np.arange(1, 900), 1),
        (np.full(1700, 5236), 2),  # 8.9 MB
        (np.array([1 << 22, 7, (1 << 22) - 8, 1, 1 << 20]), 1),
    ],
    ids=["one", "all-sizes", "pages", "large"],
)
def test_a_shard_holds_each_row_whatever_the_sizes(tmp_path, folders, sizes, pages):
    """Every row, read independently of the writer's order: what a build proves on a sample is true of all."""
    images = random_images(sizes)
    paths = routed(tmp_path, images, min(3, len(images)))
    geometry = Geometry(4 << 20 if max(sizes) + 8 <= 4 << 20 else 8 << 20)
    assert stage.write(0, Given(images), geometry, paths, *folders) == len(images)
    path = folders[1] / "shard-00000.mindrecord"
    table = stage.gather(0, paths)
    assert table["row"].to_pylist() == list(range(len(images)))
    with Shard(path) as shard:
        assert len(shard.starts) >= pages
        assert list(check_rows(shard, table)) == []
        assert [image.tobytes() for _, _, image in shard.rows()] == [images[sid] for sid in table["sid"].to_pylist()]
    verify_index(path)


def labels_turned(labels, sids, images, edge):
    return np.roll(labels, 1), sids, images


def sids_swapped(labels, sids, images, edge):
    sids = sids.copy()
    sids[[700, 701]] = sids[[701, 700]]
    return labels, sids, images


def images_late(labels, sids, images, edge):
    return labels, sids, [images[-1], *images[:-1]]


def page_begins_wrongly(labels, sids, images, edge):
    """The last image of a page and the first of the next one change places."""
    images[edge - 1], images[edge] = images[edge], images[edge - 1]
    return labels, sids, images


@pytest.mark.parametrize("mistake", [labels_turned, sids_swapped, images_late, page_begins_wrongly])
def test_a_mistake_of_the_writer_is_seen_before_the_shard_counts(tmp_path, folders, monkeypatch, mistake):
    """All images are of one size, so that no length shows it."""
    images = random_images(np.full(1700, 5236))
    paths = routed(tmp_path, images, 2)
    right = stage.write_shard

    def wrong(path, images, sizes, labels, sids, **geometry):
        images = list(images)
        right(path, images, sizes, labels, sids, **geometry)
        with Shard(path) as shard:
            edge = shard.starts[1]
        labels, sids, images = mistake(labels, sids, images, edge)
        return right(path, images, sizes, labels, sids, **geometry)

    monkeypatch.setattr(stage, "write_shard", wrong)
    with pytest.raises(ShardError, match=r"shard-00000\.mindrecord: was not read back as it was scanned"):
        stage.write(0, Given(images), Geometry(), paths, *folders)
    assert [*folders[0].iterdir(), *folders[1].iterdir()] == []
    assert not folders[2].exists()


@pytest.mark.parametrize("form", ["direct", "spill"])
def test_a_bit_that_turns_in_the_source_after_it_was_signed_is_found(tmp_path, form):
    """A plan signs, a build goes on from it. The file's size and time stay: only the image tells."""
    source, out = synthetic_set(tmp_path), tmp_path / "out"
    files, _ = find_files(source)
    execution = dataclasses.replace(by_shared_worker(PARTITION_BYTES), shuffle=form)
    plan("tiny", files, out, CONFIG, execution)
    rec = source / "train.rec"
    key, (_, image) = sorted(read_rec(rec).items())[100]
    data, status = bytearray(rec.read_bytes()), rec.stat()
    data[data.index(image) + len(image) // 2] ^= 1
    rec.write_bytes(data)
    os.utime(rec, ns=(status.st_atime_ns, status.st_mtime_ns))
    said = rf"train\.rec: record {key} changed since it was scanned: its sha256 is another"
    with pytest.raises(SourceError, match=said):
        build("tiny", files, out, CONFIG, execution)
    assert not out.exists()
    data[data.index(image[: len(image) // 2]) + len(image) // 2] ^= 1  # mended, the build goes on
    rec.write_bytes(data)
    os.utime(rec, ns=(status.st_atime_ns, status.st_mtime_ns))
    mended = build("tiny", files, out, CONFIG, execution)
    assert mended.info["fingerprint"] == run_build(source, tmp_path / "whole").info["fingerprint"]


def test_raw_rows_are_told_apart_though_a_sid_holds_the_key():
    """A sid of 2**63 - 1 at most has room for seven bytes of its own: the key that rows are found by."""
    tricky = int.from_bytes(b"\x01\x82\xa5label"[:8], "big")
    labels, sids = np.array([5, 70_000, 3]), np.array([1, tricky, 1 << 40])
    data = raw_rows(labels, sids)
    assert data.count(b"\x82\xa5label") == 4
    found = read_raw_rows(data, 3)
    assert [column.tolist() for column in found] == [labels.tolist(), sids.tolist(), np.diff(frames(data, 3)).tolist()]
    for cut in (data[:-1], data[1:], data[:8] + data[9:], b""):
        with pytest.raises(ValueError, match=r"rows|raw"):
            read_raw_rows(cut, 3)

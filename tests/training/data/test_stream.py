"""The stream against MindSpore's own reader, for every number of ranks, and what it refuses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import cv2
import mindspore.dataset as msds
import mindspore.dataset.vision as vision
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from faceshards.dataset.manifest import Manifest, ManifestError
from faceshards.errors import ShardError
from faceshards.formats.mindrecord.writer import write_shard
from tests.open_files import opened_below
from tests.pipelines.build_fixtures import rewrite_info
from tests.recs import encode, texture, with_orientation
from training.data.layout import Layout, StreamError, lane_order
from training.data.stream import Stream
from training.data.transforms import SCALED, decode


def stream(data, world=1, rank=0, batch=16, **options):
    return Stream(data, Layout(data, world, batch), rank, threads=2, **options)


def seen(batches):
    """Returns how often each (label, pixels) came."""
    pairs = (pair for images, labels in batches for pair in zip(images, labels, strict=True))
    return Counter((int(label), image.tobytes()) for image, label in pairs)


def pixels(encoded):
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    return ((image.transpose(2, 0, 1) / 255 - 0.5) / 0.5).astype(np.float32)


@pytest.mark.parametrize("world", [1, 2, 4, 3, 12])  # 8 shards: some ranks share one
def test_every_image_once_as_mindspore_reads_it(data, world):
    files = [str(data.shard_path(name)) for name in data.table("shards", ["file"])["file"].to_pylist()]
    rows = msds.MindDataset(files, columns_list=["image", "label"], shuffle=False)
    want = Counter(
        (int(row["label"]), pixels(row["image"]).tobytes())
        for row in rows.create_dict_iterator(num_epochs=1, output_numpy=True)
    )
    batch = 4 * world
    got = Counter()
    for rank in range(world):
        part = stream(data, world, rank, batch, mirror=False)
        steps = list(part.batches(0))
        assert len(steps) == Layout(data, world, batch).steps_per_epoch
        got += seen(steps)
        part.close()
    assert not got - want
    assert got.total() == batch * Layout(data, world, batch).steps_per_epoch
    assert want.total() - got.total() <= 16 * world + 8  # what the shards' different sizes leave over


def test_mindspore_ignores_an_exif_orientation_too(tmp_path):
    plain = encode(texture(1, 40, 60))
    images, zeros = [plain, with_orientation(plain)], np.zeros(2, np.int64)
    write_shard(tmp_path / "a.mindrecord", images, np.array([len(image) for image in images]), zeros, zeros)
    rows = msds.MindDataset(str(tmp_path / "a.mindrecord"), columns_list=["image"], shuffle=False)
    rows = rows.map(vision.Decode(), ["image"]).create_tuple_iterator(num_epochs=1, output_numpy=True)
    for (decoded,) in rows:
        assert decoded.shape == (40, 60, 3)
        np.testing.assert_array_equal(decoded, decode(plain))
    np.testing.assert_array_equal(decode(with_orientation(plain)), decode(plain))


def test_global_batches_do_not_depend_on_the_ranks(data):
    def steps(world):
        parts = [list(stream(data, world, rank, 16).batches(1)) for rank in range(world)]
        return [sum((seen([step]) for step in together), Counter()) for together in zip(*parts, strict=True)]

    one = steps(1)
    for world in (2, 4, 8):
        many = steps(world)
        assert many[: len(one)] == one[: len(many)]


def test_orders_change_by_epoch_and_seed_only(data):
    first, again = list(stream(data).batches(0)), list(stream(data).batches(0))
    assert all((a[0] == b[0]).all() and (a[1] == b[1]).all() for a, b in zip(first, again, strict=True))
    for other in (list(stream(data).batches(1)), list(stream(data, seed=1).batches(0))):
        assert any((a[1] != b[1]).any() for a, b in zip(first, other, strict=True))


def test_an_epoch_goes_on_in_its_middle(data):
    part = stream(data, augment=True)
    whole, rest = list(part.batches(3)), list(part.batches(3, start=5))
    assert len(rest) == len(whole) - 5
    for a, b in zip(whole[5:], rest, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])


def test_mirroring_is_half(data):
    plain, flipped = (
        np.concatenate([images for images, _ in stream(data, mirror=mirror).batches(0)]) for mirror in (False, True)
    )
    mirrored = (plain != flipped).any(axis=(1, 2, 3))
    np.testing.assert_array_equal(flipped[mirrored], plain[mirrored][..., ::-1])
    assert 0.35 < mirrored.mean() < 0.65


def test_a_rank_opens_its_own_files_only(data):
    def shards():
        links = (os.path.join("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd"))
        names = Counter(os.path.basename(os.readlink(link)) for link in links if os.path.lexists(link))
        return Counter({name: names[name] for name in data.table("shards", ["file"])["file"].to_pylist()})

    before = shards()
    opened = []
    for rank in range(4):
        part = stream(data, 4, rank)
        opened.append(shards() - before)
        part.close()
    assert [len(names) for names in opened] == [2, 2, 2, 2]
    assert len(sum(opened, Counter())) == 8


def test_metadata_is_small(data):
    part = stream(data)
    assert part.nbytes <= 60 * len(part.labels)


def fake(rows):
    """Returns what a Layout reads of a manifest with shards of so many rows."""
    names = [f"{i}.mindrecord" for i in range(len(rows))]
    table = pa.table(
        {"shard": range(len(rows)), "file": names, "rows": rows, "bytes": rows, "sha256": [""] * len(rows)}
    )
    return SimpleNamespace(table=lambda _name, _columns: table, path="fake")


@given(st.lists(st.integers(20, 60), min_size=1, max_size=24), st.integers(1, 12), st.integers(1, 8))
def test_layouts_share_out_every_row(rows, world, each):
    try:
        layout = Layout(fake(rows), world, world * each)
    except StreamError as error:
        assert "give no batch" in str(error)  # noqa: PT017 - only some layouts raise
        return
    spans = [layout.span(rank) for rank in range(world)]
    assert spans[0][0] == 0
    assert spans[-1][1] == sum(rows)
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    for rank, (start, end) in enumerate(spans):
        files = layout.files(rank)
        assert layout.shard_bounds[files.start] <= start
        assert layout.shard_bounds[files.stop] >= end
        own = layout.own_lanes(rank)
        items = np.arange(layout.steps_per_epoch * each)  # which lane, and where in it: as the stream takes them
        for i, lane in enumerate(own):
            assert np.count_nonzero(items % len(own) == i) <= layout.bounds[lane + 1] - layout.bounds[lane]


@pytest.mark.parametrize(("sampling", "power"), [("identity", 0.0), ("sqrt", 0.5)])
def test_balanced_draws(sampling, power):
    sizes = np.array([1, 4, 16, 64, 400])
    labels = np.repeat(np.arange(5), sizes)
    drawn = np.concatenate([labels[lane_order(0, epoch, 0, labels, sampling)[0]] for epoch in range(100)])
    share = np.bincount(drawn, minlength=5) / len(drawn)
    np.testing.assert_allclose(share, sizes**power / (sizes**power).sum(), atol=0.01)


def test_a_stream_is_the_same_however_many_threads_open_it(data):
    one, many = (Stream(data, Layout(data, 1, 16), threads=threads) for threads in (1, 8))
    np.testing.assert_array_equal(one.labels, many.labels)
    for (images, labels), (others, theirs) in zip(one.batches(0), many.batches(0), strict=True):
        np.testing.assert_array_equal(images, others)
        np.testing.assert_array_equal(labels, theirs)
    one.close()
    many.close()


def test_a_stream_that_does_not_open_leaves_no_file_open(data, tmp_path):
    copy = Manifest(shutil.copytree(data.path, tmp_path / "copy"))
    names = copy.table("shards", ["file"])["file"].to_pylist()
    for name in names[5:]:
        copy.shard_path(name).unlink()
    with pytest.raises(StreamError, match=f"{names[5]}: missing"):  # the first one
        Stream(copy, Layout(copy, 1, 16), threads=8)
    assert opened_below(copy.path) == []


def test_what_is_wrong_is_named(data, tmp_path):
    shard = data.table("shards", ["file"])["file"][0].as_py()
    raw = data.shard_path(shard).read_bytes()

    def copy(name):
        folder = tmp_path / name
        folder.mkdir()
        for path in data.path.rglob("*"):
            target = folder / path.relative_to(data.path)
            target.mkdir(parents=True) if path.is_dir() else target.write_bytes(path.read_bytes())
        return Manifest(folder)

    gone = copy("gone")
    gone.shard_path(shard).unlink()
    with pytest.raises(StreamError, match=f"{shard}: missing; the manifest lists it"):
        stream(gone)
    os.mkfifo(gone.shard_path(shard))  # which nobody writes to
    with pytest.raises(StreamError, match=f"{shard}: no regular file; the manifest lists one"):
        stream(gone)
    longer = copy("longer")
    longer.shard_path(shard).write_bytes(raw + b"x")
    with pytest.raises(StreamError, match=rf"{shard}: {len(raw) + 1} bytes, the manifest says {len(raw)}"):
        stream(longer)
    # An image that is none, in a file of the right size: found when it is read.
    place = raw.index(b"\xff\xd8\xff")
    broken = copy("broken")
    broken.shard_path(shard).write_bytes(raw[:place] + bytes(64) + raw[place + 64 :])
    with pytest.raises(StreamError, match="its SHA-256 is not the manifest's"):
        stream(broken, check_shards=True)
    with pytest.raises(ShardError, match=rf"{shard}.*row \d+: \d+ bytes are no image: neither JPEG nor PNG"):
        list(stream(broken, batch=8, check_shards=False).batches(0))
    wild = copy("wild")
    for path in (wild.path / "manifest" / "images.parquet").iterdir():
        table = pq.read_table(path)
        at = table.schema.get_field_index("label")
        labels = table["label"].to_numpy().copy()
        labels[0] = 4000
        column = pa.array(labels, table.schema.field(at).type)
        pq.write_table(table.set_column(at, table.schema.field(at), column), path)
    with pytest.raises(ManifestError, match=r"part-00000.parquet: (\d+ bytes|changed since it was published)"):
        stream(wild)
    rewrite_info(wild.path)
    with pytest.raises(StreamError, match=r"row \d+ has label 4000 of 12"):
        stream(Manifest(wild.path))
    with pytest.raises(StreamError, match="sampling 'all' is not one of instance, identity, sqrt"):
        stream(data, sampling="all")
    with pytest.raises(StreamError, match="rank 2 is not one of 2"):
        stream(data, 2, 2)


@pytest.mark.parametrize("name", ["training.data.stream", "training.data.layout", "training.config"])
def test_a_stream_needs_no_mindspore(name):
    code = f"import sys, importlib, faceshards; importlib.import_module('{name}'); faceshards.Stream"
    code += "; sys.exit('mindspore' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_scaling_is_the_fields():
    np.testing.assert_array_equal(SCALED, ((np.arange(256) / 255 - 0.5) / 0.5).astype(np.float32))

"""The commands embed and compare: every source, interruptions, and what they refuse."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest

from evaluation.during import raw_pixels
from evaluation.embed_source import embed
from evaluation.embedder import Embedder, EmbeddingError, usable_pairs
from evaluation.models.model import Model
from faceshards.dataset.manifest import ManifestError
from faceshards.errors import FaceshardsError, ShardError
from faceshards.formats.mindrecord.reader import Shard
from faceshards.formats.verification_bin import write_bin
from pipelines.config import BuildConfig
from pipelines.synthetic.write import SyntheticSpec
from tests.evaluation.commands import run
from tests.pipelines.build_fixtures import flip_bit, run_build, synthetic_set
from tests.recs import jpeg
from training.data.transforms import decode

pytestmark = pytest.mark.numeric

IMAGES = [jpeg(i) for i in range(5)]


# What needs no network: the pixels, averaged over 4 x 4.
MODEL = Model(raw_pixels, "", Path("pixels"), "1" * 64, {})


def assert_embedded(found, images):
    """Compares embeddings with the sum of those of images and mirror images, one by one."""
    rows = []
    for image in images:
        pixels = (decode(image).transpose(2, 0, 1).astype(np.float32) / 255 - 0.5) / 0.5
        rows.append(sum(raw_pixels(np.ascontiguousarray(view)[None])[0] for view in (pixels, pixels[:, :, ::-1])))
    # A mean of 16 values up to 1, less a mean of 2,352 such, twice: float32's rounding of the running sums, whatever
    # their order.
    np.testing.assert_allclose(found, rows, rtol=0, atol=4 * 2352 * np.finfo(np.float32).eps / 2)


def table(out):
    return ds.dataset(out, format="parquet").to_table().to_pylist()


def vectors(rows):
    return np.array([row["embedding"] for row in rows], np.float32)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5])
def test_batches_of_every_length(count):
    views, problems = Embedder(raw_pixels, batch=2).views(IMAGES[:count])
    assert problems == {}
    assert views.shape[:2] == (2, count)
    if count:
        assert_embedded(views[0] + views[1], IMAGES[:count])


def test_no_image_is_embedded_twice():
    calls = []

    def counted(images):
        calls.append(int((images != 0).any(axis=(1, 2, 3)).sum()))
        return raw_pixels(images)

    Embedder(counted, batch=4).views(IMAGES)
    assert calls == [8, 2]  # 4 images and then 1, each with its mirror image


def test_a_model_that_gives_nan_is_named():
    def broken(images):
        return np.where(np.arange(len(images))[:, None] % 4 == 2, np.nan, raw_pixels(images))

    with pytest.raises(EmbeddingError, match="embedding of image 2 is not finite"):
        Embedder(broken, batch=4).views(IMAGES)


def test_images_that_do_not_decode_have_their_reason():
    images = [IMAGES[0], b"junk", jpeg(1, 50, 50), IMAGES[3]]
    views, problems = Embedder(raw_pixels, batch=3).views(images)
    assert np.isnan(views[:, 1:3]).all()
    assert np.isfinite(views[:, [0, 3]]).all()
    assert problems[1] == "4 bytes are no image that OpenCV decodes"
    assert problems[2].startswith("an image of 50 x 50 pixels")
    both, left, pairs, lost = usable_pairs(views, problems)
    assert (both.shape, left.shape, pairs.tolist()) == ((0, views.shape[2]), (2, 0, views.shape[2]), [])
    assert lost[1].startswith("pair 1 left out: image 2: an image of 50")


def test_views_are_added_in_the_precision_of_the_protocol():
    views = np.array([[[1, -1], [1, 1], [9, 9], [9, 9]], [[0, 0], [-(2.0**-26), 0], [0, 0], [0, 0]]], np.float32)
    both, left, pairs, _ = usable_pairs(views, {3: "lost"})
    np.testing.assert_array_equal(both, [[1, -1], [1 - 2.0**-26, 1]])  # as float32 it would be 1
    np.testing.assert_array_equal(left, views[:, :2])
    assert pairs.tolist() == [0]


def test_a_set_a_folder_and_a_dataset(tmp_path):
    path = tmp_path / "set.bin"
    write_bin(path, IMAGES[:4], [True, False])
    assert embed(path, tmp_path / "a", MODEL, quiet=True) == {"images": 4, "embedded": 4, "left_out": 0}
    rows = table(tmp_path / "a")
    assert [(row["sid"], row["key"], row["label"]) for row in rows] == [(i, str(i), None) for i in range(4)]
    assert_embedded(vectors(rows), IMAGES[:4])

    for name, image in (("ann/1.jpg", IMAGES[1]), ("ann/2.jpg", b"junk"), ("bob/1.jpg", IMAGES[2])):
        (tmp_path / "faces" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "faces" / name).write_bytes(image)
    assert embed(tmp_path / "faces", tmp_path / "b", MODEL, quiet=True)["left_out"] == 1
    rows = table(tmp_path / "b")
    assert [(row["key"], row["label"]) for row in rows] == [
        ("ann/1.jpg", "ann"),
        ("ann/2.jpg", "ann"),
        ("bob/1.jpg", "bob"),
    ]
    assert np.isnan(rows[1]["embedding"]).all()
    assert rows[1]["cause"] == "4 bytes are no image that OpenCV decodes"
    assert_embedded(vectors([rows[0], rows[2]]), IMAGES[1:3])


def test_damage_in_a_dataset_is_named(tiny_dataset, tmp_path):
    copy = shutil.copytree(tiny_dataset.path, tmp_path / "copy")
    row = tiny_dataset.table("images", shard=2).to_pylist()[5]
    shard = copy / "shards" / "shard-00002.mindrecord"
    with Shard(shard) as opened:
        image = opened.image(row["row"])
    flip_bit(shard, 8 * (shard.read_bytes().index(image) + len(image) - 3))  # an image all the same
    with pytest.raises(ShardError, match=rf"{shard}: row {row['row']}: the image's sha256 is not the manifest's"):
        embed(copy, tmp_path / "out", MODEL, quiet=True)
    part = copy / "manifest" / "images.parquet" / "part-00000.parquet"
    flip_bit(part, 999)
    with pytest.raises(ManifestError, match=rf"{part}: changed since it was published"):
        embed(copy, tmp_path / "other", MODEL, quiet=True)


def test_a_dataset_and_its_rec_agree(tmp_path):
    spec = SyntheticSpec(identities=4, images=60, defects=0, unseen=0, pairs=0, seed=3)
    source = synthetic_set(tmp_path, spec)
    data = run_build(source, tmp_path / "data", BuildConfig(shards=8))
    counts = embed(data.path, tmp_path / "a", MODEL, quiet=True)
    assert counts["images"] == data.totals["kept"]
    assert len(list((tmp_path / "a").glob("part-*.parquet"))) == 8
    embed(source, tmp_path / "b", MODEL, quiet=True)
    shards, rec = table(tmp_path / "a"), {row["sid"]: row for row in table(tmp_path / "b")}
    assert len(rec) == data.totals["scanned"]
    for row in shards:
        assert row == rec[row["sid"]]


def test_an_interrupted_run_goes_on(tmp_path):
    spec = SyntheticSpec(identities=4, images=60, defects=0, unseen=0, pairs=0, seed=3)
    data = run_build(synthetic_set(tmp_path, spec), tmp_path / "data", BuildConfig(shards=8))
    seen = 0

    def dies(images):
        nonlocal seen
        seen += 1
        if seen == 5:
            raise KeyboardInterrupt
        return raw_pixels(images)

    with pytest.raises(KeyboardInterrupt):
        embed(data.path, tmp_path / "a", dataclasses.replace(MODEL, forward=dies), quiet=True)
    parts = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "a").glob("part-*.parquet")}
    assert len(parts) == 4
    assert "images" not in json.loads((tmp_path / "a" / "_embed.json").read_text())
    counts = embed(data.path, tmp_path / "a", MODEL, quiet=True)
    assert counts["images"] == data.totals["kept"]
    assert all((tmp_path / "a" / name).stat().st_mtime_ns == time for name, time in parts.items())
    embed(data.path, tmp_path / "b", MODEL, quiet=True)
    assert table(tmp_path / "a") == table(tmp_path / "b")
    other = dataclasses.replace(MODEL, sha256="2" * 64)
    with pytest.raises(FaceshardsError, match="holds embeddings of another model; choose another folder"):
        embed(data.path, tmp_path / "a", other, quiet=True)


def test_what_is_left_aside_is_said_and_another_listing_refused(tmp_path, caplog):
    folder = tmp_path / "faces"
    for name in ("ann/1.jpg", "bob/1.jpg", "loose.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(IMAGES[1])
    embed(folder, tmp_path / "out", MODEL, quiet=True)
    assert "1 files that are no .jpg or .png in an identity's folder, left aside" in caplog.text
    (folder / "ann").rename(folder / "zoe")  # as many bytes, nothing newer, another order
    with pytest.raises(FaceshardsError, match="holds embeddings of another source"):
        embed(folder, tmp_path / "out", MODEL, quiet=True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("part-00000.parquet", b"", "part-00000.parquet: damaged: .*; remove this file"),
        ("_embed.json", b"[]", "_embed.json: damaged: .*; remove the folder"),
        ("_embed.json", b'{"request": 3}', "_embed.json: damaged"),
        ("_embed.json", b"{", "_embed.json: damaged"),
    ],
)
def test_what_is_damaged_is_named(tmp_path, name, content, message):
    write_bin(tmp_path / "set.bin", IMAGES[:4], [True, False])
    embed(tmp_path / "set.bin", tmp_path / "out", MODEL, quiet=True)
    (tmp_path / "out" / name).write_bytes(content)
    with pytest.raises(FaceshardsError, match=message) as failure:
        embed(tmp_path / "set.bin", tmp_path / "out", MODEL, quiet=True)
    assert "\n" not in str(failure.value)


def test_two_faces_compared(tmp_path, narrow_weights):
    for name, image in (("a.jpg", IMAGES[0]), ("b.jpg", jpeg(0, quality=60)), ("c.jpg", b"junk")):
        (tmp_path / name).write_bytes(image)
    options = ("--model", narrow_weights, "--backbone", "mbf_narrow")
    found = run("compare", tmp_path / "a.jpg", tmp_path / "b.jpg", *options, "--threshold", "0.5", "--json")
    assert found.exit_code == 0, found.output
    result = json.loads(found.stdout)
    assert 0.9 < result["cosine"] <= 1.0001
    assert (result["threshold"], result["same"]) == (0.5, True)
    found = run("compare", tmp_path / "a.jpg", tmp_path / "a.jpg", *options, "--threshold", "1")
    assert found.stdout.startswith("cosine 1.0000, threshold 1.0000: ")
    for files, more, message in (
        (("a.jpg", "c.jpg"), ("--threshold", "0.5"), "c.jpg: 4 bytes are no image"),
        (("a.jpg", "d.jpg"), ("--threshold", "0.5"), "d.jpg: No such file"),
        (("a.jpg", "b.jpg"), (), "no verification set has given it a threshold; choose one with --threshold"),
    ):
        refused = run("compare", *(tmp_path / file for file in files), *options, *more)
        assert refused.exit_code == 1
        assert message in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1


def test_embed_from_the_command_line(tmp_path, narrow_weights):
    path = tmp_path / "set.bin"
    write_bin(path, IMAGES[:4], [True, False])
    found = run("embed", path, tmp_path / "out", "--model", narrow_weights, "--backbone", "mbf_narrow", "--quiet")
    assert found.exit_code == 0, found.output
    assert found.stdout == f"{tmp_path / 'out'}: 4 embeddings of 4 images\n"
    assert vectors(table(tmp_path / "out")).shape == (4, 32)
    refused = run("embed", tmp_path / "nothing", tmp_path / "b", "--model", narrow_weights, "--backbone", "mbf_narrow")
    assert refused.exit_code == 1
    assert "nothing: no such file or folder" in refused.stderr

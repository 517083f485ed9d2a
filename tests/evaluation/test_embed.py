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
from tests.recs import jpeg, pack, with_orientation, write_rec
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
    assert problems[1] == "4 bytes are no image: neither JPEG nor PNG"
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
    assert rows[1]["cause"] == "4 bytes are no image: neither JPEG nor PNG"
    assert_embedded(vectors([rows[0], rows[2]]), IMAGES[1:3])


def test_an_exif_orientation_changes_no_embedding(tmp_path):
    turned = [with_orientation(image) for image in IMAGES[:4]]
    write_bin(tmp_path / "set.bin", turned, [True, False])
    for place, image in enumerate(turned):
        path = tmp_path / "faces" / str(place) / "0.jpg"
        path.parent.mkdir(parents=True)
        path.write_bytes(image)
    for name in ("set.bin", "faces"):
        embed(tmp_path / name, tmp_path / f"of {name}", MODEL, quiet=True)
        assert_embedded(vectors(table(tmp_path / f"of {name}")), IMAGES[:4])


@pytest.fixture
def photographs(tmp_path):
    """A flat folder of three pictures, and what systems and people leave beside them."""
    folder = tmp_path / "photographs"
    leftovers = ("._a.jpg", "Thumbs.db", "notes.md", "@eaDir/a.jpg", ".cache/a.jpg")
    for name, image in zip(("c.png", "a.jpg", "B.JPEG", *leftovers), IMAGES[:3] + [b"junk"] * 5, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(image)
    return folder


def test_a_flat_folder_has_no_identities(tmp_path, photographs, caplog):
    assert embed(photographs, tmp_path / "out", MODEL, quiet=True) == {"images": 3, "embedded": 3, "left_out": 0}
    rows = table(tmp_path / "out")
    assert [(row["sid"], row["key"], row["label"]) for row in rows] == [
        (0, "B.JPEG", None),
        (1, "a.jpg", None),
        (2, "c.png", None),
    ]
    assert_embedded(vectors(rows), [IMAGES[2], IMAGES[1], IMAGES[0]])
    aside = "4 that systems left (the first: ._a.jpg), 1 that are no .jpg, .jpeg or .png (the first: notes.md)"
    assert caplog.messages == [f"{photographs}: left aside: {aside}"]
    (photographs / "a.jpg").write_bytes(IMAGES[4])  # other pictures are another source
    with pytest.raises(FaceshardsError, match="holds embeddings of another source"):
        embed(photographs, tmp_path / "out", MODEL, quiet=True)
    (photographs / "ann").mkdir()
    (photographs / "ann" / "1.jpg").write_bytes(IMAGES[3])  # a folder an identity, and loose pictures beside it
    embed(photographs, tmp_path / "people", MODEL, quiet=True)
    assert ("ann/1.jpg", "ann") in [(row["key"], row["label"]) for row in table(tmp_path / "people")]


def test_pictures_by_name_and_in_a_list(tmp_path, photographs, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.jpg").write_bytes(IMAGES[3])
    two = [Path("photographs/a.jpg"), tmp_path / "more" / "a.jpg"]  # of one file name
    embed(two[0], tmp_path / "one", MODEL, quiet=True)
    embed([*two, photographs / "Thumbs.db"], tmp_path / "two", MODEL, quiet=True)
    assert caplog.messages[0].startswith("SOURCE: left aside: 1 that systems left")
    lines = "\n".join(f"{number}\t{number}.000000\t{name}" for number, name in enumerate([*two, "more/gone.jpg"]))
    Path("list.lst").write_text(lines)
    found = embed(Path("list.lst"), tmp_path / "listed", MODEL, quiet=True)
    assert found == {"images": 3, "embedded": 2, "left_out": 1}
    assert "1 of 3 images have no embedding, the first: more/gone.jpg: cannot be read: No such file" in caplog.text
    (photographs / "list.TXT").write_bytes("\ufeffa.jpg\r\n\r\n@eaDir/a.jpg\r\n../more/a.jpg\r\n".encode())
    embed(
        photographs / "list.TXT", tmp_path / "near", MODEL, quiet=True
    )  # of its own folder, since none is in this one
    keys = {
        name: [(row["key"], row["label"]) for row in table(tmp_path / name)]
        for name in ("one", "two", "listed", "near")
    }
    assert keys == {
        "one": [("photographs/a.jpg", None)],
        "two": [("photographs/a.jpg", None), (str(two[1]), None)],
        "listed": [("photographs/a.jpg", "0"), (str(two[1]), "1"), ("more/gone.jpg", "2")],
        "near": [("a.jpg", None), ("../more/a.jpg", None)],
    }
    assert_embedded(vectors(table(tmp_path / "two")), [IMAGES[1], IMAGES[3]])


def test_a_root_one_level_too_high_is_doubted(tmp_path, caplog):
    for name in ("train/ann", "train/bob", "val/ann", "val/bob"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "1.jpg").write_bytes(IMAGES[0])
    embed(tmp_path / "set", tmp_path / "out", MODEL, quiet=True)
    assert [row["label"] for row in table(tmp_path / "out")] == ["train", "train", "val", "val"]
    assert "set: its folders may be no people; the column label has their names all the same" in caplog.text


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["photographs", "photographs/a.jpg"], "photographs: a folder; of several sources each is a picture"),
        (["photographs/a.jpg", "b.jpg"], "b.jpg: no such file"),
        (["photographs/notes.md", "photographs/Thumbs.db"], "SOURCE: none of 2 files is a picture"),
        (["photographs/notes.md"], "notes.md: not RecordIO: .*; nor is it a .bin, a picture .* or a list"),
        (["empty.txt"], "empty.txt: names no file"),
        (["astray.txt"], "astray.txt: none of its 2 files is there, the first: x.jpg"),
    ],
)
def test_files_that_are_no_pictures(tmp_path, photographs, monkeypatch, names, message):
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n")
    Path("astray.txt").write_text("x.jpg\ny.jpg\n")
    with pytest.raises(FaceshardsError, match=message):
        embed([Path(name) for name in names], tmp_path / "out", MODEL, quiet=True)
    assert not (tmp_path / "out").exists()


def test_large_pictures_make_more_parts(tmp_path, photographs, monkeypatch):
    monkeypatch.setattr("evaluation.image_sources.BYTES", len(IMAGES[1]) + 1)
    embed(photographs, tmp_path / "out", MODEL, quiet=True)
    parts = [len(ds.dataset(part).to_table()) for part in sorted((tmp_path / "out").glob("part-*"))]
    assert (sum(parts), len(parts) > 1, min(parts)) == (3, True, 1)
    assert [row["sid"] for row in table(tmp_path / "out")] == [0, 1, 2]


def test_nothing_embedded_is_an_error(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"<html>")
    with pytest.raises(
        FaceshardsError, match=r"out: 1 of 1 images have no embedding, the first: .*a.jpg: 6 bytes are no"
    ):
        embed(tmp_path / "a.jpg", tmp_path / "out", MODEL, quiet=True)
    with pytest.raises(FaceshardsError, match=r"a.jpg: no folder; the last name is that of the folder"):
        embed(tmp_path / "a.jpg", tmp_path / "a.jpg", MODEL, quiet=True)


def test_records_of_several_files_have_keys_of_their_own(tmp_path, caplog):
    (tmp_path / "recs").mkdir()
    for name, image in (("x.rec", IMAGES[0]), ("y.rec", IMAGES[1])):
        write_rec(tmp_path / "recs" / name, [pack(image, key=1)], keys=[1])
    embed(tmp_path / "recs", tmp_path / "out", MODEL, quiet=True)
    assert [row["key"] for row in table(tmp_path / "out")] == ["x.rec/1", "y.rec/1"]
    assert "recs: 2 files: an identity is a label and the file that its key begins with" in caplog.text


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
    assert "1 pictures lie in the folder itself, of no identity, left aside" in caplog.text
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


def test_two_faces_compared(tmp_path, tiny_weights):
    for name, image in (("a.jpg", IMAGES[0]), ("b.jpg", jpeg(0, quality=60)), ("c.jpg", b"junk")):
        (tmp_path / name).write_bytes(image)
    options = ("--model", tiny_weights, "--backbone", "mbf_tiny")
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


def test_embed_from_the_command_line(tmp_path, tiny_weights):
    path = tmp_path / "set.bin"
    write_bin(path, IMAGES[:4], [True, False])
    found = run("embed", path, tmp_path / "out", "--model", tiny_weights, "--backbone", "mbf_tiny", "--quiet")
    assert found.exit_code == 0, found.output
    assert found.stdout == f"{tmp_path / 'out'}: 4 embeddings of 4 images\n"
    assert vectors(table(tmp_path / "out")).shape == (4, 32)
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(IMAGES[0])
    options = ("--model", tiny_weights, "--backbone", "mbf_tiny", "--json")
    found = run("embed", tmp_path / "a.jpg", tmp_path / "b.jpg", tmp_path / "two", *options)
    assert json.loads(found.stdout) == {"images": 2, "embedded": 2, "left_out": 0}
    # Of another size: said before the model sees one, and before there is a folder.
    (tmp_path / "faces" / "ann").mkdir(parents=True)
    for i in range(6):
        (tmp_path / "faces" / "ann" / f"{i}.jpg").write_bytes(jpeg(i, 160, 128))
    write_bin(tmp_path / "large.bin", [jpeg(i, 160, 128) for i in range(4)], [True, False])
    for source in (tmp_path / "faces", tmp_path / "large.bin"):
        refused = run("embed", source, tmp_path / "c", "--model", tiny_weights, "--backbone", "mbf_tiny")
        assert refused.exit_code == 1
        assert "none is of 112 x 112 pixels, which models take (160 x 128: " in refused.stderr
        assert not (tmp_path / "c").exists()
    refused = run("embed", tmp_path / "nothing", tmp_path / "b", "--model", tiny_weights, "--backbone", "mbf_tiny")
    assert refused.exit_code == 1
    assert "nothing: no such file or folder" in refused.stderr

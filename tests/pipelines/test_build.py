"""A whole build publishes what the source holds, drops what was planted, and nothing else."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from faceshards.dataset.manifest import Manifest
from faceshards.dataset.schema import DROP_REASONS, SCHEMAS
from faceshards.dataset.verify import verify
from faceshards.errors import BuildError, SourceError
from faceshards.formats.mindrecord.reader import Shard
from pipelines.build import build
from pipelines.config import BuildConfig
from pipelines.sources.catalog import Dataset
from pipelines.sources.find import find_files
from tests.pipelines.build_fixtures import CONFIG, by_shared_worker, external, read_defects, read_rec, run_build

# What is dropped for each planted kind: its reason, and whether its original goes with it.
EXPECTED = {
    "exact_duplicate": ("exact_duplicate", False),
    "near_duplicate": ("near_duplicate", False),
    "exact_conflict": ("label_conflict", True),
    "near_conflict": ("label_conflict", True),
    "undecodable": ("undecodable", False),
    "truncated": ("undecodable", False),
    "wrong_size": ("wrong_size", False),
    "single_image": ("min_images", False),
}


@pytest.fixture(scope="module")
def records(tiny_source: Path) -> dict[int, tuple[int, bytes]]:
    return read_rec(tiny_source / "train.rec")


def dropped(manifest: Manifest) -> dict[int, str]:
    table = manifest.table("dropped")
    return dict(zip(map(int, table["key"].to_pylist()), table["reason"].to_pylist(), strict=True))


def published(manifest: Manifest) -> dict[int, bytes]:
    """Returns every image of the shards by sid."""
    found = {}
    for entry in manifest.table("shards").to_pylist():
        with Shard(manifest.shard_path(entry["file"])) as shard:
            found |= {sid: bytes(image) for _, sid, image in shard.rows()}
    return found


def test_every_planted_defect_is_dropped_with_its_reason_and_nothing_else(
    tiny_source: Path, tiny_dataset: Manifest
) -> None:
    found = dropped(tiny_dataset)
    unexplained = dict(found)
    defects = read_defects(tiny_source)
    assert {row["kind"] for row in defects} == set(EXPECTED)
    for row in defects:
        key, original = int(row["key"]), int(row["of_key"] or 0)
        reason, both = EXPECTED[row["kind"]]
        if row["kind"] == "near_duplicate" and key not in found:
            key = original  # the larger file of the two stays
        assert unexplained.pop(key, None) == reason, row
        if both:
            assert unexplained.pop(original, None) == reason, row
    assert unexplained == {}


def test_a_drop_names_what_stands_for_it(tiny_source: Path, tiny_dataset: Manifest) -> None:
    table = {int(row["key"]): row for row in tiny_dataset.table("dropped").to_pylist()}
    key_of = {
        row["sid"]: int(row["key"]) for name in ("images", "dropped") for row in tiny_dataset.table(name).to_pylist()
    }
    for row in read_defects(tiny_source):
        pair = {int(row["key"]), int(row["of_key"] or 0)}
        if row["kind"] == "exact_duplicate":
            gone = table[int(row["key"])]
            assert (key_of[gone["representative"]], gone["distance"]) == (int(row["of_key"]), 0)
        elif row["kind"] == "near_duplicate":
            (gone,) = (table[key] for key in pair if key in table)
            assert {int(gone["key"]), key_of[gone["representative"]]} == pair
            assert 0 <= gone["distance"] <= CONFIG.near_within
        elif row["kind"] in ("undecodable", "truncated", "wrong_size"):
            assert table[int(row["key"])]["detail"]
    pairs = {
        frozenset((key_of[row["sid_a"]], key_of[row["sid_b"]])): row
        for row in tiny_dataset.table("conflicts").to_pylist()
    }
    planted = {
        frozenset((int(row["key"]), int(row["of_key"]))): row["kind"] == "exact_conflict"
        for row in read_defects(tiny_source)
        if row["kind"].endswith("conflict")
    }
    assert {pair: row["exact"] for pair, row in pairs.items()} == planted


def test_the_books_add_up(records: dict[int, tuple[int, bytes]], tiny_dataset: Manifest) -> None:
    assert list(verify(tiny_dataset)) == []
    totals = tiny_dataset.totals
    assert totals["scanned"] == len(records)
    assert totals["kept"] + sum(totals["dropped"].values()) == totals["scanned"]
    scanned = Counter(label for label, _ in records.values())
    kept = Counter(tiny_dataset.table("images")["label_original"].to_pylist())
    lost = Counter((row["label_original"], row["reason"]) for row in tiny_dataset.table("dropped").to_pylist())
    rows = tiny_dataset.table("identities").to_pylist()
    assert {int(row["label_original"]): row["scanned"] for row in rows} == scanned
    for row in rows:
        name = row["label_original"]
        assert row["kept"] == kept[name]
        assert {reason: row[reason] for reason in DROP_REASONS} == {r: lost[name, r] for r in DROP_REASONS}
        assert row["kept"] + sum(row[reason] for reason in DROP_REASONS) == row["scanned"]
        assert (row["label"] is None) == (row["kept"] == 0)
    assert [row["label"] for row in rows if row["kept"]] == list(range(totals["identities"]))


def test_images_are_the_bytes_of_the_source(records: dict[int, tuple[int, bytes]], tiny_dataset: Manifest) -> None:
    images = published(tiny_dataset)
    rows = tiny_dataset.table("images").to_pylist()
    assert len(rows) == len(images) == tiny_dataset.totals["kept"]
    for row in rows:
        label, image = records[int(row["key"])]
        assert images[row["sid"]] == image
        assert (row["label_original"], row["bytes"]) == (str(label), len(image))
        assert row["sha256"] == hashlib.sha256(image).digest()
        assert (row["height"], row["width"]) == cv2.imdecode(np.frombuffer(image, np.uint8), -1).shape[:2]


def test_shards_are_balanced(tiny_dataset: Manifest) -> None:
    images, shards = tiny_dataset.table("images"), tiny_dataset.table("shards").to_pylist()
    assert len(shards) == 4
    assert max(row["rows"] for row in shards) - min(row["rows"] for row in shards) <= 1
    label, shard = images["label"].to_numpy(), images["shard"].to_numpy()
    for identity in range(tiny_dataset.totals["identities"]):
        count = np.bincount(shard[label == identity], minlength=4)
        assert set(count.tolist()) <= {count.sum() // 4, -(-count.sum() // 4)}
    for row in shards:
        assert row["identities"] == len(np.unique(label[shard == row["shard"]]))


def test_mindspore_reads_the_shards(tiny_dataset: Manifest) -> None:
    from mindspore.dataset import MindDataset

    files = [str(tiny_dataset.shard_path(name)) for name in tiny_dataset.table("shards")["file"].to_pylist()]
    reader = MindDataset(files, columns_list=["image", "label", "sid"], shuffle=False, num_parallel_workers=1)
    rows = {row["sid"].item(): row for row in reader.create_dict_iterator(num_epochs=1, output_numpy=True)}
    expected = tiny_dataset.table("images").to_pylist()
    assert reader.get_dataset_size() == len(rows) == len(expected)
    assert {row["label"].item() for row in rows.values()} == set(range(tiny_dataset.totals["identities"]))
    for row in expected:
        found = rows[row["sid"]]
        assert found["label"].item() == row["label"]
        assert hashlib.sha256(found["image"].tobytes()).digest() == row["sha256"]


@pytest.mark.parametrize("near", [24, -1])
def test_both_layouts_of_orl_are_one_set(near: int, tmp_path: Path) -> None:
    config = BuildConfig(image_size=(0, 0), shards=4, near_within=near, near_across=near)
    sets = []
    for name in ("train.rec", "im2rec.rec"):
        found = run_build(external(f"orl/{name}"), tmp_path / name.split(".")[0], config, partition_bytes=1 << 20)
        assert (found.totals["scanned"], found.totals["identities"]) == (400, 40)
        sets.append(set(found.table("images")["sha256"].to_pylist()))
    assert sets[0] == sets[1]
    if near < 0:
        whole = read_rec(external("orl/train.rec"))
        assert sets[0] == {hashlib.sha256(image).digest() for _, image in whole.values()}
        assert len(sets[0]) == 400


def test_a_set_without_images_publishes_nothing(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"nothing to publish: 10 records scanned, none kept \(undecodable 10\)"):
        run_build(external("dmlc/sample.rec"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_image_folder_keeps_its_names(
    records: dict[int, tuple[int, bytes]], tiny_dataset: Manifest, tmp_path: Path
) -> None:
    names = {0: "ann", 1: "Bob Smith", 2: "çelik"}
    kept = [row for row in tiny_dataset.table("images").to_pylist() if row["label"] in names]
    written = {}
    for row in kept:
        name, (_, image) = names[row["label"]], records[int(row["key"])]
        suffix = "jpg" if row["sid"] % 2 else "png"
        if suffix == "png":
            image = cv2.imencode(".png", cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR))[1].tobytes()
        written[f"{name}/{row['key']}.{suffix}"] = image
    root = tmp_path / "people"
    for key, image in written.items():
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_bytes(image)
    (root / "ann" / "notes.txt").write_text("no image")
    found = run_build(root, tmp_path / "out")
    assert list(verify(found)) == []
    assert {name.rsplit(".", 1)[1] for name in written} == {"jpg", "png"}
    images, bodies = found.table("images").to_pylist(), published(found)
    assert {row["key"]: bodies[row["sid"]] for row in images} == written
    assert all(row["key"].startswith(f"{row['label_original']}/") for row in images)
    rows = found.table("identities").to_pylist()
    assert [(row["label"], row["label_original"]) for row in rows] == list(enumerate(sorted(names.values())))
    assert any("1 files that are no .jpg or .png" in line for line in found.info["warnings"])


def test_a_set_without_its_index_is_the_same(tiny_source: Path, tiny_dataset: Manifest, tmp_path: Path) -> None:
    shutil.copyfile(tiny_source / "train.rec", tmp_path / "train.rec")
    found = run_build(tmp_path, tmp_path / "out")
    # In this layout a record's key is its place, which is what stands for the key when there is no index.
    assert found.table("images").equals(tiny_dataset.table("images"))
    columns = [name for name in SCHEMAS["dropped"].names if name != "detail"]
    assert found.table("dropped", columns).equals(tiny_dataset.table("dropped", columns))
    assert found.fingerprint == tiny_dataset.fingerprint


def test_policy_keep_reports_conflicts_only(tiny_source: Path, tiny_dataset: Manifest, tmp_path: Path) -> None:
    found = run_build(tiny_source, tmp_path / "out", BuildConfig(shards=4, conflict_policy="keep"))
    assert found.table("conflicts").equals(tiny_dataset.table("conflicts"))
    expected = dict(tiny_dataset.totals["dropped"])
    assert expected.pop("label_conflict") == 16
    assert found.totals["dropped"] == expected


def test_policy_keep_larger_leaves_one_copy_in_the_larger_identity(
    tiny_source: Path, records: dict[int, tuple[int, bytes]], tmp_path: Path
) -> None:
    found = run_build(tiny_source, tmp_path / "out", BuildConfig(shards=4, conflict_policy="keep-larger"))
    gone = {key for key, reason in dropped(found).items() if reason == "label_conflict"}
    # Equal copies and damaged records do not make an identity larger.
    useful = Counter(
        label
        for key, (label, _) in records.items()
        if dropped(found).get(key) in (None, "label_conflict", "min_images")
    )
    pairs = [
        (int(row["key"]), int(row["of_key"])) for row in read_defects(tiny_source) if row["kind"].endswith("conflict")
    ]
    for pair in pairs:
        (lost,) = gone & set(pair)
        (kept,) = set(pair) - {lost}
        assert useful[records[kept][0]] >= useful[records[lost][0]]
    assert len(gone) == len(pairs)


def test_max_images_caps_identities_by_seed(tiny_source: Path, tmp_path: Path) -> None:
    chosen = []
    for seed in (0, 1):
        found = run_build(tiny_source, tmp_path / str(seed), BuildConfig(shards=4, max_images=5, seed=seed))
        assert list(verify(found)) == []
        rows = found.table("identities").to_pylist()
        assert all(row["kept"] == 5 for row in rows if row["max_images"])
        assert max(row["kept"] for row in rows) == 5
        assert found.totals["dropped"]["max_images"] == sum(row["max_images"] for row in rows) > 0
        chosen.append(set(found.table("images")["sid"].to_pylist()))
    assert chosen[0] != chosen[1]


def test_other_counts_than_the_publishers_are_a_warning(
    tiny_source: Path, tiny_dataset: Manifest, tmp_path: Path
) -> None:
    known = Dataset("tiny", "Tiny", "here", "none", "insightface", identities=99, images=1000)
    files, _ = find_files(tiny_source)
    found = build("tiny", files, tmp_path / "out", CONFIG, by_shared_worker(), expected=known)
    assert found.info["warnings"] == found.info["unsound"]
    assert found.info["warnings"] == [
        "tiny: 12 of 272 records are broken and left out (undecodable 8, wrong_size 4)",
        f"tiny: {tiny_dataset.totals['scanned']} images scanned, 1000 expected",
        "tiny: 16 identities scanned, 99 expected",
    ]


def test_a_source_that_goes_away_is_one_line(tmp_path: Path, tiny_source: Path) -> None:
    copy = shutil.copytree(tiny_source, tmp_path / "copy")
    files, _ = find_files(copy)
    shutil.rmtree(copy)
    with pytest.raises((BuildError, SourceError), match=r"train\.(rec|idx).*No such file"):
        build("tiny", files, tmp_path / "out", CONFIG, by_shared_worker())
    assert not (tmp_path / "out").exists()

"""`manifest overlap`, and what `build` says of the sets to keep out."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from faceshards.dataset.manifest import Manifest
from faceshards.formats.verification_bin import write_bin
from pipelines.synthetic.faces import encode_face
from tests.faceshards.cli.test_cli import call, refusal
from tests.pipelines.build_fixtures import flip_bit, read_rec


def saved(image: bytes, quality: int, mirrored: bool) -> bytes:
    """Returns the picture saved again, mirrored or not."""
    pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    pixels = pixels[:, ::-1] if mirrored else pixels
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


@pytest.fixture(scope="module")
def planted(tiny_source: Path, tiny_dataset: Manifest) -> list[dict]:
    """Six images of the dataset: two for their bytes, two to be saved again, two to be mirrored."""
    rows = tiny_dataset.table("images").sort_by("sid").to_pylist()[::25][:6]
    records = read_rec(tiny_source / "train.rec")
    return [{**row, "image": records[int(row["key"])][1]} for row in rows]


@pytest.fixture(scope="module")
def sets(planted: list[dict], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two sets with pictures of these among people of their own; the first has one of them twice."""
    folder = tmp_path_factory.mktemp("sets")
    images = [row["image"] for row in planted]
    strangers = [encode_face(99, identity, 0) for identity in range(4)]
    first = [strangers[0], images[0], images[1], strangers[1], saved(images[2], 60, False), images[0]]
    second = [saved(images[3], 60, False), strangers[2], saved(images[4], 75, True), saved(images[5], 75, True)]
    write_bin(folder / "first.bin", first, [False] * 3)
    write_bin(folder / "second.bin", second, [False] * 2)
    return folder / "first.bin", folder / "second.bin"


def test_overlap_finds_the_pictures_with_their_places(tiny_dataset, planted, sets):
    result = call("manifest", "overlap", tiny_dataset.path, "--set", sets[0], "--set", sets[1], "--json", "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    places = [("first", 1), ("first", 2), ("first", 4), ("second", 0), ("second", 2), ("second", 3)]
    by_sid = {row["sid"]: row for row in found["rows"]}
    assert set(by_sid) == {row["sid"] for row in planted}
    for number, (row, place) in enumerate(zip(planted, places, strict=True)):
        got = by_sid[row["sid"]]
        assert (got["set"], got["picture"]) == place
        assert (got["label_original"], got["label"]) == (row["label_original"], row["label"])
        assert (got["exact"], got["mirrored"]) == (number < 2, number >= 4)
        assert 0 <= got["distance"] <= 24
    assert [one["overlap"] for one in found["sets"]] == [3, 3]
    assert (found["images"], found["overlap"]) == (tiny_dataset.totals["kept"], 6)
    assert (found["exact"], found["mirrored"], found["max_distance"]) == (2, 2, 24)
    counts = Counter(row["label_original"] for row in planted)
    assert {one["label_original"]: one["overlap"] for one in found["identities"]} == counts
    kept = Counter(tiny_dataset.table("images")["label_original"].to_pylist())
    assert all(one["images"] == kept[one["label_original"]] for one in found["identities"])


def test_overlap_for_people(tiny_dataset, planted, sets):
    arguments = ("manifest", "overlap", tiny_dataset.path, "--set", sets[0], "--quiet")
    lines = call(*arguments).stdout.splitlines()
    kept, people = tiny_dataset.totals["kept"], len({row["label_original"] for row in planted[:3]})
    assert lines[0] == str(tiny_dataset.path)
    assert [line.split() for line in lines[1:]] == [
        f"overlap 3 of {kept} images, of {people} identities; at most 24 bits away".split(),
        ["first", "3", "of", "6", "pictures"],
        ["same", "bytes", "2"],
        ["mirrored", "0"],
    ]
    rows = call(*arguments, "--rows", "--limit", "1")
    assert rows.stdout.split()[:8] == [
        "sid",
        "label_original",
        "label",
        "set",
        "picture",
        "distance",
        "mirrored",
        "exact",
    ]
    assert len(rows.stdout.splitlines()) == 2
    assert rows.stderr == "(1 of 3 rows; --limit 0 for all)\n"
    assert len(json.loads(call(*arguments, "--identities", "--json").stdout)) == people


def test_overlap_by_distance(tiny_dataset, sets):
    def overlap(limit: int) -> int:
        result = call(
            "manifest", "overlap", tiny_dataset.path, "--set", sets[0], "--quiet", "--json", "--max-distance", limit
        )
        return json.loads(result.stdout)["overlap"]

    assert overlap(-1) == 2
    assert [overlap(limit) >= 3 for limit in (24, 64)] == [True, True]
    text = call("manifest", "overlap", tiny_dataset.path, "--set", sets[0], "--quiet", "--max-distance", -1).stdout
    assert text.splitlines()[1].endswith("; the same bytes")


def test_overlap_of_none_is_an_answer(tiny_dataset, tmp_path):
    write_bin(tmp_path / "other.bin", [encode_face(99, identity, 1) for identity in range(2)], [False])
    arguments = ("manifest", "overlap", tiny_dataset.path, "--set", tmp_path / "other.bin", "--quiet")
    found = json.loads(call(*arguments, "--json").stdout)
    assert (found["overlap"], found["rows"], found["identities"]) == (0, [], [])
    assert " 0  of " in call(*arguments).stdout
    assert call(*arguments, "--rows", "--json").stdout == "[]\n"


def test_overlap_refuses(tiny_dataset, sets, tmp_path):
    cut = tmp_path / "cut.bin"
    cut.write_bytes(sets[0].read_bytes()[:-40])
    assert refusal("manifest", "overlap", tiny_dataset.path, "--set", cut).startswith(f"{cut}: not a whole pickle")
    assert "named twice" in refusal("manifest", "overlap", tiny_dataset.path, "--set", cut, "--set", cut)
    assert "no dataset published" in refusal("manifest", "overlap", tmp_path, "--set", sets[0])
    wrong = ("manifest", "overlap", tiny_dataset.path)
    assert "Missing option '--set'" in refusal(*wrong, code=2)
    assert "one of --identities and --rows" in refusal(*wrong, "--set", cut, "--rows", "--identities", code=2)
    assert "--limit belongs to" in refusal(*wrong, "--set", cut, "--limit", 3, code=2)


def test_overlap_reads_no_damaged_table(tiny_dataset, sets, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_dataset.path, copy, ignore=shutil.ignore_patterns("shards"))  # it needs none
    arguments = ("manifest", "overlap", copy, "--set", sets[0], "--quiet")
    assert call(*arguments).exit_code == 0
    part = sorted((copy / "manifest" / "images.parquet").iterdir())[1]
    flip_bit(part, 8 * 1000)
    assert refusal(*arguments) == f"{part}: changed since it was published: its SHA-256 is not dataset.json's"


def test_build_says_what_is_wrong_with_a_set_before_it_renders_one(tmp_path):
    bad = tmp_path / "bad.bin"
    bad.touch()
    arguments = ("build", "synthetic", "--data-root", tmp_path / "raw", "--out", tmp_path / "out", "--exclude", bad)
    assert refusal(*arguments, "--quiet").startswith(f"{bad}: not a whole pickle")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.bin"]

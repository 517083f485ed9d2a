"""Whole builds of sets that are not as they should be: refused, or published with a word on what is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from faceshards.dataset.manifest import Manifest
from faceshards.dataset.verify import verify
from faceshards.errors import BuildError, SourceError, UnsoundError
from pipelines.build import build
from pipelines.config import BuildConfig
from pipelines.sources.find import find_files
from pipelines.stages.label_spaces import Space, overlap
from tests.pipelines.build_fixtures import by_shared_worker, run_build
from tests.recs import jpeg, write_im2rec, write_insightface

SMALL = BuildConfig(shards=1, min_images=1)


def run(out: Path, config: BuildConfig, *sources: Path, **options) -> Manifest:
    files, warnings = find_files(*sources)
    execution = by_shared_worker(2000)  # several partitions of each file
    return build("set", files, out, config, execution, warnings=warnings, **options)


def identities(manifest: Manifest) -> dict[str, int]:
    """Returns how many images of each identity were kept."""
    rows = manifest.table("identities").to_pylist()
    return {row["label_original"]: row["kept"] for row in rows if row["label"] is not None}


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ----------------------------------------------------------------------------------------------------- label spaces


@pytest.fixture(scope="module")
def overlapping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two .rec files with labels 3, 5, 900 and 5, 7, -1, two images a label, none of which is another's."""
    root = tmp_path_factory.mktemp("overlapping")
    for number, (name, labels) in enumerate({"a": (3, 5, 900), "b": (5, 7, -1)}.items()):
        labelled = [(float(label), jpeg(100 * number + 10 * i + n)) for i, label in enumerate(labels) for n in range(2)]
        write_im2rec(root, labelled, name)
    return root


def test_files_that_share_labels_are_refused(overlapping: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"^a\.rec, b\.rec share 1 label \(5\), .* labels=shared .* labels=separate"):
        run(tmp_path / "out", SMALL, overlapping)
    assert left(tmp_path) == []


def test_shared_labels_are_one_person(overlapping: Path, tmp_path: Path) -> None:
    found = run(tmp_path / "out", BuildConfig(shards=1, labels="shared"), overlapping)
    assert identities(found) == {"3": 2, "5": 4, "7": 2, "900": 2}
    assert list(verify(found)) == []


def test_separate_labels_are_people_of_their_own_file(overlapping: Path, tmp_path: Path) -> None:
    found = run(tmp_path / "out", BuildConfig(shards=1, labels="separate"), overlapping)
    assert identities(found) == {"a.rec:3": 2, "a.rec:5": 2, "a.rec:900": 2, "b.rec:5": 2, "b.rec:7": 2}
    assert list(verify(found)) == []
    images = found.table("images").to_pylist()
    assert all(row["label_original"].split(":")[0] == row["source"] for row in images)
    names = [row["label_original"] for row in found.table("identities").to_pylist() if row["label"] is not None]
    assert all(names[row["label"]] == row["label_original"] for row in images)
    assert {row["label_original"] for row in found.table("dropped").to_pylist()} == {"b.rec:-1.0"}


def test_folders_of_one_name_in_several_sources(tmp_path: Path) -> None:
    for number, name in enumerate(("one/ann", "one/bob", "two/bob", "two/0")):
        (tmp_path / name).mkdir(parents=True)
        for n in range(2):
            (tmp_path / name / f"{n}.jpg").write_bytes(jpeg(10 * number + n))
    write_im2rec(tmp_path, [(0.0, jpeg(77)), (1.0, jpeg(78))], "x")
    sources = (tmp_path / "one", tmp_path / "two", tmp_path / "x.rec")
    (tmp_path / "data").mkdir()
    with pytest.raises(SourceError, match=r"^one, two, x\.rec share 2 labels \(0, bob\)"):
        run(tmp_path / "data" / "out", SMALL, *sources)
    found = run(tmp_path / "data" / "out", BuildConfig(shards=1, min_images=1, labels="shared"), *sources)
    assert identities(found) == {"0": 3, "1": 1, "ann": 2, "bob": 4}
    assert list(verify(found)) == []


def test_an_overlap_counts_labels_and_names_files() -> None:
    bounds = ((0, 9), (5, 12), (20, 30))
    spaces = [Space(f"{n}.rec", np.arange(*ends, dtype=np.int32), None) for n, ends in enumerate(bounds)]
    assert overlap(spaces).startswith("0.rec, 1.rec share 4 labels (5, 6, 7, ...), ")
    assert overlap([spaces[0], spaces[2]]) == ""


# -------------------------------------------------------------------------------------------------- broken sources


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An InsightFace set of 4 people with 3 images each, whose .rec ends in the middle of the seventh image."""
    folder = tmp_path_factory.mktemp("half")
    offsets = write_insightface(folder, [[jpeg(10 * i + n) for n in range(3)] for i in range(4)])
    with open(folder / "train.rec", "r+b") as file:
        file.truncate((offsets[7] + offsets[8]) // 2)
    return folder


def test_half_a_rec_is_told_and_refused_by_strict(half: Path, tmp_path: Path) -> None:
    lines = [
        "set: 10 of 16 records are broken and left out (damaged 1, missing 9)",
        "train.rec: 7 images found, its header record says 12",
        "train.rec: 2 identities found, the file property says 4",
    ]
    with pytest.raises(UnsoundError) as refused:
        run(tmp_path / "out", SMALL, half, strict=True)
    assert str(refused.value).startswith(f"--strict publishes nothing: {'; '.join(lines)}; fetch or mend")
    assert left(tmp_path) == []
    found = run(tmp_path / "out", SMALL, half)
    assert found.info["warnings"] == found.info["unsound"] == lines
    with pytest.raises(BuildError, match="published there without --strict: set: 10 of 16 records are broken"):
        run(tmp_path / "out", SMALL, half, strict=True)


def test_an_index_of_fewer_records_is_told(half: Path, tmp_path: Path) -> None:
    source = shutil.copytree(half, tmp_path / "set")
    write_insightface(source, [[jpeg(10 * i + n) for n in range(3)] for i in range(2)])
    lines = (source / "train.idx").read_text().splitlines(True)
    (source / "train.idx").write_text("".join(lines[:4]))
    found = run(tmp_path / "out", SMALL, source)
    assert found.info["unsound"] == ["train.rec: its .idx lacks 3 of the images that are there"]
    assert found.totals["kept"] == 6


def test_a_sound_set_is_strict_and_says_nothing(tmp_path: Path) -> None:
    write_insightface(tmp_path / "set", [[jpeg(10 * i + n) for n in range(3)] for i in range(2)])
    found = run(tmp_path / "out", SMALL, tmp_path / "set", strict=True)
    assert found.info["warnings"] == found.info["unsound"] == []


def test_people_who_are_left_out_whole_are_named(tmp_path: Path) -> None:
    for name, first in {"ann": 0, "ann copy": 0, "bob": 10, "eve": 20, "lone": 30}.items():
        (tmp_path / "set" / name).mkdir(parents=True)
        for n in range(1 if name == "lone" else 2):
            image = jpeg(first + n)
            (tmp_path / "set" / name / f"{n}.jpg").write_bytes(image[:99] if name == "eve" else image)
    found = run_build(tmp_path / "set", tmp_path / "out")
    broken, copied, unsound, alone = found.info["warnings"]
    assert copied.startswith("2 identities are left out whole (ann, ann copy): their photographs stand under other")
    assert unsound == "1 identities are left out whole (eve): too few of their records are sound"
    assert alone.startswith("only one identity is left")
    assert found.info["unsound"] == [broken]

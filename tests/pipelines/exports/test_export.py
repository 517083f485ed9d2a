"""What is exported is what other people's readers, and our own builds, find in it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from faceshards.checksums import check_seal
from faceshards.cli.main import main
from faceshards.dataset.manifest import Manifest
from faceshards.errors import FaceshardsError, ShardError
from pipelines.config import BuildConfig
from pipelines.exports import rec_parts
from pipelines.exports.base import ExportError
from pipelines.exports.registry import EXPORTS
from tests.pipelines.build_fixtures import by_shared_worker, flip_bit, run_build, shared_worker
from tests.pipelines.exports.readers import (
    Found,
    by_folders,
    by_insightface,
    by_mxnet,
    expected,
    exported,
)
from tests.recs import MAGIC, jpeg, png


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A dataset of named people: two that differ in case alone, one with a number, PNGs, odd names, a magic word."""
    root = tmp_path_factory.mktemp("faces") / "people"
    names = ["Ann Lee", "ann lee", "007", "con", "a%b", "José", 'x"y*?', "L" * 240]
    for person, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(3):
            image = png(10 * person + i) if i == 2 else jpeg(10 * person + i)
            if person == 1:  # behind a JPEG's end, at every alignment
                image += b"".join(MAGIC + bytes(pad) for pad in range(4)) + bytes(i)
            (root / name / f"{i}{'.png' if i == 2 else '.jpg'}").write_bytes(image)
    return run_build(root, root.with_name("dataset"), BuildConfig(shards=3))


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A dataset whose people are numbers with gaps."""
    root = tmp_path_factory.mktemp("numbered") / "people"
    for person, name in enumerate(("0000045", "0000102", "0000007")):
        (root / name).mkdir(parents=True)
        for i in range(2):
            (root / name / f"{i}.jpg").write_bytes(jpeg(100 + 10 * person + i))
    return run_build(root, root.with_name("dataset"), BuildConfig(shards=2))


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Returns what the product logged; Dask's own loggers may be louder after other tests."""
    return [message for name, _, message in caplog.record_tuples if name.startswith("pipelines.")]


def rebuilt(out: Path) -> Manifest:
    """Returns what our own build makes of an export."""
    config = BuildConfig(shards=2, image_size=(0, 0), near_within=-1, near_across=-1, min_images=1)
    return run_build(out, out.with_name(f"{out.name}-rebuilt"), config)


def refusal(*arguments: str | Path, code: int = 1) -> str:
    """Returns the one line that the command refuses with; nothing is left behind."""
    result = CliRunner().invoke(main, ["export-data", *map(str, arguments), "--scheduler", shared_worker(), "--quiet"])
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    (line,) = result.stderr.splitlines()[-1:] if code == 2 else result.stderr.splitlines()
    return line.removeprefix("Error: ")


# --- RecordIO


def test_insightface_readers_find_every_image_and_identity(tiny_dataset: Manifest, tmp_path: Path) -> None:
    out = exported(tiny_dataset, tmp_path / "out", "recordio")
    chosen, ranges = by_insightface(out / "train.rec")
    rows = tiny_dataset.table("images", ["label", "sid", "sha256"]).sort_by(
        [("label", "ascending"), ("sid", "ascending")]
    )
    assert chosen == [Found(row["label"], row["sha256"].hex()) for row in rows.to_pylist()]
    identities = tiny_dataset.totals["identities"]
    assert len(ranges) == identities
    for label, (first, behind) in enumerate(ranges.values()):  # keys begin with 1
        assert {found.label for found in chosen[first - 1 : behind - 1]} == {label}
    assert sum(behind - first for first, behind in ranges.values()) == len(chosen)
    assert (out / "property").read_text() == f"{identities},112,112\n"
    assert sorted(path.name for path in out.iterdir()) == [
        *("export.json", "identities.parquet", "property", "train.idx", "train.lst", "train.rec")
    ]


def test_im2rec_readers_find_every_image(tiny_dataset: Manifest, tmp_path: Path) -> None:
    out = exported(tiny_dataset, tmp_path / "out", "im2rec")
    images, structural = by_mxnet(out / "train.rec")
    assert structural == {}
    assert list(images) == list(range(tiny_dataset.totals["kept"]))
    assert set(images.values()) == expected(tiny_dataset)
    lines = [line.split("\t") for line in (out / "train.lst").read_text().splitlines()]
    assert [(int(key), float(label)) for key, label, _ in lines] == [(key, images[key].label) for key in images]
    rows = tiny_dataset.table("images", ["sha256", "source", "key"]).to_pylist()
    places = {row["sha256"].hex(): f"{row['source']}/{row['key']}" for row in rows}
    assert [place for *_, place in lines] == [places[found.sha256] for found in images.values()]


def test_magic_words_in_images_come_through(faces: Manifest, tmp_path: Path) -> None:
    out = exported(faces, tmp_path / "out", "recordio")
    chosen, _ = by_insightface(out / "train.rec")
    assert set(chosen) == expected(faces)


def test_old_numbers_are_written_and_the_gaps_are_told(
    numbered: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = exported(numbered, tmp_path / "out", "recordio", labels="old")
    chosen, ranges = by_insightface(out / "train.rec")
    originals = {Found(float(found.label), found.sha256) for found in expected(numbered, "label_original")}
    assert set(chosen) == originals
    assert len(ranges) == 3
    assert (out / "property").read_text() == "103,112,112\n"  # a head for the label 102 has so many classes
    assert [record.getMessage() for record in caplog.records] == [
        "labels go up to 102, and 100 below it are nobody's: a head for them needs 103 classes"
    ]


@pytest.mark.parametrize(
    ("images", "classes", "said"),
    [
        ((1 << 24) - 12, 10, None),
        ((1 << 24) - 11, 10, "would have to say 16,777,216, and float32 is exact only up to 16,777,215"),
        (42_474_557, 2_059_906, "would have to say 44,534,464"),
    ],
)
def test_a_header_that_float32_would_round_is_refused(images: int, classes: int, said: str | None) -> None:
    labels = np.arange(classes)
    EXPORTS["im2rec"].refuse(images, labels)
    if said is None:
        EXPORTS["recordio"].refuse(images, labels)
    else:
        with pytest.raises(ExportError, match=said):
            EXPORTS["recordio"].refuse(images, labels)


@pytest.mark.parametrize("to", ["recordio", "im2rec"])
def test_labels_that_float32_would_round_are_refused(to: str) -> None:
    EXPORTS[to].refuse(2, np.array([0, (1 << 24) - 1]))
    with pytest.raises(ExportError, match=r"^labels go up to 16,777,216, and RecordIO's float32"):
        EXPORTS[to].refuse(2, np.array([0, 1 << 24]))


def test_images_of_several_sizes_have_no_property(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(4):
        (tmp_path / "people" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "people" / str(i % 2) / f"{i}.jpg").write_bytes(jpeg(200 + i, 112, 100 + i))
    dataset = run_build(tmp_path / "people", tmp_path / "set", BuildConfig(shards=1, image_size=(0, 0)))
    caplog.clear()
    out = exported(dataset, tmp_path / "out", "recordio")
    assert said(caplog) == ["the images are of several sizes, so there is no file `property`, which names one"]
    assert set(by_insightface(out / "train.rec")[0]) == expected(dataset)
    assert not (out / "property").exists()


# --- folders


def test_a_folder_holds_every_image_under_its_name(
    faces: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = exported(faces, tmp_path / "out", "folder", labels="old")
    assert said(caplog) == ["6 folders are not named as their identities: identities.parquet has both names"]
    names = {row["written"]: row["label_original"] for row in pq.read_table(out / "identities.parquet").to_pylist()}
    assert {Found(names[folder], sha256) for folder, sha256 in by_folders(out)} == expected(faces, "label_original")
    assert len({name.casefold() for name in names}) == faces.totals["identities"] == 8
    rows = faces.table("images", ["sid", "key"]).to_pylist()
    sids = {f"{row['sid']:02d}{Path(row['key']).suffix}" for row in rows}
    assert {path.name for path in out.glob("*/*")} == sids


def test_new_labels_are_folders_in_their_order(tiny_dataset: Manifest, tmp_path: Path) -> None:
    out = exported(tiny_dataset, tmp_path / "out", "folder")
    folders = sorted(path.name for path in out.iterdir() if path.is_dir())
    assert list(map(int, folders)) == list(range(tiny_dataset.totals["identities"]))
    assert {Found(int(folder), sha256) for folder, sha256 in by_folders(out)} == expected(tiny_dataset)


# --- webdataset


def test_webdataset_reads_what_was_written(faces: Manifest, tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    out = exported(faces, tmp_path / "out", "webdataset")
    tars = sorted(map(str, out.glob("*.tar")))
    assert [Path(path).name for path in tars] == [f"shard-00000{i}.tar" for i in range(3)]
    rows = {row["sid"]: row for row in faces.table("images").to_pylist()}
    seen = []
    for sample in wds.WebDataset(tars, shardshuffle=False, empty_check=False):
        row = rows[int(sample["__key__"])]
        image = sample["png" if row["key"].endswith(".png") else "jpg"]
        assert hashlib.sha256(image).digest() == row["sha256"]
        assert sample["cls"] == str(row["label"]).encode()
        names = ("label", "label_original", "sid", "source", "key")
        assert json.loads(sample["json"]) == {**{n: row[n] for n in names}, "sha256": row["sha256"].hex()}
        seen.append((Path(sample["__url__"]).name, row["shard"], row["row"]))
    assert len(seen) == len(rows)
    assert seen == sorted(seen)
    assert all(int(name[6:12]) == shard for name, shard, _ in seen)


def test_tars_are_as_large_as_asked_for(tiny_dataset: Manifest, numbered: Manifest, tmp_path: Path) -> None:
    out = exported(tiny_dataset, tmp_path / "out", "webdataset", shard_bytes=150_000)
    tars = sorted(out.glob("*.tar"))
    sizes = [path.stat().st_size for path in tars]
    assert max(sizes) <= 150_000
    assert min(sizes[:-1]) > 130_000  # the next image, with its label, did not fit
    found = []
    for path in tars:
        with tarfile.open(path) as tar:
            found += [tar.extractfile(entry).read() for entry in tar if entry.name.endswith(".jpg")]  # type: ignore[union-attr]
    assert sorted(hashlib.sha256(image).hexdigest() for image in found) == sorted(
        found.sha256 for found in expected(tiny_dataset)
    )
    # Two bytes are less than any image takes: then each has a file of its own.
    alone = exported(numbered, tmp_path / "alone", "webdataset", shard_bytes=2)
    assert len(list(alone.glob("*.tar"))) == numbered.totals["kept"] > 1


# --- all of them


@pytest.mark.parametrize("to", ["recordio", "im2rec", "folder"])
@pytest.mark.parametrize("labels", ["new", "old"])
def test_a_build_of_an_export_is_the_dataset_again(
    numbered: Manifest, faces: Manifest, tmp_path: Path, to: str, labels: str
) -> None:
    dataset = faces if to == "folder" else numbered
    out = exported(dataset, tmp_path / "out", to, labels=labels)
    again = rebuilt(out)
    assert again.totals["dropped"] == {}
    written = dict(pq.read_table(out / "identities.parquet", columns=["written", "label"]).to_pandas().to_numpy())
    assert {
        Found(written[name if to == "folder" else int(name)], sha) for name, sha in expected(again, "label_original")
    } == expected(dataset)
    if labels == "new":
        assert expected(again) == expected(dataset)


@pytest.mark.parametrize("to", EXPORTS)
def test_bytes_do_not_depend_on_how_it_is_cut(tiny_dataset: Manifest, tmp_path: Path, to: str) -> None:
    trees = []
    for name, step in (("many", 30_000), ("one", 1 << 30)):
        out = exported(tiny_dataset, tmp_path / name, to, partition_bytes=step)
        trees.append({str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()})
    assert trees[0] == trees[1]


def test_export_json_says_where_it_came_from(tiny_dataset: Manifest, tmp_path: Path) -> None:
    arguments = [
        str(tiny_dataset.path),
        str(tmp_path / "out"),
        "--to",
        "recordio",
        "--scheduler",
        shared_worker(),
        "--json",
    ]
    result = CliRunner().invoke(main, ["export-data", *arguments, "--quiet"])
    assert result.exit_code == 0, result.output
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    check_seal(about)
    assert json.loads(result.stdout) == about
    assert about["fingerprint"] == tiny_dataset.fingerprint
    assert {name: about[name] for name in ("name", "format", "labels")} == {
        "name": "tiny",
        "format": "recordio",
        "labels": "new",
    }
    assert about["terms"] == {"tiny": "unknown"}
    assert about["totals"]["images"] == tiny_dataset.totals["kept"]
    for name, entry in about["files"].items():
        data = (tmp_path / "out" / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    # Again: nothing to do. Another request: refused. What is there stays as it is.
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    again = CliRunner().invoke(main, ["export-data", *arguments, "--quiet"])
    assert (again.exit_code, json.loads(again.stdout)) == (0, about)
    line = refusal(tiny_dataset.path, tmp_path / "out", "--to", "im2rec")
    assert line.startswith(f"{tmp_path / 'out'}: another export is there (format: 'recordio' there, 'im2rec' now)")
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_terms_of_known_sets_go_with_them(tiny_source: Path, tmp_path: Path) -> None:
    from pipelines.build import build
    from pipelines.sources.find import find_files

    files, _ = find_files(tiny_source)
    dataset = build("casia", files, tmp_path / "set", BuildConfig(shards=1), by_shared_worker())
    out = exported(dataset, tmp_path / "out", "im2rec")
    assert json.loads((out / "export.json").read_text())["terms"] == {"casia": "non-commercial research only"}


# --- refusals


@pytest.mark.parametrize("to", ["recordio", "im2rec", "webdataset"])
def test_names_are_no_labels_of_numbers(faces: Manifest, tmp_path: Path, to: str) -> None:
    line = refusal(faces.path, tmp_path / "out", "--to", to, "--labels", "old")
    assert line.startswith("--labels old: identity 'Ann Lee' is no whole number")
    assert list(tmp_path.iterdir()) == []


def test_places_that_are_taken_or_inside_are_refused(tiny_dataset: Manifest, tiny_source: Path, tmp_path: Path) -> None:
    inside = tiny_dataset.path / "more" / "out"
    assert "lies in the dataset" in refusal(tiny_dataset.path, inside, "--to", "folder")
    (tmp_path / "link").symlink_to(tiny_dataset.path)
    assert "lies in the dataset" in refusal(tiny_dataset.path, tmp_path / "link" / "out", "--to", "folder")
    assert f"lies in the source {tiny_source}" in refusal(tiny_dataset.path, tiny_source / "out", "--to", "folder")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    line = refusal(tiny_dataset.path, tmp_path / "home", "--to", "im2rec")
    assert line == f"{tmp_path / 'home'}: exists and is no export of ours; it is not touched"
    assert "exists and is no export" in refusal(tiny_dataset.path, tmp_path / "home" / "letter.txt", "--to", "im2rec")
    assert "no dataset published there" in refusal(tmp_path / "home", tmp_path / "out", "--to", "im2rec")
    line = refusal(tiny_dataset.path, tmp_path / "out", "--to", "folder", "--shard-bytes", "5", code=2)
    assert line == "--shard-bytes belongs to --to webdataset; folder has no shards"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["home", "letter.txt", "link"]
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


@pytest.mark.parametrize("to", EXPORTS)
def test_an_image_that_changed_is_named(tiny_dataset: Manifest, tmp_path: Path, to: str) -> None:
    copy = Manifest(shutil.copytree(tiny_dataset.path, tmp_path / "set"))
    images = copy.table("images", shard=2).sort_by("row").to_pylist()
    path = copy.shard_path("shard-00002.mindrecord")
    flip_bit(path, 8 * path.read_bytes().index(_image(tiny_dataset, images[5])) + 800)
    with pytest.raises(ShardError, match=r"shard-00002\.mindrecord: row 5: the image's sha256 is not the manifest's"):
        exported(copy, tmp_path / "out", to)
    assert not (tmp_path / "out").exists()


def _image(dataset: Manifest, row: dict) -> bytes:
    from faceshards.formats.mindrecord.reader import Shard

    with Shard(dataset.shard_path(f"shard-{row['shard']:05d}.mindrecord")) as shard:
        return shard.image(row["row"])


def test_a_damaged_table_is_named_before_anything_is_written(tiny_dataset: Manifest, tmp_path: Path) -> None:
    copy = Manifest(shutil.copytree(tiny_dataset.path, tmp_path / "set"))
    flip_bit(copy.path / "manifest/identities.parquet", 800)
    with pytest.raises(FaceshardsError, match=r"identities\.parquet: changed since it was published"):
        exported(copy, tmp_path / "out", "recordio")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


# --- parts put together


def test_parts_that_were_copied_are_not_looked_for(tmp_path: Path) -> None:
    from faceshards.formats.recordio import Writer

    def part(number: int) -> tuple[Path, int]:
        path = tmp_path / f"part-{number}"
        with Writer(path.with_suffix(".rec")) as rec:
            for key in range(3 * number, 3 * number + 3):
                rec.write(key, float(key), bytes([key]) * (key + 1))
        return path, path.with_suffix(".rec").stat().st_size

    parts = [part(number) for number in range(4)]
    rec_parts.join(parts, tmp_path / "whole")
    whole = {path.suffix: path.read_bytes() for path in tmp_path.glob("whole.*")}
    assert len(by_mxnet(tmp_path / "whole.rec")[0]) == 12
    # Killed while the third was being copied, and a late worker wrote the first again.
    for number in (0, 2, 3):
        part(number)
    half = parts[0][1] + parts[1][1] + 7
    (tmp_path / "whole.rec").write_bytes(whole[".rec"][:half])
    rec_parts.join(parts, tmp_path / "whole")
    assert {path.suffix: path.read_bytes() for path in tmp_path.glob("whole.*")} == whole
    # Nothing of it, and a part is gone.
    (tmp_path / "whole.rec").unlink()
    part(3)
    with pytest.raises(ExportError, match=re.escape("part-2.rec: missing, and not copied yet")):
        rec_parts.join(parts, tmp_path / "whole")


def test_labels_are_looked_up_not_counted(numbered: Manifest, tmp_path: Path) -> None:
    out = exported(numbered, tmp_path / "out", "im2rec", labels="old")
    table = pq.read_table(out / "identities.parquet")
    assert table["written"].type == pa.int64()
    assert dict(zip(table["label_original"].to_pylist(), table["written"].to_pylist(), strict=True)) == {
        "0000007": 7,
        "0000045": 45,
        "0000102": 102,
    }

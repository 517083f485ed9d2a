"""Builds that keep test pictures out, and look for mirrored copies: what was planted goes, and nothing else."""

from __future__ import annotations

import hashlib
import pickle
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from evaluation.models.mxnet_import import load
from faceshards.dataset.manifest import Manifest
from faceshards.dataset.verify import verify
from faceshards.errors import BuildError, EmptyDatasetError
from faceshards.formats.verification_bin import SetError, read_bin, write_bin
from pipelines.build import build
from pipelines.config import BuildConfig
from pipelines.sources.find import find_files
from pipelines.stages import route
from pipelines.synthetic.write import SyntheticSpec
from pipelines.workspace import work_folder
from tests.pipelines.build_fixtures import by_shared_worker, digests, read_defects, read_rec, run_build, synthetic_set

SPEC = SyntheticSpec(identities=12, images=180, defects=2, mirrored=3, leaked=3, unseen=8, pairs=40, seed=5)
CONFIG = BuildConfig(shards=2, near_mirror=24)
LEAKED = ("test_exact", "test_near", "test_mirrored")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_set(tmp_path_factory.mktemp("leaks"), SPEC)


@pytest.fixture(scope="module")
def test_set(source: Path) -> Path:
    return source / "verification.bin"


@pytest.fixture(scope="module")
def clean(source: Path, test_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The dataset without the test pictures and mirrored copies."""
    return run_build(source, tmp_path_factory.mktemp("built") / "clean", CONFIG, exclude=[test_set])


def drops(manifest: Manifest, **where: str) -> dict[int, dict]:
    """Returns the dropped rows by key."""
    rows = manifest.table("dropped").to_pylist()
    return {int(row["key"]): row for row in rows if all(row[name] == value for name, value in where.items())}


def planted(source: Path, *kinds: str) -> Iterator[tuple[int, int, str]]:
    """Yields key, of_key and kind of planted records."""
    for row in read_defects(source):
        if row["kind"] in kinds:
            yield int(row["key"]), int(row["of_key"]), row["kind"]


def test_planted_test_pictures_go_with_their_evidence_and_nothing_else(source, test_set, clean):
    found = drops(clean, reason="test_overlap")
    wanted = {key: (number, kind) for key, number, kind in planted(source, *LEAKED)}
    assert len(wanted) == 9
    assert set(found) == set(wanted)
    records, pictures = read_rec(source / "train.rec"), read_bin(test_set).images
    for key, (number, kind) in wanted.items():
        row = found[key]
        assert row["representative"] is None
        more = {"test_exact": ", same bytes", "test_mirrored": ", mirrored"}.get(kind, "")
        assert row["detail"] == f"verification picture {number}, distance {row['distance']}{more}"
        assert 0 <= row["distance"] <= CONFIG.near_across
        assert (records[key][1] == pictures[number]) == (kind == "test_exact")
    assert clean.info["dedupe"]["test_overlap"] == {"verification": 9}
    assert clean.totals["dropped"]["test_overlap"] == 9


def test_planted_mirrored_copies_go_with_what_stands_for_them(source, clean):
    found, sids = drops(clean), {}
    for name in ("images", "dropped"):
        sids |= {row["sid"]: int(row["key"]) for row in clean.table(name, ["sid", "key"]).to_pylist()}
    told = {key for key, row in found.items() if row["detail"] == "mirrored"}
    for key, original, kind in planted(source, "mirrored_duplicate", "mirrored_conflict"):
        gone = {key, original} & found.keys()
        reason = "near_duplicate" if kind == "mirrored_duplicate" else "label_conflict"
        assert len(gone) == (1 if kind == "mirrored_duplicate" else 2)
        for one in gone:
            told.remove(one)
            assert {one, sids[found[one]["representative"]]} == {key, original}
            assert found[one]["reason"] == reason
            assert found[one]["distance"] <= CONFIG.near_mirror
    assert told == set()
    pairs = Counter(row["mirrored"] for row in clean.table("conflicts").to_pylist())
    assert pairs == {True: 3, False: 4}


def test_the_books_add_up(test_set, clean):
    assert list(verify(clean)) == []
    rows = clean.table("identities").to_pylist()
    assert sum(row["test_overlap"] for row in rows) == 9
    assert clean.count("identities", ds.field("test_overlap") > 0) == sum(row["test_overlap"] > 0 for row in rows)
    (entry,) = clean.info["exclude"]
    assert entry == {
        "name": "verification",
        "pictures": 80,
        "sha256": hashlib.sha256(test_set.read_bytes()).hexdigest(),
    }


def test_neither_partitions_nor_workers_change_a_byte(source, test_set, clean, tmp_path):
    again = run_build(source, tmp_path / "clean", CONFIG, exclude=[test_set], workers=2, partition_bytes=60_000)
    assert digests(again.path) == digests(clean.path)


def test_without_the_options_all_is_as_ever(source, tmp_path):
    plain = run_build(source, tmp_path / "plain", BuildConfig(shards=2))
    kinds = {kind: key for key, _, kind in planted(source, *LEAKED, "mirrored_duplicate", "mirrored_conflict")}
    assert not drops(plain).keys() & set(kinds.values())
    assert "exclude" not in plain.info
    for table, column in (("identities", "test_overlap"), ("conflicts", "mirrored")):
        file = plain.path / "manifest" / f"{table}.parquet"
        assert column not in pq.read_schema(file).names  # as earlier releases wrote it, and as it is read:
        assert set(plain.table(table)[column].to_pylist()) <= {0}
        batches = list(plain.batches(table, [column]))
        assert sum(map(len, batches)) == len(plain.table(table))
        assert all(batch.column(0).null_count == 0 for batch in batches)
        zero = ds.field(column) == (False if table == "conflicts" else 0)
        assert plain.count(table, zero) == len(plain.table(table)) == sum(map(len, plain.batches(table, None, zero)))
    assert list(verify(plain)) == []


def test_an_interrupted_build_goes_on_with_the_same_sets_only(source, test_set, clean, tmp_path, monkeypatch):
    out = tmp_path / "clean"

    def stop(*_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.build.assemble", stop)
        with pytest.raises(KeyboardInterrupt):
            run_build(source, out, CONFIG, exclude=[test_set])
    assert work_folder(out).exists()
    other = tmp_path / "verification.bin"
    images, same = pickle.loads(test_set.read_bytes())
    write_bin(other, images[2:], same[1:])
    for wrong in ([], [other], [test_set, other]):
        with pytest.raises(BuildError, match=r"an interrupted build has another request \(exclude"):
            run_build(source, out, CONFIG, exclude=wrong)
    moved = tmp_path / "moved" / "verification.bin"
    moved.parent.mkdir()
    shutil.copy(test_set, moved)
    assert digests(run_build(source, out, CONFIG, exclude=[moved]).path) == digests(clean.path)
    with pytest.raises(BuildError, match="from another request; --overwrite"):
        run_build(source, out, CONFIG)
    assert run_build(source, out, CONFIG, exclude=[test_set]).fingerprint == clean.fingerprint  # nothing to do


def damaged(path: Path, good: Path) -> str:
    path.write_bytes(good.read_bytes()[:-100])
    return "not a whole pickle"


def foreign(path: Path, _good: Path) -> str:
    path.write_bytes(pickle.dumps({"a": 1}))
    return "refused: its pickle uses EMPTY_DICT"


def empty(path: Path, _good: Path) -> str:
    path.touch()
    return "not a whole pickle"


def no_pairs(path: Path, _good: Path) -> str:
    path.write_bytes(pickle.dumps(([], [])))
    return "0 images for 0 pairs"


def no_pictures(path: Path, _good: Path) -> str:
    write_bin(path, [b"text", b"more"], [True])
    return "none of its 2 pictures can be decoded: neither JPEG nor PNG"


def folder(path: Path, _good: Path) -> str:
    path.mkdir()
    return "Is a directory"


def missing(_path: Path, _good: Path) -> str:
    return "No such file or directory"


@pytest.mark.parametrize("make", [damaged, foreign, empty, no_pairs, no_pictures, folder, missing])
def test_an_unusable_set_is_one_line_before_anything_is_made(source, test_set, tmp_path, make):
    bad, out = tmp_path / "bad.bin", tmp_path / "made" / "out"
    cause = make(bad, test_set)
    with pytest.raises(SetError) as error:
        run_build(source, out, CONFIG, exclude=[test_set, bad])
    assert str(error.value).startswith(f"{bad}: ")
    assert cause in str(error.value)
    assert "\n" not in str(error.value)
    assert not out.parent.exists()


def test_a_picture_that_cannot_be_decoded_is_said(source, test_set, tmp_path, caplog):
    images, same = pickle.loads(test_set.read_bytes())
    some = tmp_path / "some.bin"
    write_bin(some, [b"text", images[1], *images[2:]], same)
    found = run_build(source, tmp_path / "out", CONFIG, exclude=[some])
    (warning,) = (line for line in found.info["warnings"] if "decoded" in line)
    assert warning == "some: 1 of 80 pictures cannot be decoded, only their bytes are found"
    assert caplog.messages.count(warning) == 1


def test_what_may_not_be_found_is_said(source, test_set, tmp_path):
    pictures = [cv2.imdecode(np.frombuffer(image, np.uint8), 1) for image in read_bin(test_set).images[:4]]
    large = [cv2.imencode(".png", cv2.resize(picture, (250, 240)))[1].tobytes() for picture in pictures]
    write_bin(tmp_path / "large.bin", large, [True, False])
    config = BuildConfig(shards=2, near_across=-1)
    found = run_build(source, tmp_path / "out", config, exclude=[tmp_path / "large.bin", test_set])
    assert set(drops(found, reason="test_overlap")) == {key for key, _, _ in planted(source, "test_exact")}
    said = [line for line in found.info["warnings"] if "broken" not in line]
    assert said == [
        "of the sets kept out only the same bytes are found, as no distance is allowed",
        "large: 4 of 4 pictures are not of 112 x 112 pixels (the first is of 240 x 250): "
        "what shows more or less of a face than they do is not found",
    ]
    assert found.info["dedupe"]["test_overlap"] == {"large": 0, "verification": 3}


def rec_of(folder: Path, people: list[list[bytes]]) -> Path:
    """Returns a folder with a train.rec, MXNet's, of these people's pictures."""
    folder.mkdir()
    recordio = load().recordio
    writer = recordio.MXIndexedRecordIO(str(folder / "train.idx"), str(folder / "train.rec"), "w")
    key = 0
    for label, pictures in enumerate(people):
        for picture in pictures:
            writer.write_idx(key, recordio.pack(recordio.IRHeader(0, float(label), key, 0), picture))
            key += 1
    writer.close()
    return folder


def test_an_identity_may_go_whole_and_all_may_go(source, test_set, tmp_path):
    records = read_rec(source / "train.rec")
    defects = {int(row["key"]) for row in read_defects(source)}
    people: dict[int, list[bytes]] = {}
    for key, (label, picture) in records.items():
        if key not in defects:
            people.setdefault(label, []).append(picture)
    first, second, third = sorted(people.values(), key=len, reverse=True)[:3]
    mixed = rec_of(tmp_path / "mixed", [first[:4], second[:4], third[:4]])
    kept_out = tmp_path / "first.bin"
    write_bin(kept_out, first[:4], [True, True])
    config = BuildConfig(shards=1)
    found = build("mixed", find_files(mixed)[0], tmp_path / "out", config, by_shared_worker(), exclude=[kept_out])
    gone = found.table("identities", where=ds.field("label_original") == "0").to_pylist()[0]
    assert (gone["label"], gone["kept"], gone["test_overlap"]) == (None, 0, 4)
    assert found.totals["identities"] == 2
    (warning,) = (line for line in found.info["warnings"] if "left out whole" in line)
    assert warning.startswith("1 identities are left out whole (0): they are in the sets kept out (test_overlap)")
    alone = rec_of(tmp_path / "alone", [first[:4]])
    with pytest.raises(EmptyDatasetError, match=r"4 records scanned, none kept \(test_overlap 4\)"):
        build("alone", find_files(alone)[0], tmp_path / "none", config, by_shared_worker(), exclude=[kept_out])
    assert not (tmp_path / "none").exists()
    assert not work_folder(tmp_path / "none").exists()


def test_an_older_work_folder_has_no_details(tmp_path):
    """route() of a build that an earlier release began: the rows stay as they are."""
    rows = pa.table({"sid": pa.array([3, 5]), "detail": pa.array(["cut", None], pa.string())})
    assert route._explained(rows, tmp_path / "details.parquet", 0, 9).equals(rows)

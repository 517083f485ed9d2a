"""A split is a dataset without the identities held out, and a set of pairs that only they make."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.model_selection import KFold

from evaluation.protocol.verification import verify as measure
from faceshards.dataset.manifest import Manifest
from faceshards.dataset.verify import verify
from faceshards.errors import BuildError
from faceshards.formats.mindrecord.reader import Shard
from faceshards.formats.verification_bin import read_bin
from faceshards.storage.location import StoredPath
from pipelines import workspace
from pipelines.derived import split_at
from pipelines.runner import Execution
from pipelines.split.plan import Request
from pipelines.split.unseen import _odd_sizes
from tests.faceshards.cli.test_cli import call, refusal
from tests.faceshards.test_stored_dataset import upload as put
from tests.pipelines.build_fixtures import ROOT, digests, rewrite_info
from tests.pipelines.split.conftest import REQUEST, run_split
from tests.pipelines.test_upload import downloaded


def by_sid(found: Manifest, table: str) -> dict[int, dict]:
    return {row["sid"]: row for row in found.table(table).to_pylist()}


def loaded(found: Manifest) -> tuple[list[str], np.ndarray]:
    """Returns the sha256 (hex) of each picture of the set, as plain pickle reads it, and whether a pair is genuine."""
    images, same = pickle.loads((found.path / "unseen.bin").read_bytes())
    return [hashlib.sha256(image).hexdigest() for image in images], np.array(same)


def links(parent: Manifest) -> list[tuple[str, str]]:
    rows = [*parent.table("conflicts").to_pylist(), *parent.table("identity_links").to_pylist()]
    return [(row["label_original_a"], row["label_original_b"]) for row in rows]


def test_what_is_left_is_the_parents_byte_for_byte(parent: Manifest, child: Manifest) -> None:
    assert list(verify(child)) == []
    before, after = by_sid(parent, "images"), by_sid(child, "images")
    left = {row["label_original"] for row in after.values()}
    assert {sid for sid, row in before.items() if row["label_original"] in left} == set(after)
    assert len(left) == 60 - 27
    moved = ("label", "shard", "row")
    for sid, row in after.items():
        assert {**row, **dict.fromkeys(moved)} == {**before[sid], **dict.fromkeys(moved)}
    # Labels are 0..C-1 in the parent's order.
    label = {row["label_original"]: row["label"] for row in after.values()}
    old = {row["label_original"]: row["label"] for row in before.values()}
    assert [label[name] for name in sorted(left, key=old.__getitem__)] == list(range(len(left)))
    for entry in child.table("shards").to_pylist():
        with Shard(child.shard_path(entry["file"])) as shard:
            for new, sid, image in shard.rows():
                assert new == after[sid]["label"]
                assert hashlib.sha256(image).digest() == before[sid]["sha256"]


def test_shards_are_balanced(child: Manifest) -> None:
    rows = child.table("images", ["shard", "label"])
    counts = np.zeros((child.totals["shards"], child.totals["identities"]), int)
    np.add.at(counts, (rows["shard"].to_numpy(), rows["label"].to_numpy()), 1)
    assert np.ptp(counts.sum(axis=1)) <= 1
    assert (np.ptp(counts, axis=0) <= 1).all()


def test_what_is_held_out_is_in_the_books(parent: Manifest, child: Manifest) -> None:
    assert parent.totals["dropped"]["blurred"] == child.totals["dropped"]["blurred"] > 0
    before, after = by_sid(parent, "dropped"), by_sid(child, "dropped")
    kept, left = by_sid(parent, "images"), by_sid(child, "images")
    fresh = {sid: row for sid, row in after.items() if sid not in before}
    assert {sid: after[sid] for sid in before} == before
    assert set(fresh) == set(kept) - set(left)
    for sid, row in fresh.items():
        named = {name: kept[sid][name] for name in ("sid", "source", "key", "label_original")}
        assert row == {**named, "reason": "held_out", "detail": None, "representative": None, "distance": None}
    assert child.table("dropped", ["sid"])["sid"].to_pylist() == sorted(after)
    assert child.totals["scanned"] == parent.totals["scanned"] == len(after) + len(left)
    assert child.totals["dropped"] == {**parent.totals["dropped"], "held_out": len(fresh)}
    for table in ("conflicts", "identity_links"):
        assert child.table(table) == parent.table(table)
    rows = {row["label_original"]: row for row in child.table("identities").to_pylist()}
    for row in parent.table("identities").to_pylist():
        now = rows.pop(row["label_original"])
        held = row["label"] is not None and now["label"] is None
        assert (now["kept"], now["held_out"]) == ((0, row["kept"]) if held else (row["kept"], 0))
    assert rows == {}


def test_pairs_are_of_people_whom_training_never_sees(parent: Manifest, child: Manifest) -> None:
    who = {row["sha256"].hex(): row["label_original"] for row in by_sid(parent, "images").values()}
    pictures, same = loaded(child)
    names = [who[picture] for picture in pictures]
    assert not set(names) & set(child.table("images")["label_original"].to_pylist())
    assert len(same) == 400
    assert same.tolist() == [a == b for a, b in zip(names[::2], names[1::2], strict=True)]
    pairs = [frozenset(pair) for pair in zip(pictures[::2], pictures[1::2], strict=True)]
    assert len(set(pairs)) == 400
    assert {len(pair) for pair in pairs} == {2}
    linked = {frozenset(pair) for pair in links(parent)}
    assert linked
    assert not linked & {frozenset(pair) for pair in zip(names[::2], names[1::2], strict=True)}
    people = np.array(names).reshape(-1, 2)
    folds = [set(people[fold].ravel()) for _, fold in KFold(10, shuffle=False).split(people)]
    assert sum(map(len, folds)) == len(set.union(*folds))
    for _, fold in KFold(10, shuffle=False).split(people):
        assert same[fold].sum() == 20
    table = pq.read_table(child.path / "unseen.parquet").to_pylist()
    assert [row[f"sha256_{side}"].hex() for row in table for side in "ab"] == pictures
    assert [row[f"label_original_{side}"] for row in table for side in "ab"] == names
    assert [row["same"] for row in table] == same.tolist()
    assert [row["fold"] for row in table] == [fold for fold in range(10) for _ in range(40)]
    sids = by_sid(parent, "images")
    assert all(sids[row[f"sid_{side}"]]["sha256"] == row[f"sha256_{side}"] for row in table for side in "ab")


def test_identities_that_share_photographs_are_on_one_side(parent: Manifest, child: Manifest) -> None:
    left = set(child.table("images")["label_original"].to_pylist())
    present = set(parent.table("images")["label_original"].to_pylist())
    sides = [(a in left, b in left) for a, b in links(parent) if {a, b} <= present]
    assert (True, True) in sides
    assert (False, False) in sides
    assert all(a == b for a, b in sides)


def test_the_evaluator_reads_the_set(child: Manifest) -> None:
    found = read_bin(child.path / "unseen.bin")
    names = [
        row[f"label_original_{s}"] for row in pq.read_table(child.path / "unseen.parquet").to_pylist() for s in "ab"
    ]
    faces = np.unique(names, return_inverse=True)[1]
    measured = measure(np.eye(faces.max() + 1)[faces], found.same, bootstrap=0)  # of a model that knows everybody
    assert (measured.pairs, measured.impostors, measured.value("accuracy")) == (400, 200, 1.0)
    assert measured.warnings == ()


def test_a_split_says_where_it_comes_from(parent: Manifest, child: Manifest, tmp_path: Path) -> None:
    about = child.info["split"]
    assert (about["unseen"], about["pairs"], about["seed"]) == ("45%", 400, 3)
    assert about["parent"]["fingerprint"] == parent.fingerprint != child.fingerprint
    assert child.info["unseen"] == {"file": "unseen.bin", "pairs": 400, "identities": 27} | {
        "possible": child.info["unseen"]["possible"]
    }
    for name in ("name", "sources", "config", "warnings"):
        assert child.info[name] == parent.info[name]
    again = run_split(child, tmp_path / "again", Request("31", 20))
    assert list(verify(again)) == []
    assert again.info["split"]["parent"] | {"tables": ""} == {
        **{"fingerprint": child.fingerprint, "tables": "", "split": about}
    }
    assert again.totals["identities"] == 60 - 27 - 31
    assert again.totals["dropped"]["held_out"] > child.totals["dropped"]["held_out"]


def test_workers_decide_nothing_and_what_is_there_stays(parent: Manifest, child: Manifest, tmp_path: Path) -> None:
    out = tmp_path / "same"
    result = call(
        *("split", parent.path, "--unseen", "45%", "--pairs", "400", "--seed", "3", "--out", out),
        *("--workers", "2", "--quiet", "--json"),
    )
    assert (result.exit_code, result.stderr) == (0, "")
    assert digests(out) == digests(child.path)
    found = json.loads(result.stdout)
    assert found["unseen"]["file"] == str(out / "unseen.bin")
    assert (found["identities"], found["unseen"]["identities"]) == (33, 27)
    summary = call("manifest", "summary", out).stdout
    assert f"  held out              27  identities of {parent.fingerprint[:12]}…; 400 pairs in unseen.bin" in summary
    before = digests(out)
    again = call("split", parent.path, "--unseen", "45%", "--pairs", "400", "--seed", "3", "--out", out)
    assert (again.exit_code, again.stderr.removeprefix("WARNING ")) == (
        0,
        f"{out}: already split off the same dataset as asked; nothing to do\n",
    )
    assert "a dataset is published there, from another request; choose another folder, or remove it" in refusal(
        "split", parent.path, "--unseen", "45%", "--pairs", "400", "--seed", "4", "--out", out
    )
    assert digests(out) == before


def test_what_cannot_be_is_refused_in_a_line(parent: Manifest, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    cases = [
        (
            ("--unseen", "19"),
            tmp_path / "out",
            "10 folds need 20 persons, and identities that share photographs count as one",
        ),
        (("--unseen", "30"), tmp_path / "out", "not 6,000: hold out more, or take --pairs "),
        (("--unseen", "59"), tmp_path / "out", "of 60 identities fewer than 2 would be left to train on"),
        ((), foreign, "exists and is no dataset of ours; it is not touched"),
        ((), foreign / "thesis.txt", "exists and is no dataset of ours; it is not touched"),
        ((), parent.path, "lies in the dataset"),
        ((), parent.path / "train", "lies in the dataset"),
        ((), Path(parent.info["sources"][0]["path"]).parent / "train", "lies in the source"),
        ((), tmp_path / "a:b", "which MindRecord forbids in names"),
    ]
    for more, out, said in cases:
        assert said in refusal("split", parent.path, "--out", out, *more)
    for more in (("--unseen", "5.5"), ("--pairs", "6001"), ("--pairs", "0"), ("--seed", "-1")):
        refusal("split", parent.path, "--out", tmp_path / "out", *more, code=2)
    assert "no dataset published there" in refusal("split", foreign, "--out", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["foreign"]
    assert (foreign / "thesis.txt").read_text() == "mine"


def test_a_build_does_not_take_a_split_for_its_own(child: Manifest) -> None:
    request = {name: child.info[name] for name in ("name", "config", "sources")}
    with pytest.raises(BuildError, match="from another request; --overwrite replaces it"):
        workspace.published(child.path, request, strict=False)


def test_a_damaged_set_is_found(child: Manifest, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(child.path, copy)
    with (copy / "unseen.bin").open("ab") as file:
        file.write(b"x")
    (line,) = verify(Manifest(copy))
    assert str(line).startswith(f"{copy / 'unseen.bin'}: ")
    rewrite_info(copy)
    assert list(verify(Manifest(copy))) == []


EXAMPLE = re.compile(r"^    \$ (faceshards .*)\n((?:    [^$\n].*\n)+)", re.MULTILINE)


def test_the_commands_of_the_page(parent: Manifest, child: Manifest) -> None:
    """The page shows the set of `make shards`; here the same is said with other numbers."""
    examples = EXAMPLE.findall((ROOT / "docs" / "splits.md").read_text())
    assert len(examples) == 4
    places = {"data/shards/synthetic_train": str(child.path), "data/shards/synthetic": str(parent.path)}
    places |= {"data/shards/other": str(child.path.with_name("other"))}
    here = {"--unseen 20% --pairs 2000": "--unseen 45% --pairs 400 --seed 3", "20% --pairs": "45% --seed 3 --pairs"}
    for line, output in examples:
        words = line
        for text, instead in here.items():
            words = words.replace(text, instead)
        result = call(*(places.get(word, word) for word in words.split()[1:]))
        said = result.stdout or result.stderr
        assert result.exit_code == output.strip().startswith("Error"), line
        for place, path in places.items():
            said, output = said.replace(path, "PATH"), output.replace(place, "PATH")
        shape = [re.sub(r"[\d,.]+|\s+", " ", text).split() for text in (said, output)]
        assert shape[0] == shape[1], line


def test_pictures_that_no_backbone_takes_are_told() -> None:
    rows = pa.table({"height": [112, 128, 112, 112], "width": [112, 112, 112, 96]})
    pairs = np.array([[0, 1], [0, 2], [1, 3]])
    assert _odd_sizes(rows, pairs) == [
        "unseen.bin: 2 of 4 pictures are not 112 x 112, eval leaves their 2 of 3 pairs out"
    ]
    assert _odd_sizes(rows.slice(0, 1), pairs[:0]) == []


def test_a_split_in_a_bucket_is_that_of_the_disk(
    parent: Manifest, child: Manifest, bucket: StoredPath, worker: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored, out, work = put(parent.path, bucket / "set"), bucket / "train", tmp_path / "work"
    found = split_at(stored, out, REQUEST, Execution(1, worker, quiet=True), work=work)
    assert found.path == out
    assert list(verify(found)) == []
    assert digests(downloaded(out, tmp_path / "copy")) == digests(child.path)
    assert [path.name for path in work.iterdir()] == ["lock"]
    caplog.clear()
    split_at(stored, out, REQUEST, Execution(1, worker, quiet=True), work=work)
    assert caplog.messages == [f"{out}: already split off the same dataset as asked; nothing to do"]
    with pytest.raises(BuildError, match="from another request; choose another prefix"):
        split_at(stored, out, Request("45%", 380, seed=3), Execution(1, worker), work=work)

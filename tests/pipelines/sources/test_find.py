"""Which files a path means: what is left aside is told, and a root that holds no people is refused."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from faceshards.errors import SourceError
from pipelines.sources.find import cut, find_files
from pipelines.sources.leftovers import is_leftover
from pipelines.sources.registry import SOURCES, labels
from tests.recs import jpeg, pack, write_im2rec, write_insightface, write_rec

IMAGE = jpeg(1, 8, 8)


def folders(root: Path, *names: str, count: int = 2) -> Path:
    """Writes pictures into folders of a root, and returns the root."""
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
        for n in range(count):
            (root / name / f"{n}.jpg").write_bytes(IMAGE)
    return root


def scanned(root: Path, work: Path) -> tuple[list[str], list[str]]:
    """Returns the keys of a folder's pictures, and all warnings."""
    files, warnings = find_files(root)
    parts, more = cut(files, work, 0)
    return [key for part in parts for key in SOURCES["folder"].scan(part).key], warnings + more


def doubt(root: Path, work: Path) -> str:
    (part, *_), _ = cut(find_files(root)[0], work, 0)
    return SOURCES[part.kind].doubt(part)


# ------------------------------------------------------------------------------------------------------ leftovers


@pytest.mark.parametrize(
    "name",
    [
        *(".ipynb_checkpoints", ".git", ".DS_Store", "._0.jpg", ".AppleDouble", ":2eDS_Store", "__MACOSX", "Icon\r"),
        *("@eaDir", "#recycle", "@Recycle", "SYNOPHOTO_THUMB_M.jpg", "Thumbs.db", "desktop.ini", "$RECYCLE.BIN"),
        *("System Volume Information", "lost+found", "__pycache__", "thumbs", "THUMBS.DB"),
    ],
)
def test_what_systems_and_tools_leave_is_known_by_name(name):
    assert is_leftover(name)


@pytest.mark.parametrize("name", ["alice", "_alice", "@alice", "#1", "Thumbelina", "0001", "__x__", "~bob", "a.b"])
def test_odd_names_of_people_are_no_leftovers(name):
    assert not is_leftover(name)


def test_leftovers_are_no_people_at_any_depth_and_are_counted_in_one_warning(tmp_path):
    root = folders(tmp_path / "set", "alice", "bob")
    people = ["alice/0.jpg", "alice/1.jpg", "bob/0.jpg", "bob/1.jpg"]
    assert scanned(root, tmp_path) == (people, [])
    folders(root, ".ipynb_checkpoints", "bob/.ipynb_checkpoints", "alice/@eaDir/0.jpg", "__MACOSX/alice")
    for name in ("alice/._0.jpg", "bob/._1.jpg", ".DS_Store", "bob/Thumbs.db"):
        (root / name).touch()
    keys, (warning,) = scanned(root, tmp_path)
    assert keys == people
    assert warning == (
        f"{root}: 8 hidden or system files and folders (10 pictures) are left aside, rename any that is yours: "
        "'.ipynb_checkpoints' x 2 (4 pictures), '._*' x 2 (2 pictures), '@eaDir' (2 pictures), '__MACOSX' (2 pictures)"
        ", '.DS_Store', 'Thumbs.db'"
    )


def test_a_source_of_leftovers_alone_is_refused_by_their_names(tmp_path):
    root = folders(tmp_path / "set", ".alice", "@eaDir")
    with pytest.raises(SourceError, match=r"no \.rec file.*'\.alice' \(2 pictures\), '@eaDir' \(2 pictures\)$"):
        find_files(root)


def test_leftovers_beside_a_rec_are_no_recs(tmp_path):
    write_im2rec(tmp_path, [(0, IMAGE)], "a")
    (tmp_path / "._a.rec").write_bytes(bytes(82))
    files, (warning,) = find_files(tmp_path)
    assert [file.name for file in files] == ["a.rec"]
    assert "'._*'" in warning


# -------------------------------------------------------------------------------------------------------- nesting


@pytest.mark.parametrize(
    ("names", "roots"),
    [
        (("train/a", "train/b", "val/a"), ["train (2 folders)", "val (1 folders)"]),
        (("validation/a", "validation/b", "train/a"), ["train (1 folders)", "validation (2 folders)"]),
        (("S/train/a", "S/train/b", "S/test/c"), ["S/train (2 folders)", "S/test (1 folders)"]),
        (("imgs/a", "imgs/b"), ["imgs (2 folders)"]),
        (("Lfw-Train/a", "x/b"), ["Lfw-Train (1 folders)", "x (1 folders)"]),
        (("casia/a",), ["casia (1 folders)"]),
        (("0/a", "0/b", "0/c", "1/d", "1/e", "1/f"), ["0 (3 folders)", "1 (3 folders)"]),
    ],
)
def test_a_root_too_high_is_doubted_and_the_likely_one_named(tmp_path, names, roots):
    root = folders(tmp_path / "set", *names)
    (root / os.path.dirname(names[0]) / "sheet.jpg").write_bytes(IMAGE)  # of nobody
    line = doubt(root, tmp_path)
    assert ", or ".join(f"--source {root}/{path}" for path in roots) + "; pass --set nested=true" in line
    best = roots[0].split(" ")[0]
    (root / os.path.dirname(names[0]) / "sheet.jpg").unlink()
    assert doubt(root / best, tmp_path) == ""


def test_the_likely_root_is_named_as_it_would_be_typed(tmp_path, monkeypatch):
    folders(tmp_path / "set", "train/a", "train/b")
    monkeypatch.chdir(tmp_path)
    assert "--source set/train (2 folders)" in doubt(Path("set"), tmp_path)


@pytest.mark.parametrize(
    ("names", "counts"),
    [
        (("id1/v1", "id1/v2", "id2/v1", "id2/v2", "id3/v1", "id3/v2"), "12 of 12 pictures .* such as id1/v1; "),
        (("ann", "bob", "bob/old"), "2 of 6 pictures .* such as bob/old; "),
        (("ann", "bob", "bob/old", "bob/new"), "4 of 8 pictures .* such as bob/"),
    ],
)
def test_pictures_of_people_in_sub_folders_are_for_the_user_to_vouch_for(tmp_path, names, counts):
    root = folders(tmp_path / "set", *names)
    line = doubt(root, tmp_path)
    assert re.search(counts, line)
    assert "pass --set nested=true" in line


def test_parts_of_a_set_are_no_people(tmp_path):
    assert "(test, train) are named like parts of a set" in doubt(folders(tmp_path / "a", "train", "test"), tmp_path)
    assert "(test2, train_images)" in doubt(folders(tmp_path / "c", "train_images", "test2"), tmp_path)
    assert doubt(folders(tmp_path / "b", "train", "test", "ann", "Test Pilot"), tmp_path) == ""


def test_pictures_without_folders_are_counted_in_the_refusal(tmp_path):
    folders(tmp_path, "set", count=4)
    with pytest.raises(SourceError, match=r"no sub-folder with .*; 4 pictures lie in the folder itself"):
        find_files(tmp_path / "set")


# --------------------------------------------------------------------------------------------------- several files


def test_held_out_recs_are_left_unless_named(tmp_path):
    for name in ("x_train", "x_val", "LfwTest", "valerie", "contest"):
        write_im2rec(tmp_path, [(0, IMAGE)], name)
    files, (warning,) = find_files(tmp_path)
    assert [file.name for file in files] == ["contest.rec", "valerie.rec", "x_train.rec"]
    assert "leaves LfwTest.rec, x_val.rec, held-out" in warning
    files, warnings = find_files(tmp_path / "x_val.rec", tmp_path / "LfwTest.rec")
    assert [file.name for file in files] == ["x_val.rec", "LfwTest.rec"]
    assert not warnings


def test_a_folder_of_held_out_recs_alone_is_refused(tmp_path):
    write_im2rec(tmp_path, [(0, IMAGE)], "val")
    with pytest.raises(SourceError, match=r"only held-out sets in it \(val\.rec\); name one with --source"):
        find_files(tmp_path)


def test_a_file_with_several_names_is_read_once(tmp_path):
    write_im2rec(tmp_path / "set", [(0, IMAGE)], "a")
    (tmp_path / "set" / "b.rec").symlink_to("a.rec")
    os.link(tmp_path / "set" / "a.rec", tmp_path / "set" / "c.rec")
    files, warnings = find_files(tmp_path / "set", tmp_path / "set" / "a.rec")
    assert [file.name for file in files] == ["a.rec"]
    assert [line.split(": is ")[0][-5:] for line in warnings] == ["b.rec", "c.rec", "a.rec"]


def test_pictures_beside_a_rec_are_told(tmp_path):
    write_insightface(tmp_path, [[IMAGE]])
    folders(tmp_path, "imgs/a", "@eaDir")
    shutil.copyfile(tmp_path / "train.rec", folders(tmp_path / "older", "notes", count=0) / "x.rec")
    files, (warning,) = find_files(tmp_path)
    assert [file.name for file in files] == ["train.rec"]
    assert "leaves 2 folders with pictures, .rec or .tar files: 'imgs', 'older'" in warning


def test_sources_of_one_name_are_told_apart(tmp_path):
    for name in ("one/set", "two/set", "three/other"):
        write_insightface(tmp_path / name, [[IMAGE]])
    files, _ = find_files(*(tmp_path / name for name in ("one/set", "two/set", "three/other")))
    assert [file.name for file in files] == ["one/set/train.rec", "two/set/train.rec", "other/train.rec"]
    roots = [folders(tmp_path / name, "ann") for name in ("a/x", "b/x", "y")]
    assert [file.name for file in find_files(*roots)[0]] == ["a/x", "b/x", "y"]


def test_a_folder_within_another_is_refused(tmp_path):
    root = folders(tmp_path / "set", "ann/v1", "bob/v1")
    with pytest.raises(SourceError, match=r"ann: lies in .*set, and would be read twice"):
        find_files(root, root / "ann")


# --------------------------------------------------------------------------------------- what files say of themselves


def test_labels_are_those_of_images(tmp_path):
    payloads = [pack(b"", [9.0, 12.0]), pack(b"x", 3.0), pack(b"x", [1.0, 7.0]), pack(b"x", -1.0), pack(b"x", 3.0)]
    write_rec(tmp_path / "a.rec", payloads)
    (part,), _ = cut(find_files(tmp_path / "a.rec")[0], tmp_path, 0)
    assert labels(part).tolist() == [1, 3]
    folders(tmp_path / "set", "ann", "bob", "eve")
    parts, _ = cut(find_files(tmp_path / "set")[0], tmp_path, 1)
    assert [labels(part).tolist() for part in parts] == [[0], [0], [1], [1], [2], [2]]


def test_a_header_record_claims_its_images_as_far_as_float32_tells(tmp_path):
    write_insightface(tmp_path, [[IMAGE] * 3, [IMAGE] * 2])
    claims = SOURCES["recordio"].claims(find_files(tmp_path)[0][0])
    assert (list(claims.images), claims.identities) == ([5], 2)
    write_rec(tmp_path / "a.rec", [pack(b"", [16_880_353.0, 17_000_000.0]), pack(b"x", 0.0)])
    (tmp_path / "property").write_text("nothing")
    claims = SOURCES["recordio"].claims(find_files(tmp_path / "a.rec")[0][0])
    assert 16_880_352 in claims.images  # 16,880,353 is no float32
    assert len(claims.images) <= 3
    assert claims.identities is None
    for payload in (pack(b"x", [3.0, 4.0]), pack(b"x", 0.0), pack(b"", [1.0, 3.0], key=7)):
        write_rec(tmp_path / "b.rec", [payload])
        assert SOURCES["recordio"].claims(find_files(tmp_path / "b.rec")[0][0]).images is None

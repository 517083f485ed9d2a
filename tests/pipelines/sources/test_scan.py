"""Sources found, cut and scanned: what MXNet packed comes back whole, and what is wrong has a row and a reason."""

from __future__ import annotations

import io
import os
import struct
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evaluation.models import mxnet_import
from faceshards.dataset.schema import REASONS
from faceshards.errors import ConfigError, SourceError
from pipelines.config import BuildConfig
from pipelines.records import MAX_LABEL
from pipelines.sources import folder, recordio
from pipelines.sources.base import OpenFiles, Place, SourceFile
from pipelines.sources.catalog import dataset_folder, known_datasets
from pipelines.sources.find import cut, find_files
from pipelines.sources.folder import walk_images
from pipelines.sources.registry import SOURCES, read_images, scan
from pipelines.stages.signatures import sign
from tests.recs import encode, jpeg, pack, pack_flag, png, texture, write_im2rec, write_insightface, write_rec

SIZES = [0, 4, 1000, 2500, 1 << 30]


def scan_all(source, work, partition_bytes=1 << 30):
    """Returns a source's rows as (offset, key, label, label_original, reason, detail, image), counts and warnings."""
    work.mkdir(exist_ok=True)
    files, warnings = find_files(source)
    partitions, more = cut(files, work, partition_bytes)
    assert [part.number for part in partitions] == list(range(len(partitions)))
    rows, records, structural = [], 0, 0
    for part in partitions:
        found = scan(part)
        n = len(found.images)
        assert all(len(getattr(found, name)) == n for name in ("offset", "header", "size", "parts", "ordinal", "key"))
        assert all(len(getattr(found, name)) == n for name in ("label", "label_original", "reason", "detail"))
        assert found.records >= found.structural >= 0
        assert all((reason == 0) == (detail is None) for reason, detail in zip(found.reason, found.detail, strict=True))
        for i in range(n):
            image = None if found.images[i] is None else bytes(found.images[i])
            assert image is None or len(image) == found.size[i]
            reason = REASONS[found.reason[i]]
            rows.append(
                (
                    int(found.offset[i]),
                    found.key[i],
                    int(found.label[i]),
                    found.label_original[i],
                    reason,
                    found.detail[i],
                    image,
                )
            )
        records += found.records
        structural += found.structural
    return rows, (records, structural), warnings + more


@pytest.fixture(scope="module")
def faces():
    """Twelve pictures of 8 x 8 pixels in some 300 bytes each: files of a few kilobytes are cut every 4 bytes below."""
    options = (cv2.IMWRITE_JPEG_QUALITY, 50, cv2.IMWRITE_JPEG_OPTIMIZE, 1)
    return [[encode(texture(10 * identity + n, 8, 8), ".jpg", *options) for n in range(3)] for identity in range(4)]


# ------------------------------------------------------------------------------------------------------ layouts


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("header", [True, False])
def test_insightface_layout(tmp_path, faces, header, size):
    write_insightface(tmp_path / "set", faces, header)
    rows, counts, warnings = scan_all(tmp_path / "set", tmp_path / "work", size)
    flat = [(label, image) for label, images in enumerate(faces) for image in images]
    assert [(row[2], row[6]) for row in rows] == flat
    assert [row[1] for row in rows] == [str(key) for key in range(1, 1 + len(flat))]
    assert [row[3] for row in rows] == [str(label) for label, _ in flat]
    assert {row[4] for row in rows} == {"kept"}
    assert counts == (len(flat) + len(faces) + header, len(faces) + header)
    assert not warnings


@pytest.mark.parametrize("size", SIZES)
def test_im2rec_layout(tmp_path, faces, size):
    labelled = [(3.0, faces[3][0]), (0.0, faces[0][0]), ([2.0, 9.0, 9.0], faces[2][0]), ([1.0], faces[1][1])]
    write_im2rec(tmp_path / "set", labelled)
    rows, counts, _ = scan_all(tmp_path / "set", tmp_path / "work", size)
    assert [(row[1], row[2], row[6]) for row in rows] == [
        ("0", 3, faces[3][0]),
        ("1", 0, faces[0][0]),
        ("2", 2, faces[2][0]),
        ("3", 1, faces[1][1]),
    ]
    assert counts == (4, 0)


def test_the_records_are_those_mxnet_unpacks(tmp_path, face_data):
    recordio = mxnet_import.load().recordio
    for name in ("train", "im2rec"):
        base = face_data / "orl" / name
        reader = recordio.MXIndexedRecordIO(f"{base}.idx", f"{base}.rec", "r")
        expected = {}
        for key in reader.keys:
            header, image = recordio.unpack(reader.read_idx(key))
            if image:
                expected[str(key)] = (int(np.atleast_1d(header.label)[0]), image)
        rows, _, _ = scan_all(Path(f"{base}.rec"), tmp_path / name, 100_000)
        assert {row[1]: (row[2], row[6]) for row in rows} == expected


def test_images_that_hold_the_magic_word_come_back_whole(tmp_path):
    images = [b"\xff\xd8" + b"\x0a\x23\xd7\xce" * n + b"abc" for n in range(1, 6)]
    images += [b"\xff\xd8ab" + b"\x0a\x23\xd7\xce" * n for n in range(1, 6)]
    write_im2rec(tmp_path / "set", [(n, image) for n, image in enumerate(map(bytes, images))])
    for size in (4, 64, 1 << 20):
        rows, _, _ = scan_all(tmp_path / "set", tmp_path / "work", size)
        assert [(row[2], row[6]) for row in rows] == list(enumerate(images))


def test_a_magic_word_in_the_record_header_is_read(tmp_path):
    label = struct.unpack("<f", b"\x0a\x23\xd7\xce")[0]  # as a label it is negative, but it is read
    payload = pack_flag(0, label, b"image")
    write_rec(tmp_path / "a.rec", [payload, pack_flag(1, label, struct.pack("<f", 7) + b"image")])
    rows, _, _ = scan_all(tmp_path / "a.rec", tmp_path / "work")
    assert [(row[2], row[4]) for row in rows] == [(-1, "bad_label"), (7, "kept")]


# --------------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize("size", SIZES)
def test_without_idx_a_record_has_no_key_but_its_ordinal(tmp_path, faces, size):
    write_insightface(tmp_path / "set", faces)
    (tmp_path / "set" / "train.idx").unlink()
    files, _ = find_files(tmp_path / "set")
    before = 0
    for part in cut(files, tmp_path, size)[0]:
        found = scan(part)
        assert found.key == [None] * len(found.images)
        assert all(0 <= place < found.records for place in found.ordinal)
        assert (np.diff(found.ordinal) > 0).all()
        before += len(found.images)
    assert before == 12


@pytest.mark.parametrize("size", SIZES)
def test_idx_that_lacks_records_and_names_others(tmp_path, faces, size):
    offsets = write_insightface(tmp_path / "set", faces)
    index = tmp_path / "set" / "train.idx"
    lines = index.read_text().splitlines()
    lines = [line for line in lines if line.split("\t")[0] not in ("2", "5")]
    extra = {90: offsets[-1], 91: offsets[-1] + 4096, 92: offsets[3] + 8, 93: offsets[3] + 1, 94: -8, 95: 10**17}
    index.write_text("\n".join(lines + [f"{key}\t{offset}" for key, offset in extra.items()]) + "\n")
    rows, _, _ = scan_all(tmp_path / "set", tmp_path / "work", size)
    images = [row for row in rows if row[4] == "kept"]
    keys = [str(key) for key in range(1, 13)]
    keys[1], keys[4] = f"@{offsets[2]}", f"@{offsets[5]}"
    assert [row[1] for row in images] == keys
    missing = {int(row[1]): row[0] for row in rows if row[4] == "missing"}
    assert missing == extra
    assert all(row[2] == -1 and row[6] is None and str(row[0]) in row[5] for row in rows if row[4] == "missing")
    assert len(rows) == 12 + len(extra)
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)


def test_two_keys_for_one_record(tmp_path, faces):
    offsets = write_insightface(tmp_path / "set", faces[:1])
    index = tmp_path / "set" / "train.idx"
    index.write_text(index.read_text() + f"50\t{offsets[1]}\n")
    rows, _, _ = scan_all(tmp_path / "set", tmp_path / "work")
    assert [(row[1], row[4]) for row in rows if row[0] == offsets[1]] == [("1", "kept"), ("50", "missing")]


@pytest.mark.parametrize("what", ["magic", "length", "cut"])
def test_damage_keeps_its_key_however_the_file_is_cut(tmp_path, faces, what):
    offsets = write_insightface(tmp_path / "set", faces)
    path = tmp_path / "set" / "train.rec"
    data = bytearray(path.read_bytes())
    if what == "magic":
        data[offsets[4]] ^= 1
    elif what == "length":
        data[offsets[4] + 5] ^= 1
    else:
        del data[offsets[4] + 40 :]
    path.write_bytes(bytes(data))
    expected, counts, _ = scan_all(tmp_path / "set", tmp_path / "work")
    bad = [row for row in expected if row[4] == "damaged"]
    assert [(row[0], row[1]) for row in bad] == [(offsets[4], "4")]
    assert all(row[4] == "kept" for row in expected if row[0] < offsets[4])
    if what == "cut":
        assert [row[1] for row in expected if row[4] == "missing"] == [str(key) for key in range(5, 17)]
    for size in (4, 20, offsets[4], offsets[4] + 4, 2000):
        assert scan_all(tmp_path / "set", tmp_path / "work", size)[:2] == (expected, counts)


def test_a_bad_idx_is_told(tmp_path, faces):
    write_insightface(tmp_path / "set", faces)
    index = tmp_path / "set" / "train.idx"
    index.write_text(index.read_text() + "what\n\n3\t12\n")
    _, _, warnings = scan_all(tmp_path / "set", tmp_path / "work")
    assert len(warnings) == 2
    assert all(str(index) in line for line in warnings)


# ------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("label", "expected", "cause"),
    [
        (0.0, 0, None),
        (-0.0, 0, None),
        (float(MAX_LABEL), MAX_LABEL, None),
        (float(1 << 24), -1, "beyond"),
        (42_474_558.0, -1, "beyond"),
        (float("nan"), -1, "not finite"),
        (float("inf"), -1, "not finite"),
        (float("-inf"), -1, "not finite"),
        (-1.0, -1, "negative"),
        (2.5, -1, "fractional"),
        (1e-40, -1, "fractional"),
        (3e38, -1, "beyond"),
    ],
)
def test_labels(tmp_path, label, expected, cause):
    payloads = [pack(b"image", label), pack(b"image", [label, 5.0, 6.0]), pack(b"image", [label])]
    write_rec(tmp_path / "a.rec", payloads)
    rows, counts, _ = scan_all(tmp_path / "a.rec", tmp_path / "work")
    assert counts == (3, 0)
    for row in rows:
        assert row[2] == expected
        assert row[4] == ("bad_label" if cause else "kept")
        assert row[6] == b"image"
        assert row[3] == (str(expected) if cause is None else repr(float(np.float32(label))))
        assert cause is None or cause in row[5]


@pytest.mark.parametrize("flag", [5, 9, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1])
def test_wild_flag_is_no_image(tmp_path, flag):
    write_rec(tmp_path / "a.rec", [pack_flag(flag, 1.0, b"image!"), pack(b"image", 1)])
    rows, counts, _ = scan_all(tmp_path / "a.rec", tmp_path / "work")
    assert [row[4] for row in rows] == ["undecodable", "kept"]
    assert f"flag {flag}" in rows[0][5]
    assert counts == (2, 0)


@pytest.mark.parametrize("payload", [b"", b"x", bytes(23)])
def test_payload_shorter_than_its_header(tmp_path, payload):
    write_rec(tmp_path / "a.rec", [payload, pack(b"image", 1)])
    rows, _, _ = scan_all(tmp_path / "a.rec", tmp_path / "work")
    assert [row[4] for row in rows] == ["undecodable", "kept"]
    assert f"{len(payload)} bytes" in rows[0][5]


def test_only_two_labels_and_no_image_are_structural(tmp_path):
    payloads = [
        pack(b"", [1.0, 2.0]),
        pack(b"", 1.0),
        pack(b"", [1.0]),
        pack(b"", [1.0, 2.0, 3.0]),
        pack(b"x", [1.0, 2.0]),
    ]
    write_rec(tmp_path / "a.rec", payloads)
    rows, counts, _ = scan_all(tmp_path / "a.rec", tmp_path / "work")
    assert counts == (5, 1)
    assert [row[6] for row in rows] == [b"", b"", b"", b"x"]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.builds(
                pack_flag, st.integers(0, 4) | st.integers(0, 2**32 - 1), st.floats(width=32), st.binary(max_size=20)
            ),
        ),
        min_size=1,
        max_size=6,
    ),
    st.integers(1, 60),
)
def test_any_payload_is_a_row_or_structural(tmp_path, payloads, words):
    write_rec(tmp_path / "a.rec", payloads)
    rows, counts, _ = scan_all(tmp_path / "a.rec", tmp_path / "work", 4 * words)
    assert len(rows) + counts[1] == counts[0] == len(payloads)
    for row in rows:
        assert row[6] is None or any(payload.endswith(row[6]) for payload in payloads)


def test_an_image_beyond_max_encoded_is_never_taken(tmp_path, monkeypatch):
    for source in (recordio, folder):
        monkeypatch.setattr(source, "MAX_ENCODED", 1000)
    write_rec(tmp_path / "a.rec", [pack(bytes(1000), 1), pack(bytes(1001), 2)])
    rows, _, _ = scan_all(tmp_path / "a.rec", tmp_path / "work")
    assert [(row[4], row[2], row[6] is None) for row in rows] == [("kept", 1, False), ("too_large", 2, True)]
    (tmp_path / "set" / "id").mkdir(parents=True)
    (tmp_path / "set" / "id" / "a.jpg").write_bytes(bytes(1000))
    (tmp_path / "set" / "id" / "b.jpg").write_bytes(bytes(1001))
    rows, _, _ = scan_all(tmp_path / "set", tmp_path / "work")
    assert [(row[4], row[6] is None) for row in rows] == [("kept", False), ("too_large", True)]


def test_dmlcs_sample_holds_ten_records_and_no_image(tmp_path, face_data):
    sample = face_data / "dmlc" / "sample.rec"
    files, _ = find_files(sample)
    (part,) = cut(files, tmp_path, 0)[0]
    found = scan(part)
    sign(found, BuildConfig())
    assert found.records == 10
    assert found.structural == 0
    assert [REASONS[code] for code in found.reason] == ["undecodable"] * 10


# ------------------------------------------------------------------------------------------------------ sources


def expect_error(path, text):
    with pytest.raises(SourceError) as caught:
        find_files(path)
    assert text in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sources_that_cannot_be_read(tmp_path):
    expect_error(tmp_path / "nowhere", "no such file or folder")
    expect_error(tmp_path, "no .rec file")
    (tmp_path / "empty.rec").touch()
    expect_error(tmp_path / "empty.rec", "empty file")
    (tmp_path / "text.rec").write_text("not what you think " * 10)
    expect_error(tmp_path / "text.rec", "not RecordIO")
    (tmp_path / "tiny.rec").write_bytes(b"\x0a")
    expect_error(tmp_path / "tiny.rec", "not RecordIO")
    expect_error(Path("/dev/null"), "no such file or folder")
    loop = tmp_path / "loop.rec"
    loop.symlink_to(loop)
    expect_error(loop, "no such file or folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_sources_without_permission(tmp_path, faces):
    write_insightface(tmp_path, faces)
    (tmp_path / "train.rec").chmod(0)
    expect_error(tmp_path / "train.rec", "Permission denied")


def test_a_file_that_vanishes_is_a_source_error(tmp_path, faces):
    write_insightface(tmp_path, faces)
    files, _ = find_files(tmp_path)
    parts, _ = cut(files, tmp_path, 0)
    (tmp_path / "train.rec").unlink()
    with pytest.raises(SourceError, match=r"train\.rec: No such file or directory"):
        scan(parts[0])
    (tmp_path / "train.idx").unlink()
    with pytest.raises(SourceError, match=r"train\.idx.*No such file or directory"):
        cut(files, tmp_path, 0)


def test_several_rec_files_are_one_source(tmp_path, faces):
    folder = tmp_path / "set"
    for number, name in enumerate(["b", "a", "c"]):
        write_im2rec(folder, [(number, image) for image in faces[number]], name)
    files, warnings = find_files(folder)
    assert [file.name for file in files] == ["a.rec", "b.rec", "c.rec"]
    assert not warnings
    rows, counts, _ = scan_all(folder, tmp_path / "work", 4096)
    assert [row[2] for row in rows] == [1, 1, 1, 0, 0, 0, 2, 2, 2]
    assert counts == (9, 0)


def test_train_rec_leaves_its_neighbours_aside(tmp_path, faces):
    write_insightface(tmp_path, faces)
    write_im2rec(tmp_path, [(0, faces[0][0])], "val")
    files, warnings = find_files(tmp_path)
    assert [file.name for file in files] == ["train.rec"]
    assert len(warnings) == 1
    assert "val.rec" in warnings[0]


def test_known_datasets():
    assert {"synthetic"} <= set(known_datasets())
    with pytest.raises(ConfigError, match="unknown dataset 'nobody'; known: casia, ms1mv2, "):
        dataset_folder("nobody", Path("data"))
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: No such file or directory"):
        known_datasets(Path("nowhere.yaml"))


# ------------------------------------------------------------------------------------------------------ folders


def write_folder(root, count=3):
    for identity in ("carol", "alice", "bob"):
        (root / identity).mkdir(parents=True)
        for n in range(count):
            (root / identity / f"{n}.{'png' if n else 'JPG'}").write_bytes(
                (png if n else jpeg)(len(identity) + n, 8, 8)
            )


@pytest.mark.parametrize("size", [0, 4, 600, 1 << 30])
def test_folder_layout(tmp_path, size):
    root = tmp_path / "set"
    write_folder(root)
    (root / "bob" / "deep" / "er").mkdir(parents=True)
    (root / "bob" / "deep" / "er" / "x.jpeg").write_bytes(jpeg(99, 8, 8))
    rows, counts, warnings = scan_all(root, tmp_path / "work", size)
    names = [
        "alice/0.JPG",
        "alice/1.png",
        "alice/2.png",
        "bob/0.JPG",
        "bob/1.png",
        "bob/2.png",
        "bob/deep/er/x.jpeg",
        "carol/0.JPG",
        "carol/1.png",
        "carol/2.png",
    ]
    assert [row[1] for row in rows] == names
    assert [row[3] for row in rows] == [name.split("/")[0] for name in names]
    assert [row[2] for row in rows] == [0] * 3 + [1] * 4 + [2] * 3
    assert [row[6] for row in rows] == [(root / name).read_bytes() for name in names]
    assert counts == (10, 0)
    assert not warnings


def test_links_that_lead_in_circles_are_entered_once(tmp_path):
    root = tmp_path / "set"
    write_folder(root)
    (root / "alice" / "self").symlink_to(root / "alice")
    (root / "bob" / "up").symlink_to(root)
    (root / "dan").symlink_to(root / "alice")
    (root / "carol" / "knot").symlink_to(root / "carol" / "knot")
    (root / "carol" / "knot.jpg").symlink_to(root / "carol" / "knot.jpg")
    (root / "tangle").symlink_to(root / "tangle")
    rows, _, warnings = scan_all(root, tmp_path / "work")
    assert len(rows) == 10
    assert [(row[1], row[4]) for row in rows if row[4] != "kept"] == [("carol/knot.jpg", "undecodable")]
    assert sum("already read" in line for line in warnings) == 3
    assert sum("2 files that are no" in line for line in warnings) == 1


def test_a_linked_folder_from_elsewhere_is_read(tmp_path):
    write_folder(tmp_path / "elsewhere")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "dan").symlink_to(tmp_path / "elsewhere" / "alice")
    rows, _, warnings = scan_all(tmp_path / "set", tmp_path / "work")
    assert [row[1] for row in rows] == ["dan/0.JPG", "dan/1.png", "dan/2.png"]
    assert not warnings


def test_files_that_cannot_be_opened_are_rows(tmp_path):
    root = tmp_path / "set"
    write_folder(root)
    (root / "alice" / "broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(root / "alice" / "pipe.jpg")  # opened, it would wait for a writer for ever
    rows, counts, _ = scan_all(root, tmp_path / "work")
    bad = [row for row in rows if row[4] != "kept"]
    assert [(row[1], row[4]) for row in bad] == [("alice/broken.jpg", "undecodable"), ("alice/pipe.jpg", "undecodable")]
    assert all("cannot be read" in row[5] for row in bad)
    assert counts == (11, 0)


def test_a_set_of_broken_links_alone_has_rows(tmp_path):
    (tmp_path / "set" / "alice").mkdir(parents=True)
    (tmp_path / "set" / "alice" / "broken.jpg").symlink_to("nowhere.jpg")
    rows, _, _ = scan_all(tmp_path / "set", tmp_path / "work")
    assert [row[4] for row in rows] == ["undecodable"]


def test_stray_files_are_told(tmp_path):
    root = tmp_path / "set"
    write_folder(root)
    (root / "readme.txt").touch()
    (root / "face.jpg").touch()  # of no identity
    (root / "bob" / "0.webp").touch()
    (root / "zoe").mkdir()
    rows, _, warnings = scan_all(root, tmp_path / "work")
    assert len(rows) == 9
    assert [line.removeprefix(f"{root}: ") for line in warnings] == [
        "1 pictures lie in the folder itself, of no identity, left aside",
        "2 files that are no .jpg or .png, left aside: .webp 1, .txt 1",
        "1 folders hold no picture and are no identities: zoe",
    ]


def test_names_that_are_not_utf8_are_left_aside_and_told(tmp_path):
    root = tmp_path / "set"
    write_folder(root)
    (root / os.fsdecode(b"n\xffbody")).mkdir()
    (root / os.fsdecode(b"n\xffbody") / "a.jpg").touch()
    (root / "bob" / os.fsdecode(b"\xfe.jpg")).touch()
    (root / "bob" / "日本 語\n.jpg").write_bytes(jpeg(5, 8, 8))
    rows, _, warnings = scan_all(root, tmp_path / "work")
    assert len(rows) == 10
    assert "bob/日本 語\n.jpg" in [row[1] for row in rows]
    assert len(warnings) == 2
    assert all("UTF-8" in line and line.encode() for line in warnings)


def test_walk_images_is_sorted_and_restartable(tmp_path):
    write_folder(tmp_path)
    assert list(walk_images(tmp_path, [])) == sorted(walk_images(tmp_path, []))


# -------------------------------------------------------------------------------------------------------- reading


def write_tar(folder, images):
    folder.mkdir()
    with tarfile.open(folder / "0.tar", "w") as tar:
        for i, image in enumerate(images):
            for name, data in ((f"{i}.jpg", image), (f"{i}.cls", b"7")):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


def test_files_are_of_the_kind_that_found_them(tmp_path, faces):
    write_insightface(tmp_path / "recordio", faces)
    write_folder(tmp_path / "folder")
    write_tar(tmp_path / "webdataset", faces[0])
    for kind in SOURCES:
        assert [file.kind for file in find_files(tmp_path / kind)[0]] == [kind]
    assert list(SOURCES) == ["webdataset", "recordio", "folder"]


@pytest.mark.parametrize("kind", SOURCES)
def test_images_are_read_back_as_they_were_scanned(tmp_path, faces, kind):
    if kind == "folder":
        write_folder(tmp_path / "set")
    elif kind == "webdataset":
        write_tar(tmp_path / "set", faces[0])
    else:
        escaped = b"\xff\xd8" + b"\x0a\x23\xd7\xce" * 3 + b"abc"  # cut into parts
        write_im2rec(tmp_path / "set", [(0, faces[0][0]), (1, bytes(2) + escaped), ([2.0, 9.0], faces[2][0])])
    (tmp_path / "work").mkdir()
    (file,), _ = find_files(tmp_path / "set")
    count = 0
    with OpenFiles() as opened:
        for part in cut([file], tmp_path / "work", 500)[0]:
            found = scan(part)
            for *columns, image in zip(
                found.key, found.offset, found.header, found.size, found.parts, found.images, strict=True
            ):
                assert read_images(file, [Place(*columns)], opened) == [image.tobytes()]
                count += 1
    assert count == (9 if kind == "folder" else 3)


def test_a_file_that_changed_since_it_was_scanned_is_not_read(tmp_path, faces):
    offsets = write_insightface(tmp_path, faces)
    (file,), _ = find_files(tmp_path)
    os.utime(file.path, ns=(1, 1))
    with OpenFiles() as opened, pytest.raises(SourceError, match=r"train\.rec: changed since it was scanned"):
        read_images(file, [Place("1", offsets[1], 24, len(faces[0][0]), 1)], opened)
    os.unlink(file.path)
    with OpenFiles() as opened, pytest.raises(SourceError, match=r"train\.rec: No such file or directory"):
        read_images(file, [Place("1", offsets[1], 24, len(faces[0][0]), 1)], opened)


@pytest.mark.parametrize(
    ("gib", "count"), [(1 / 64, 2), (1 / 2, 64), (1, 64), (2, 64), (8, 256), (32, 1024), (64, 1024), (256, 2048)]
)
def test_partitions_are_few_until_they_are_large(tmp_path, gib, count):
    """Of 8 MiB, then 64 of them, then of 32 MiB, then 1,024, then of 128 MiB."""
    size = int(gib * (1 << 30))
    file = SourceFile(str(tmp_path / "a.rec"), "a.rec", "recordio", "", size, 0)
    parts, _ = cut([file], tmp_path, 0)
    assert len(parts) == count
    assert (parts[0].start, parts[-1].stop) == (0, size)

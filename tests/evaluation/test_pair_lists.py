"""Verification sets from lists of pairs: LFW's, CALFW's, CFP's, and what they refuse."""

from __future__ import annotations

import pytest

from evaluation.pair_lists import make_set
from faceshards.formats.verification_bin import SetError, read_bin, write_bin
from tests.recs import jpeg

IMAGES = [jpeg(i, 40, 40) for i in range(4)]


def test_a_set_from_folders(tmp_path):
    for person in ("ann", "bob"):
        (tmp_path / person).mkdir()
        for number in (1, 2):
            (tmp_path / person / f"{person}_{number:04d}.jpg").write_bytes(IMAGES[number])
    pairs = tmp_path / "pairs.txt"
    pairs.write_text("10 300\nann 1 2\nann 1 bob 2\n")
    found = make_set(tmp_path, pairs)
    assert found.same.tolist() == [True, False]
    assert found.images[0] == IMAGES[1]
    pairs.write_text("ann/ann_0001.jpg bob/bob_0002.jpg 0\n")
    plain = make_set(tmp_path, pairs)
    assert plain.same.tolist() == [False]
    out = tmp_path / "out.bin"
    write_bin(out, found.images, found.same)
    assert read_bin(out).images == found.images
    pairs.write_bytes("\ufeff10 300\nann 1 2\n".encode())  # as Windows saves it
    assert make_set(tmp_path, pairs).same.tolist() == [True]
    for line, cause in (
        ("ann/../../x.jpg ann/1.jpg 0", "is not below"),
        ("/etc/passwd ann/1.jpg 0", "is not below"),
        ("a\0b/1.jpg ann/1.jpg 0", "is not below"),
        ("ann \u00b2 3", "is no pair"),
    ):
        pairs.write_text(f"{line}\n")
        with pytest.raises(SetError, match=f"pairs.txt:1: .*{cause}"):
            make_set(tmp_path, pairs)
    pairs.write_text("ann 1 3\n")
    with pytest.raises(SetError, match=r"pairs.txt:1: .*ann_0003.jpg: No such file"):
        make_set(tmp_path, pairs)
    pairs.write_text("ann 1 2\nwhat\n")
    with pytest.raises(SetError, match=r"pairs.txt:2: 'what' is no pair"):
        make_set(tmp_path, pairs)


def test_the_lists_of_calfw_and_of_two_columns(tmp_path):
    for person in ("ann", "bob"):
        (tmp_path / person).mkdir()
        for number in (1, 2):
            (tmp_path / person / f"{number}.jpg").write_bytes(IMAGES[number])
    pairs = tmp_path / "calfw_pairs.txt"
    pairs.write_text("ann/1.jpg 3\nann/2.jpg 3\n\nann/1.jpg 0\nbob/2.jpg 0\n")
    found = make_set(tmp_path, pairs)
    assert (found.name, found.same.tolist()) == ("calfw", [True, False])
    assert list(found.images) == [IMAGES[1], IMAGES[2]] * 2
    pairs.write_text("ann/1.jpg ann/2.jpg\nann/1.jpg bob/2.jpg\n")
    assert make_set(tmp_path, pairs).same.tolist() == [True, False]
    for text, message in (
        ("ann/1.jpg 1\n", "first image of a pair without a second"),
        ("ann/1.jpg 1\nann/2.jpg 0\n", "calfw_pairs.txt:2: 'ann/2.jpg 0' is not the second image"),
        ("one two\n", "calfw_pairs.txt:1: 'one two' is no pair"),
    ):
        pairs.write_text(text)
        with pytest.raises(SetError, match=message):
            make_set(tmp_path, pairs)


def test_the_protocol_of_cfp(tmp_path):
    protocol = tmp_path / "Protocol"
    for kind, folder in (("F", "frontal"), ("P", "profile")):
        (tmp_path / "Images" / "001" / folder).mkdir(parents=True)
        for number in (1, 2):
            (tmp_path / "Images" / "001" / folder / f"{number:02d}.jpg").write_bytes(kind.encode() + bytes([number]))
        protocol.mkdir(exist_ok=True)
        names = [f"{number} ../Data/Images/001/{folder}/{number:02d}.jpg" for number in (1, 2)]
        (protocol / f"Pair_list_{kind}.txt").write_text("\n".join(names) + "\n")
    for fold in ("02", "01"):
        (protocol / "Split" / "FP" / fold).mkdir(parents=True)
        (protocol / "Split" / "FP" / fold / "same.txt").write_text("1,2\n" if fold == "01" else "2,2\n")
        (protocol / "Split" / "FP" / fold / "diff.txt").write_text("2,1\n")
    found = make_set(tmp_path / "Images", protocol)
    assert found.same.tolist() == [True, False, True, False]
    assert found.images == (b"F\x01", b"P\x02", b"F\x02", b"P\x01", b"F\x02", b"P\x02", b"F\x02", b"P\x01")
    (protocol / "Split" / "FP" / "02" / "diff.txt").write_text("3,1\n")
    with pytest.raises(SetError, match=r"diff.txt:1: '3,1' names an image that the lists of images have not"):
        make_set(tmp_path / "Images", protocol)

"""Verification sets from lists of pairs: LFW's, CALFW's, CFP's, and what they refuse."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from evaluation.make_set import make_set
from faceshards.formats.verification_bin import SetError, read_bin, write_bin
from tests.evaluation.commands import run
from tests.recs import jpeg

IMAGES = [jpeg(i) for i in range(4)]
PEOPLE = ("0000045", "0000046", "ann", "bob b")


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Four people with three pictures each, which have a suffix each; by their paths what was written."""
    root = tmp_path_factory.mktemp("faces")
    written = {}
    for i, person in enumerate(PEOPLE):
        (root / person).mkdir()
        for number, suffix in ((1, "jpg"), (2, "JPEG"), (3, "png")):
            path = root / person / f"{person}_{number:04d}.{suffix}"
            image = cv2.imencode(".png", np.full((112, 112, 3), 10 * i, np.uint8))[1].tobytes()
            written[str(path.relative_to(root))] = image if suffix == "png" else jpeg(10 * i + number)
            path.write_bytes(written[str(path.relative_to(root))])
    return root, written


def said(faces, tmp_path, text):
    """Returns the pairs of a list, as (image, image, same)."""
    root, written = faces
    (tmp_path / "list.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    names = {image: name for name, image in written.items()}
    found = make_set(root, tmp_path / "list.txt")
    images = [names[image] for image in found.images]
    return list(zip(images[::2], images[1::2], found.same.tolist(), strict=True))


A1, A2, B1 = "ann/ann_0001.jpg", "ann/ann_0002.JPEG", "bob b/bob b_0001.jpg"
N1, N2, M2, M3 = (
    f"{who}/{who}_000{i}" for who, i in zip(("0000045",) * 2 + ("0000046",) * 2, (1, 2, 2, 3), strict=True)
)
NUMBERS = [(f"{N1}.jpg", f"{N2}.JPEG", True), (f"{N1}.jpg", f"{M3}.png", False)]
NAMES = [(A1, A2, True), (A1, B1, False)]


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        # One or two numbers count the pairs; three are a pair of a person whose name is a number.
        ("0000045 1 2\n0000045 1 0000046 3\n", NUMBERS),
        ("2\n0000045 1 2\n0000045 1 0000046 3\n", NUMBERS),
        ("1 1\n0000045 1 2\n0000045 1 0000046 3\n", NUMBERS),
        ("ann\t1\t2\nann\t1\tbob b\t1\n", NAMES),
        ("1\t1\r\nann\t1\t2\r\n\r\n# aligned\r\nann\t1\tbob b\t1\r\n", NAMES),
        ('ann 1 ann 2\nann 1 "bob b" 1', NAMES),
        ("name,imagenum1,imagenum2,\nann,1,2,\nann,1,bob b,1\n", NAMES),  # Kaggle's pairs.csv
        ('\ufeffname,imagenum1,imagenum2,\r\n"ann",1,2,\r\n,,,\r\nann, 1, "bob b", 1\r\n', NAMES),
        ("\ufeffann\t1\t2\nann\t1\tbob b\t1\n".encode("utf-16-le"), NAMES),
        # Two images and a flag.
        (f"{A1},{A2},1\n{A1},{B1},0\n", NAMES),
        (f"{A1}\t{A2}\t1\n{A1}\t{B1}\t-1\n", NAMES),
        (f"true;{A1};{A2}\nFALSE;{A1};{B1}\n", NAMES),
        (f"img1,img2,label\n{A1},{A2},1.0\n{A1},{B1},0.0\n", NAMES),
        (f",img1,img2,same\n0,{A1},{A2},True\n1,{A1},{B1},False\n", NAMES),
        (f"0\t1\t{A1}\t{A2}\n1\t0\t{A1}\t{B1}\n", NAMES),
        (f"{A1}\t{A2}\n{A1}\t{B1}\n".replace("/", "\\"), NAMES),
        # A line an image.
        (f"{A1}\t4\n{A2}\t4\n{A1}\t0\n{B1}\t0\n", NAMES),
        (f"0\t7\t{A1}\n1\t7\t{A2}\n2\t7.000000\t{A1}\n3\t8.000000\t{B1}\n", NAMES),
        (f"0\t1\t{A1}\n1\t1\t{A2}\n2\t0\t{A1}\n3\t0\t{B1}\n", NAMES),
    ],
)
def test_one_list_in_many_forms(faces, tmp_path, text, pairs):
    assert said(faces, tmp_path, text) == pairs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"ann 1 2\n{A1} {A2} 1\n", "list.txt:2: .* reads as 'image image flag', but line 1 as 'name i j'"),
        (f"{A1} {A2} 1\n1 {A1} {A2}\n", "list.txt:2: .* reads as 'flag image image', but line 1 as 'image image flag'"),
        (f"{A1} {A2} 0\n{A1} {A2} -1\n", "list.txt:2: .* has the flag -1, lines before it 0"),
        (f"{A1} {A2} 0.5\n", "list.txt:1: .* has no flag: 0.5 is neither"),
        ("a.jpg,b.jpg\n", "list.txt:1: 'a.jpg,b.jpg' has no flag, and its images lie in no folders"),
        (f"1 {A1} 0\n", "list.txt:1: .* is no pair$"),
        ("ann 1 2\n10 300\nann 1 2\n", "list.txt:2: '10 300' is no pair$"),
        ("ann 1 2\nbob b 1 2\n", "list.txt:2: 'bob b 1 2' is no pair; names with blanks need tabs or commas"),
        ('ann,1,2\n"bob b,1,2\n', "list.txt:2: .* is no pair: unexpected end of data"),
        (f"ann {'1' * 5000} 2\n", "list.txt:1: .* is no pair"),
        (f"0\t7\t{A1}\n1\t7\t{A2}\n2\t7\t{A1}\n", "list.txt:3: .* is the first image of a pair without a second"),
        ("ann 1 4\n", "list.txt:1: .*ann_0004.jpg: No such file or directory .nor .jpeg, .png, .JPG, .JPEG, .PNG"),
        (b"\xe4nn 1 2\n", "list.txt: cannot be read: no text in UTF-8, invalid continuation byte at byte 0"),
        (f"ann/ {A1} 0\n", "list.txt:1: .*ann: not a regular file"),
        ("10 300\n# nothing yet\n", "list.txt: holds no pairs"),
        ("", "list.txt: holds no pairs"),
    ],
)
def test_a_list_that_says_no_one_thing(faces, tmp_path, text, message):
    with pytest.raises(SetError, match=message) as failure:
        said(faces, tmp_path, text)
    assert "\n" not in str(failure.value)


def test_make_bin_from_the_command_line(faces, tmp_path):
    pairs, out = tmp_path / "pairs.txt", tmp_path / "lfw.bin"
    pairs.write_text("0000045 1 2\n0000045 1 0000046 3\n")
    found = run("make-bin", faces[0], pairs, out)
    assert (found.exit_code, found.stdout) == (0, f"{out}: 2 pairs, 1 of one person\n")
    assert read_bin(out).images == tuple(faces[1][name] for pair in NUMBERS for name in pair[:2])
    out.unlink()
    pairs.write_text("0000045 1 2\n0000045 1\n")
    refused = run("make-bin", faces[0], pairs, out)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr == f"Error: {pairs}:2: '0000045 1' is no pair\n"
    assert not out.exists()


def test_a_list_says_what_it_lacks(faces, tmp_path, caplog):
    pair = ["ann 1 2", "ann 1 0000045 1"]
    said(faces, tmp_path, "\n".join(["5 1", *pair * 5]))
    said(faces, tmp_path, "\n".join(["10", *pair * 5]))
    said(faces, tmp_path, "\n".join(["5", *pair * 5]))
    assert caplog.messages == []
    for text, told in (
        ("\n".join(["10 300", *pair * 5]), "its first line counts 6,000 pairs, the list has 10"),
        ("\n".join(["6000", *pair * 5]), "its first line counts 6,000 or 12,000 pairs, the list has 10"),
        ("\n".join([*pair * 5, pair[0]]), "11 pairs do not make 10 equal folds"),
        ("\n".join(pair), "2 pairs do not make 10 folds: eval refuses such a set"),
        ("\n".join(pair[:1] * 10), "all 10 pairs are of one person: eval refuses such a set"),
        ("\n".join(pair[1:] * 20), "all 20 pairs are of two persons: eval refuses such a set"),
        (
            "\n".join([*pair * 4, "ann 1 1", "ann 1 bob 1".replace("bob", "0000046")]),
            "1 pairs are of an image with itself",
        ),
    ):
        caplog.clear()
        said(faces, tmp_path, text)
        assert len(caplog.messages) == 1
        assert told in caplog.messages[0]
    caplog.clear()
    said(faces, tmp_path, f"0\t1\t{A1}\n1\t1\t{A2}\n" * 10 + f"0\t0\t{A1}\n1\t0\t{B1}\n" * 10)
    assert caplog.messages == [
        f"{tmp_path / 'list.txt'}: both labels of every pair are equal: 0 is read as two persons, others as one"
    ]


def test_pictures_that_eval_leaves_out_are_counted(tmp_path, caplog):
    (tmp_path / "ann").mkdir()
    for number, image in ((1, IMAGES[0]), (2, IMAGES[1]), (3, b"<html>404</html>"), (4, jpeg(1, 250, 250))):
        (tmp_path / "ann" / f"ann_{number:04d}.jpg").write_bytes(image)
    pairs = tmp_path / "pairs.txt"
    pairs.write_text("ann 1 2\n" * 7 + "ann 1 3\nann 3 3\nann 1 4\n")
    assert len(make_set(tmp_path, pairs).images) == 20  # the set is made as it was asked for
    broken, other = caplog.messages[:2]
    assert "3 of 20 images do not decode, eval leaves their 2 pairs out" in broken
    assert "ann_0003.jpg: 16 bytes are no image" in broken
    assert "1 of 20 images are not 112 x 112, eval leaves their 1 pairs out" in other
    assert other.endswith("ann_0004.jpg: 250 x 250")
    pairs.write_text("ann 3 3\n")
    with pytest.raises(
        SetError, match=r"none of the images can be decoded, the first: .*ann_0003.jpg: 16 bytes are no"
    ):
        make_set(tmp_path, pairs)


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


CFP = {(kind, number): jpeg(number if kind == "F" else 10 * number) for kind in "FP" for number in (1, 2)}


def test_the_protocol_of_cfp(tmp_path):
    protocol = tmp_path / "Protocol"
    for kind, folder in (("F", "frontal"), ("P", "profile")):
        (tmp_path / "Images" / "001" / folder).mkdir(parents=True)
        for number in (1, 2):
            (tmp_path / "Images" / "001" / folder / f"{number:02d}.jpg").write_bytes(CFP[kind, number])
        protocol.mkdir(exist_ok=True)
        names = [f"{number} ../Data/Images/001/{folder}/{number:02d}.jpg" for number in (1, 2)]
        (protocol / f"Pair_list_{kind}.txt").write_text("\n".join(names) + "\n")
    for fold in ("02", "01"):
        (protocol / "Split" / "FP" / fold).mkdir(parents=True)
        (protocol / "Split" / "FP" / fold / "same.txt").write_text("1,2\n" if fold == "01" else "2,2\n")
        (protocol / "Split" / "FP" / fold / "diff.txt").write_text("2,1\n")
    found = make_set(tmp_path / "Images", protocol)
    assert found.same.tolist() == [True, False, True, False]
    order = (("F", 1), ("P", 2), ("F", 2), ("P", 1), ("F", 2), ("P", 2), ("F", 2), ("P", 1))
    assert found.images == tuple(CFP[image] for image in order)
    (protocol / "Split" / "FP" / "02" / "diff.txt").write_text("3,1\n")
    with pytest.raises(SetError, match=r"diff.txt:1: '3,1' names an image that the lists of images have not"):
        make_set(tmp_path / "Images", protocol)

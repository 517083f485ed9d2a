"""Verification sets: those that Python 2 and 3 wrote, those that carry code, and those that are damaged."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest

from faceshards.formats.verification_bin import SetError, read_bin, set_names
from tests.recs import jpeg

IMAGES = [jpeg(i, 40, 40) for i in range(4)]
SAME = [True, False]


def written(tmp_path, content, protocol=2):
    path = tmp_path / "set.bin"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=protocol))
    return path


def python2(images, same):
    """Returns the pickle that Python 2's pickle.dump(..., protocol=2) writes: str is SHORT/BINSTRING, not bytes."""
    out = io.BytesIO()
    out.write(b"\x80\x02]q\x00(")
    for image in images:
        out.write(b"T" + len(image).to_bytes(4, "little") + image)  # BINSTRING
    out.write(b"e]q\x01(" + b"".join(b"\x88" if flag else b"\x89" for flag in same) + b"e\x86q\x02.")
    return out.getvalue()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", [bytes, lambda image: np.frombuffer(image, np.uint8).copy()])
def test_bytes_and_arrays_of_every_protocol(tmp_path, protocol, kind):
    found = read_bin(written(tmp_path, ([kind(image) for image in IMAGES], SAME), protocol))
    assert list(found.images) == IMAGES
    assert found.same.tolist() == SAME
    numpy_flags = read_bin(written(tmp_path, (IMAGES, np.array(SAME)), protocol))
    assert numpy_flags.same.tolist() == SAME


def test_python_2(tmp_path):
    data = python2(IMAGES, SAME)
    pickletools.dis(data, io.StringIO())  # a whole pickle
    found = read_bin(written(tmp_path, data))
    assert list(found.images) == IMAGES
    assert found.same.tolist() == SAME


class Hostile:
    def __init__(self, act, *arguments):
        self.made = (act, arguments)

    def __reduce__(self):
        return self.made


@pytest.mark.parametrize(
    ("act", "arguments", "name"),
    [
        (os.system, ("touch {}",), "posix.system"),
        (eval, ("open('{}', 'w')",), "__builtin__.eval"),
        (np.load, ("{}",), "numpy.load"),
        (np.fromfile, ("{}",), "numpy.*fromfile"),
        (getattr, (1, "real"), "getattr"),
    ],
)
def test_code_is_refused_by_name(tmp_path, act, arguments, name):
    mark = tmp_path / "ran"
    arguments = tuple(a.format(mark) if isinstance(a, str) else a for a in arguments)
    path = written(tmp_path, ([Hostile(act, *arguments)], [True]))
    with pytest.raises(SetError, match=rf"set.bin: refused: .*{name}"):
        read_bin(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02})" + b"\x85" * 500_000 + b"Ns.", "its pickle uses EMPTY_DICT"),  # hashed, it would end the process
        (b"\x80\x02]r\xff\xff\xff\x0f.", "it counts what it puts away wrongly"),  # a table of 4 GB
        (b"\x80\x02(c_codecs\nencode\nN}b.", "its pickle uses EMPTY_DICT"),
        (b"\x80\x02c_codecs\nencode\n)b.", "it changes a function"),
        (b"\x80\x02(ios\nsystem\n.", r"it asks for os\.system"),
        (b"\x80\x02c\x1b[2Jos\nsystem\n.", r"it asks for \?\?2Jos\.system"),
        (b"\x80\x02X\x01\x00\x00\x00aQ.", "its pickle uses BINPERSID"),
        (b"\x80\x02cnumpy\ndtype\nX\x04\x00\x00\x00\x1b[2J\x85R.", r"an array of dtype '\?\?2J'"),
        (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00\x1b[J\x86R.", r"a text encoded as '\?\?J'"),
    ],
)
def test_tricks_are_refused_before_they_work(tmp_path, content, message):
    (tmp_path / "set.bin").write_bytes(content)
    with pytest.raises(SetError, match=f"set.bin: refused: .*{message}") as failure:
        read_bin(tmp_path / "set.bin")
    assert str(failure.value).isprintable()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a whole pickle"),
        (pickle.dumps((IMAGES, SAME))[:-40], "not a whole pickle"),
        (42, "holds no pair of images and flags"),
        ((IMAGES[:3], SAME), "3 images for 2 pairs"),
        ((IMAGES, [True]), "4 images for 1 pairs"),
        (([], []), "0 images for 0 pairs"),
        ((["text", *IMAGES[1:]], SAME), "item 0 is no encoded image"),
        ((IMAGES, [True, 7]), "a flag is neither true nor false"),
        (([np.zeros(3)] * 4, SAME), "refused: an array of dtype 'f8'"),
    ],
)
def test_damage_is_one_line(tmp_path, content, message):
    with pytest.raises(SetError, match=message) as failure:
        read_bin(written(tmp_path, content))
    assert "\n" not in str(failure.value)
    assert "set.bin" in str(failure.value)


def test_names_of_sets():
    def names(*paths):
        return set_names([Path(path) for path in paths])

    assert names("lfw.bin", "agedb_30.bin") == ["lfw", "agedb_30"]
    assert names("a/lfw.bin", "/data/b/lfw.bin", "b/agedb_30.bin") == ["a/lfw", "b/lfw", "agedb_30"]
    assert names("a/x/lfw.bin", "b/x/lfw.bin", "b/y/lfw.bin") == ["a/x/lfw", "b/x/lfw", "b/y/lfw"]
    assert names("a/lfw.bin", "a/lfw.pkl", "b/lfw.bin") == ["a/lfw.bin", "a/lfw.pkl", "b/lfw.bin"]
    with pytest.raises(SetError, match=r"^a/lfw.bin: is named twice"):
        names("a/lfw.bin", "b/../a/lfw.bin")

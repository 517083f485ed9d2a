"""Small files that would become gigabytes, or keep a reader busy: each is refused within the budget of its size."""

from __future__ import annotations

import io
import re
import struct
import tracemalloc
import zipfile

import pytest

from faceshards.errors import FaceshardsError
from faceshards.formats import pickles
from faceshards.formats.pickles import LONGEST, Budget, RefusedError
from faceshards.formats.torch_zip import read_torch
from faceshards.formats.verification_bin import read_bin
from tests.recs import jpeg

PROTO = b"\x80\x02"
ENCODE = b"c_codecs\nencode\nq\x010"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n)R"
DTYPE = b"cnumpy\ndtype\nU\x02u1\x85R"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\nq\x020"
FLOATS = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuJ\xe8\x03\x00\x00tQq\x010"  # 1,000 of them
VIEW = b"h\x02(h\x01K\0K\x01\x85K\x01\x85\x89}tR"  # the first of them


def text(content):
    return b"X" + struct.pack("<I", len(content)) + content


def number(size):
    return b"\x8b" + struct.pack("<I", size) + b"\x7f" * size


def doubled(times):
    """Returns opcodes of a list of two references to a list of two, and so on: written out it would have no end."""
    opcodes = b"]q\x030"
    for depth in range(times):
        opcodes += b"](" + b"h" + bytes([3 + depth]) + b"h" + bytes([3 + depth]) + b"eq" + bytes([4 + depth])
        opcodes += b"0"
    return opcodes + b"h" + bytes([3 + times])


def array(shape, data=b"U\x02ab"):
    return ARRAY + b"(K\x01" + shape + DTYPE + b"\x89" + data + b"tb"


def bin_of(images, flags=b"\x88", before=b""):
    return PROTO + before + b"](" + images + b"e](" + flags + b"e\x86."


HOSTILE_BINS = {
    "a text encoded a thousand times": (
        bin_of(b"h\x01h\x02U\x06latin1\x86R" * 1000, before=ENCODE + text(bytes(1 << 20)) + b"q\x020"),
        "would become more than twice as many",
    ),
    "a text that is the bytes of a thousand arrays": (
        bin_of(
            array(b"J\x00\x00\x10\x00\x85", b"h\x02") * 1000,
            before=text(bytes(1 << 20)) + b"q\x020",
        ),
        "would become more than twice as many",
    ),
    "a shape of huge numbers": (bin_of(array(b"(" + number(2000) * 3000 + b"t")), "more than 1024 bits"),
    "a shape of many numbers": (bin_of(array(b"(" + b"K\x02" * 5000 + b"t")), "not up to 32 numbers"),
    "a shape that holds less": (bin_of(array(b"K\x03\x85")), r"an array of shape \?3\?\? with 2 bytes"),
    "a dtype without an end": (bin_of(b"cnumpy\ndtype\n" + doubled(40) + b"\x85R"), r"an array of dtype 'none'"),
    "an encoding without an end": (
        bin_of(b"h\x01U\x01a" + doubled(40) + b"\x86R", before=ENCODE),
        r"a text encoded as 'none'",
    ),
    "thousands of empty lists": (PROTO + b"(" + b"]" * 20_000 + b"t.", "would become more than twice as many"),
    "a text of four bytes a letter": (bin_of(text(bytes(LONGEST) + "\U0001f600".encode())), "a text or image of"),
    "a line without an end": (PROTO + b"V" + b"a" * (LONGEST + 9), "a line of more than"),
    "a text longer than memory": (PROTO + b"\x8d" + struct.pack("<Q", 1 << 50), "a text or image of"),
    "a frame longer than memory": (b"\x80\x04\x95" + struct.pack("<Q", 1 << 50) + b"].", "a frame of"),
    "one image many times": (
        bin_of(b"h\x02" * 2000, b"\x88" * 1000, before=b"B" + struct.pack("<I", 5000) + bytes(5000) + b"q\x020"),
        "some of them many times, are larger than the file",
    ),
}


def torch_of(pickled, **storages):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", PROTO + pickled + b".")
        for key, data in storages.items():
            archive.writestr(f"a/data/{key[1:]}", data)
    return file.getvalue()


def overlapping(entries):
    """Returns a file of torch.save whose storages are all the same bytes of it."""
    file = io.BytesIO()
    state = b"".join(
        text(b"k%d" % place)
        + b"h\x02((U\x07storagectorch\nFloatStorage\n"
        + text(b"%d" % place)
        + b"U\x03cpuJ\xe8\x03\x00\x00tQK\0K\x01\x85K\x01\x85\x89}tR"
        for place in range(entries)
    )
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", PROTO + REBUILD + b"}(" + state + b"u.")
        archive.writestr("a/data/0", bytes(4000))
        for place in range(1, entries):
            twin = zipfile.ZipInfo(f"a/data/{place}")
            first = archive.getinfo("a/data/0")
            twin.header_offset, twin.file_size, twin.compress_size = first.header_offset, 4000, 4000
            twin.CRC = first.CRC
            archive.filelist.append(twin)
            archive.NameToInfo[twin.filename] = twin
    return file.getvalue()


HOSTILE_WEIGHTS = {
    "thousands of empty lists": (torch_of(b"(" + b"]" * 20_000 + b"t"), "would become more than twice as many"),
    "a chain of dictionaries": (
        torch_of(b"}" + b"U\x01a}" * 1000 + b"s" * 1000),
        "has no state dict",
    ),
    "a name asked for many times": (
        torch_of(text(b"m" * 500_000) + b"q\x010](" + b"h\x01h\x01\x93" * 5000 + b"e"),
        "whose name has 1000000 characters",
    ),
    "a key of many parts": (
        torch_of(b"(" + b"N" * 5000 + b"tq\x010}(" + b"h\x01N" * 10 + b"u"),
        "keys are neither names nor numbers",
    ),
    "a storage of a long name": (
        torch_of(b"(U\x07storagectorch\nFloatStorage\n" + text(b"1" * 5000) + b"U\x03cpuK\1tQ"),
        "it names no storage of a tensor",
    ),
    "a size of huge numbers": (
        torch_of(FLOATS + REBUILD + b"}U\x01ah\x02(h\x01K\0" + number(100) + b"\x85K\x01\x85\x89}tRs", _0=bytes(4000)),
        "a tensor without storage, size and strides",
    ),
    "storages that overlap": (overlapping(100), "its entries overlap|[Oo]verlapped entries"),
}


def read_traced(read, path):
    """Returns the error of a reader, and the most bytes that Python held meanwhile."""
    tracemalloc.start()
    try:
        with pytest.raises(FaceshardsError) as failure:
            read(path)
        return str(failure.value), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("read", "data", "message"),
    [
        pytest.param(read, data, message, id=name)
        for read, files in ((read_bin, HOSTILE_BINS), (read_torch, HOSTILE_WEIGHTS))
        for name, (data, message) in files.items()
    ],
)
def test_a_hostile_file_is_one_line_within_its_budget(tmp_path, monkeypatch, read, data, message):
    monkeypatch.setattr(pickles, "SPARE", 1 << 20)  # so that small files do
    path = tmp_path / "file"
    path.write_bytes(data)
    told, peak = read_traced(read, path)
    assert told.startswith(f"{path}: ")
    assert "\n" not in told
    assert len(told) < 1000
    assert re.search(message, told)
    assert peak <= 2 * len(data) + pickles.SPARE


def test_a_storage_is_read_once_however_many_views_it_has(tmp_path, monkeypatch):
    views = 500
    state = b"".join(text(b"k%d" % place) + VIEW for place in range(views))
    path = tmp_path / "views.pth"
    path.write_bytes(torch_of(FLOATS + REBUILD + b"}(" + state + b"u", _0=struct.pack("<f", 7) + bytes(3996)))
    read = []
    monkeypatch.setattr(
        zipfile.ZipFile,
        "read",
        lambda self, entry, inner=zipfile.ZipFile.read: read.append(entry) or inner(self, entry),
    )
    arrays = read_torch(path)
    assert len(read) == 2  # the pickle and the storage
    assert list(arrays) == [f"k{place}" for place in range(views)]
    assert {float(array[0]) for array in arrays.values()} == {7.0}


def test_what_sets_hold_is_within_the_budget(tmp_path):
    """Images that a writer read once and names often, as lists of pairs do, are no attack."""
    image = jpeg(1)
    path = tmp_path / "set.bin"
    path.write_bytes(
        bin_of(b"h\x02" * 12_000, b"\x88\x89" * 3000, before=b"B" + struct.pack("<I", len(image)) + image + b"q\x020")
    )
    assert read_bin(path).images == (image,) * 12_000


def test_a_budget_is_twice_the_file_and_something():
    budget = Budget(1000)
    budget.spend(2000 + pickles.SPARE)
    with pytest.raises(RefusedError, match="its 1000 bytes would become more than twice as many and 64 MiB"):
        budget.spend(1)

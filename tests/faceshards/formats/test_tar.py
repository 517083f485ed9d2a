"""The walk over a .tar finds what tarfile finds, and damage costs what it hit."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from faceshards.formats.tar import BLOCK, Member, Tar
from faceshards.reading import open_file

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
LINK = "a symbolic link"
AGAIN = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def entry(name: str, size: int = 0, **more: object) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.size = size
    for key, value in more.items():
        setattr(found, key, value)
    return found


def archive(entries: Iterable[tarfile.TarInfo], form: int = tarfile.GNU_FORMAT) -> bytes:
    """Returns an archive by tarfile; contents are the first letter of each name, over and over."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for one in entries:
            tar.addfile(one, io.BytesIO(b"%c" % (ord(one.name[0]) % 256) * one.size))
    return out.getvalue()


def walk(data: bytes, folder: Path) -> tuple[list[Member], bool]:
    """Returns the members of an archive, and whether it has an end."""
    path = folder / "x.tar"
    path.write_bytes(data)
    with open_file(path) as file:
        tar = Tar(file, len(data))
        return list(tar.members()), tar.ended


def by_tarfile(data: bytes) -> list[tuple[str, int, int, bool]]:
    """Returns name, place and size of contents, and whether it is a plain file, of each member as tarfile has them."""
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as tar:
        return [(one.name, one.offset_data, one.size, one.isreg() and not one.issparse()) for one in tar]


def in_short(members: Iterable[Member]) -> list[tuple[str, int, int, bool]]:
    return [(one.name.rstrip("/"), one.data, one.size, not one.kind) for one in members]


part = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_characters="/\x7f", categories=("L", "N")))
names = st.lists(part.filter(bool), min_size=1, max_size=4).map("/".join) | st.integers(90, 400).map("n".__mul__)


@AGAIN
@given(
    form=st.sampled_from(sorted(FORMATS)),
    files=st.lists(
        st.tuples(names, st.sampled_from([0, 1, 511, 512, 513, 3000]), st.sampled_from("0000125")), max_size=6
    ),
)
def test_every_member_is_where_tarfile_finds_it(form: str, files: list[tuple[str, int, str]], tmp_path: Path) -> None:
    entries = []
    for name, size, kind in files:
        if form == "ustar" and len(name.encode()) > 99:
            name = name[:30]
        link = "l" * len(name) if kind in "12" else ""
        entries.append(entry(name, 0 if kind in "125" else size, type=kind.encode(), linkname=link))
    data = archive(entries, FORMATS[form])
    members, ended = walk(data, tmp_path)
    assert in_short(members) == by_tarfile(data)
    assert [one.damage for one in members] == [""] * len(files)
    assert ended


@pytest.mark.parametrize("form", FORMATS)
def test_what_extended_headers_say_counts(form: str, tmp_path: Path) -> None:
    long = ["d" * 99 + "/" + "e" * 60 + ".jpg"] if form == "ustar" else ["d" * 99 + "/" + "é" * 300 + ".jpg"]
    data = archive([entry(name, 700) for name in (*long, "b.jpg")], FORMATS[form])
    members, _ = walk(data, tmp_path)
    assert in_short(members) == by_tarfile(data)
    assert members[0].offset == 0
    assert members[0].name == long[0]


def test_a_size_in_a_pax_header_stands_above_the_one_in_the_header(tmp_path: Path) -> None:
    one = entry("a.jpg", 0, pax_headers={"size": "700"})
    data = one.tobuf(tarfile.PAX_FORMAT) + bytes(1024) + archive([entry("b.jpg", 3)])
    members, _ = walk(data, tmp_path)
    assert in_short(members) == by_tarfile(data)
    assert [one.size for one in members] == [700, 3]


def test_what_is_no_plain_file_is_said(tmp_path: Path) -> None:
    types = {
        b"1": "a hard link",
        b"2": LINK,
        b"3": "a device",
        b"4": "a device",
        b"5": "a folder",
        b"6": "a named pipe",
    }
    found, _ = walk(archive(entry(f"{i}.jpg", type=kind) for i, kind in enumerate(types)), tmp_path)
    assert [one.kind for one in found] == list(types.values())
    pax = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "real.jpg", "GNU.sparse.realsize": "9"}
    data = archive([entry("s.jpg", 600, pax_headers=pax), entry("b.jpg", 3)], tarfile.PAX_FORMAT)
    sparse, plain = walk(data, tmp_path)[0]
    assert (sparse.name, sparse.kind, plain.kind) == ("real.jpg", "a sparse file", "")
    odd, plain = walk(archive([entry("o.jpg", 600, type=b"Q"), entry("b.jpg", 3)]), tmp_path)[0]
    assert (odd.kind, plain.name) == ("of the type 'Q'", "b.jpg")


def old_sparse(extensions: int) -> bytes:
    """Returns a file as GNU tar's old format has it, with that many blocks of its map behind the header."""
    block = bytearray(entry("s.jpg", 600, type=b"S").tobuf(tarfile.GNU_FORMAT))
    block[482] = extensions > 0
    more = [bytes(504) + bytes([i + 1 < extensions]) + bytes(7) for i in range(extensions)]
    return summed(block) + b"".join(more) + bytes(1024)


def summed(block: bytearray, total: int | None = None) -> bytes:
    """Returns a header with the checksum that belongs to it, or another one."""
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % (sum(block) if total is None else total)
    return bytes(block)


@pytest.mark.parametrize("extensions", [0, 1, 3])
def test_sparse_files_of_the_old_kind_are_passed_over(extensions: int, tmp_path: Path) -> None:
    data = old_sparse(extensions) + archive([entry("b.jpg", 3)])
    sparse, plain = walk(data, tmp_path)[0]
    assert sparse.kind == "a sparse file"
    assert (plain.name, plain.data, plain.size) == ("b.jpg", by_tarfile(data)[1][1], 3)


def test_headers_of_old_writers_are_read(tmp_path: Path) -> None:
    block = bytearray(entry("é.jpg", 3).tobuf(tarfile.USTAR_FORMAT))
    block[257:265] = bytes(8)  # seventh edition: no magic
    signed = sum(byte - 256 * (byte > 127) for byte in [*block[:148], *b" " * 8, *block[156:]])
    for total in (None, signed):
        data = summed(block, total) + b"abc".ljust(512, b"\0") + bytes(1024)
        assert in_short(walk(data, tmp_path)[0]) == by_tarfile(data)
    assert walk(summed(block, signed + 1) + bytes(1536), tmp_path)[0][0].damage.startswith("no header")


def test_names_that_would_not_print_are_escaped(tmp_path: Path) -> None:
    members, _ = walk(archive([entry("a\x1b[31m\n\x7f.jpg"), entry("\udcff.jpg")]), tmp_path)
    assert [one.name for one in members] == [r"a\x1b[31m\x0a\x7f.jpg", r"\xff.jpg"]


# --- damage

FILES = [entry(f"{letter}.jpg", 700) for letter in "abcdef"]
STEP = 3 * BLOCK  # a header and 700 bytes


@pytest.mark.parametrize("hit", range(len(FILES)))
def test_a_damaged_header_costs_its_own_member(hit: int, tmp_path: Path) -> None:
    data = bytearray(archive(FILES))
    data[hit * STEP + 3] ^= 0x40
    members, ended = walk(bytes(data), tmp_path)
    assert [one.name for one in members] == ["" if i == hit else one.name for i, one in enumerate(FILES)]
    assert members[hit].offset == hit * STEP
    assert members[hit].damage == "no header where one should be: the bytes up to the next one are lost"
    assert ended


@pytest.mark.parametrize("keep", range(0, 3 * STEP, 100))
def test_a_cut_archive_tells_where(keep: int, tmp_path: Path) -> None:
    members, ended = walk(archive(FILES)[:keep], tmp_path)
    whole, rest = divmod(keep, STEP)
    whole, rest = (whole + 1, 0) if rest >= BLOCK + 700 else (whole, rest)  # without what fills up its last block
    assert [one.name for one in members if not one.damage] == [one.name for one in FILES[:whole]]
    assert not ended
    causes = [one.damage for one in members if one.damage]
    if not rest:
        assert causes == []
    elif rest < BLOCK:
        assert causes == [f"cut off: the file ends at byte {keep}"]
    else:
        end = whole * STEP + BLOCK + 700
        assert causes == [f"cut off: its contents should end at byte {end}, the file ends at {keep}"]


def sized(field: bytes) -> bytes:
    """Returns a header whose size is written so."""
    block = bytearray(entry("x.jpg", 0).tobuf(tarfile.GNU_FORMAT))
    block[124:136] = field
    return summed(block)


@pytest.mark.parametrize(
    ("field", "cause"),
    [
        (b"\x80" + (9 << 30).to_bytes(11, "big"), "cut off: its contents should end at byte 9663676928"),
        (b"\x80" + b"\xff" * 11, "cut off: its contents should end at byte 309485009821345068724781567"),
        (b"\xff" * 11 + b"\xfb", "a size of -5 bytes"),
        (b"00000000x00\0", "no header where one should be"),
        (b"7" * 12, "cut off: its contents should end at byte 68719477247"),
    ],
)
def test_a_size_that_cannot_be_costs_its_own_member(field: bytes, cause: str, tmp_path: Path) -> None:
    members, _ = walk(sized(field) + archive(FILES), tmp_path)
    assert members[0].damage.startswith(cause)
    assert [one.name for one in members[1:]] == [one.name for one in FILES]


@pytest.mark.parametrize(
    "content",
    [b"x", b"99 path=a\n", b"10 path=ab", b"5 pa\n", b"0 path=a\n", b"12 size=-12\n", b"11 size=1e\n", b"5 =a\n"],
)
def test_a_broken_pax_header_costs_its_own_member(content: bytes, tmp_path: Path) -> None:
    head = entry("h", len(content), type=b"x").tobuf(tarfile.USTAR_FORMAT) + content.ljust(512, b"\0")
    members, _ = walk(head + archive(FILES), tmp_path)
    assert [bool(one.damage) for one in members] == [True] + [False] * (len(members) - 1)
    assert [one.name for one in members[-5:]] == [one.name for one in FILES[1:]]


def test_extended_headers_without_end_are_damage(tmp_path: Path) -> None:
    head = entry("h", 9, type=b"x").tobuf(tarfile.USTAR_FORMAT) + b"9 path=a\n".ljust(512, b"\0")
    members, _ = walk(head * 20 + archive(FILES), tmp_path)
    assert members[0].damage == "more than 8 extended headers in a row"
    assert [one.name for one in members[-5:]] == [one.name for one in FILES[1:]]
    huge = entry("h", 2 << 20, type=b"L").tobuf(tarfile.GNU_FORMAT)
    members, _ = walk(huge + bytes(2 << 20) + archive(FILES), tmp_path)
    assert members[0].damage == "its extended header would be of 2097152 bytes"
    assert [one.name for one in members[1:]] == [one.name for one in FILES]


def test_archives_joined_by_cat_are_read_on(tmp_path: Path) -> None:
    one = archive(FILES[:2])
    members, ended = walk(one + archive(FILES[2:]), tmp_path)
    assert [(member.name, member.archive) for member in members] == [
        (file.name, int(i >= 2)) for i, file in enumerate(FILES)
    ]
    assert ended
    assert walk(bytes(10240), tmp_path) == ([], True)
    assert walk(b"", tmp_path) == ([], False)


MIXED = archive(
    [
        *(entry("a.jpg", 700), entry("l" * 300, 5), entry("s", type=b"2", linkname="z" * 200)),
        *(entry("ü" * 150, 3, pax_headers={"comment": "x" * 50}), entry("b.jpg", 1500)),
    ],
    tarfile.PAX_FORMAT,
) + archive(FILES[:2])


@AGAIN
@given(
    flips=st.lists(st.tuples(st.integers(0, len(MIXED) - 1), st.integers(0, 255)), max_size=8),
    keep=st.integers(0, len(MIXED)),
)
@example(flips=[], keep=len(MIXED))
def test_whatever_the_bytes_the_walk_ends_and_stays_within_the_file(
    flips: list[tuple[int, int]], keep: int, tmp_path: Path
) -> None:
    data = bytearray(MIXED)
    for at, value in flips:
        data[at] = value
    asked = []
    pread = os.pread

    def counted(fd: int, size: int, at: int) -> bytes:
        asked.append(size)
        return pread(fd, size, at)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pread", counted)
        members, _ = walk(bytes(data[:keep]), tmp_path)
    assert max(asked, default=0) <= 1 << 20  # whatever sizes the headers say
    offsets = [one.offset for one in members]
    assert offsets == sorted(set(offsets))
    for one in members:
        assert 0 <= one.offset <= one.data <= one.data + one.size <= keep
        assert bool(one.damage) <= (one.size == 0)

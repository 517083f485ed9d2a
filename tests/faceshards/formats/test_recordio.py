"""The scan against MXNet's own writer and reader, against every cut, and against files that lie."""

from __future__ import annotations

import itertools
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from faceshards.formats.idx import read_index
from faceshards.formats.recordio import join_parts, read_payload
from faceshards.formats.recordio_scan import scan
from faceshards.reading import open_file
from tests.recs import MAGIC, read_rec, write_rec

FUZZ = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def payload_of(seed, size):
    """Returns random bytes without zeros: a length that is off shows in the padding."""
    return np.random.default_rng(seed).integers(1, 200, size, dtype=np.uint8).tobytes()


ESCAPED = [
    MAGIC,
    MAGIC * 2,
    MAGIC * 5,
    b"",
    b"abcd" + MAGIC,
    MAGIC + b"abcd",
    MAGIC + b"abc",
    b"abc" + MAGIC,
    b"ab" + MAGIC + b"xy" + MAGIC,
    b"abcd" + MAGIC + b"efgh" + MAGIC + b"ijk",
    b"abcd" + MAGIC * 3 + b"e",
    MAGIC[:3],
    b"abcd" + MAGIC[:3],
    b"x" + MAGIC * 4,
    *(payload_of(n, n) for n in range(10)),
    payload_of(77, 70_000) + MAGIC + payload_of(78, 70_001),
]
PLAIN = [payload_of(n, 40 + 7 * n) for n in range(6)]
MIXED = [PLAIN[0], b"abcd" + MAGIC + b"efgh" + MAGIC + b"jk", PLAIN[1], PLAIN[2], b"lmno" + MAGIC + b"pqr", PLAIN[3]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rec")


@pytest.fixture(scope="module")
def plain(folder):
    path = folder / "plain.rec"
    return write_rec(path, PLAIN), path.read_bytes()


@pytest.fixture(scope="module")
def mixed(folder):
    path = folder / "mixed.rec"
    return write_rec(path, MIXED), path.read_bytes()


def rows_of(path, start=0, stop=None):
    """Returns (offset, payload or None, parts, cause) of each row, and checks both ways to a payload."""
    found = scan(path, start, os.path.getsize(path) if stop is None else stop)
    rows = []
    with open_file(path) as file:
        for row, (offset, length, parts) in enumerate(
            zip(found.offset.tolist(), found.length.tolist(), found.parts.tolist(), strict=True)
        ):
            cause = found.damage.get(row)
            if cause is None:
                payload = found.payload(row).tobytes()
                assert payload == read_payload(file, offset, length, parts)
                assert len(payload) == length
            else:
                assert cause
                assert length == 0
                payload = None
            rows.append((offset, payload, parts, cause))
    assert [row[0] for row in rows] == sorted({row[0] for row in rows})
    return rows


def scan_bytes(folder, data, cuts=()):
    """Returns the rows of a file with these bytes, scanned in the ranges between the cuts."""
    path = folder / "case.rec"
    path.write_bytes(data)
    bounds = [0, *sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]
    rows = []
    for start, stop in itertools.pairwise(bounds):
        piece = rows_of(path, start, stop)
        # A row belongs to the range that holds its offset, damage too: there the .idx entry is looked up.
        assert all(start <= row[0] < stop for row in piece)
        rows += piece
    return rows


def sound(rows):
    return [row[1] for row in rows if row[1] is not None]


def damaged(rows):
    return [row for row in rows if row[1] is None]


def put(data, at, new):
    return data[:at] + new + data[at + len(new) :]


def lrec_of(data, at):
    value = int.from_bytes(data[at + 4 : at + 8], "little")
    return value >> 29, value & (1 << 29) - 1


def with_lrec(data, at, cflag, length):
    return put(data, at + 4, struct.pack("<I", cflag << 29 | length))


def headers_of(data):
    return [at for at in range(0, len(data) - 7, 4) if data[at : at + 4] == MAGIC]


# ------------------------------------------------------------------------------------------------- sound files


def test_matches_mxnets_reader(folder):
    path = folder / "escaped.rec"
    offsets = write_rec(path, ESCAPED)
    assert read_rec(path) == ESCAPED
    rows = rows_of(path)
    assert [row[1] for row in rows] == ESCAPED
    assert [row[0] for row in rows] == offsets[:-1]
    aligned = [sum(p[at : at + 4] == MAGIC for at in range(0, len(p) - 3, 4)) for p in ESCAPED]
    assert [row[2] for row in rows] == [1 + cuts for cuts in aligned]


@FUZZ
@given(
    st.lists(st.lists(st.sampled_from([MAGIC, MAGIC[:1], MAGIC[1:], b"a", b"bcd", b"wxyz"]), max_size=8), max_size=6)
)
def test_matches_mxnets_reader_on_any_mixture_of_magic_words(folder, pieces):
    payloads = [b"".join(piece) for piece in pieces]
    path = folder / "mixture.rec"
    write_rec(path, payloads)
    assert sound(rows_of(path)) == payloads == read_rec(path)


@pytest.mark.parametrize("name", ["orl/train.rec", "orl/im2rec.rec", "dmlc/sample.rec"])
def test_matches_mxnets_reader_on_real_files(face_data, name):
    if not (face_data / name).is_file():
        pytest.skip(f"{name} is not among the sample sets")
    rows = rows_of(face_data / name)
    assert not damaged(rows)
    assert sound(rows) == read_rec(face_data / name)


def test_join_parts_takes_any_buffer(mixed):
    offsets, data = mixed
    assert join_parts(memoryview(data)[offsets[1] :], 3) == MIXED[1]
    assert join_parts(data[offsets[4] :], 2) == MIXED[4]


def test_a_record_in_very_many_parts_takes_linear_time(folder):
    payloads = [PLAIN[0], MAGIC * 100_000, PLAIN[1]]
    path = folder / "parts.rec"
    offsets = write_rec(path, payloads)
    # The range ends within the record, so that all but one of its parts lie behind it.
    assert sound(rows_of(path, 0, offsets[1] + 4)) == payloads[:2]
    assert sound(rows_of(path, offsets[1] + 4)) == payloads[2:]


def test_very_many_escaped_records_take_linear_time(folder):
    payloads = [MAGIC] * 30_000
    path = folder / "escapes.rec"
    write_rec(path, payloads)
    assert sound(rows_of(path)) == payloads


# --------------------------------------------------------------------------------------------- cut into ranges


def damaged_files(mixed):
    offsets, data = mixed
    heads = headers_of(data)
    yield "sound", data
    for at in heads:
        yield f"magic of {at}", put(data, at, b"\x00")
        for cflag in range(8):
            yield f"cflag {cflag} of {at}", with_lrec(data, at, cflag, lrec_of(data, at)[1])
        for length in (0, 1, 3, 500, len(data) - at - 8, (1 << 29) - 1):
            yield f"length {length} of {at}", with_lrec(data, at, lrec_of(data, at)[0], length)
    for cut in range(offsets[1], len(data)):
        yield f"cut at {cut}", data[:cut]
    yield "garbage in front", b"garbage!" + data
    yield "garbage behind", data + b"garbage!"
    yield "hole", put(data, offsets[2] - 4, bytes(offsets[3] - offsets[2]))


@pytest.mark.slow
def test_every_single_cut_gives_the_same_rows(folder, mixed):
    for name, data in damaged_files(mixed):
        expected = scan_bytes(folder, data)
        for stride in (4, 12, 40) if "cut" not in name else (12,):
            assert scan_bytes(folder, data, range(stride, len(data), stride)) == expected, name


@FUZZ
@given(st.data())
def test_any_cut_gives_the_same_rows(folder, mixed, data):
    broken = mutate(mixed[1], data, range(len(mixed[1])), data.draw(st.integers(0, 3)))
    cuts = data.draw(st.lists(st.integers(0, len(broken) // 4).map(lambda word: word * 4), max_size=6))
    assert scan_bytes(folder, broken, cuts) == scan_bytes(folder, broken)


# -------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("row", range(len(PLAIN)))
@pytest.mark.parametrize("bit", [0, 9, 22, 31])
def test_flipped_magic_loses_one_record(folder, plain, row, bit):
    offsets, data = plain
    flipped = struct.pack("<I", int.from_bytes(MAGIC, "little") ^ 1 << bit)
    rows = scan_bytes(folder, put(data, offsets[row], flipped))
    assert sound(rows) == PLAIN[:row] + PLAIN[row + 1 :]
    assert [bad[0] for bad in damaged(rows)] == [offsets[row]]


def test_flipped_magic_of_any_part_invents_nothing(folder, mixed):
    _, data = mixed
    for at in headers_of(data):
        rows = scan_bytes(folder, put(data, at, b"\x00"))
        assert len(sound(rows)) == len(MIXED) - 1
        assert set(sound(rows)) < set(MIXED)
        assert damaged(rows)


@pytest.mark.parametrize("row", range(len(PLAIN)))
def test_wrong_length_loses_one_record(folder, plain, row):
    offsets, data = plain
    true = len(PLAIN[row])
    padded = true + 3 & ~3
    tails = [end - offsets[row] - 8 for end in offsets[row + 2 :]]  # ends exactly where a later record does
    lengths = {*range(true), *range(padded + 1, padded + 40), *tails, len(data), len(data) * 2, (1 << 29) - 1}
    for length in sorted(lengths):
        rows = scan_bytes(folder, with_lrec(data, offsets[row], 0, length))
        assert sound(rows) == PLAIN[:row] + PLAIN[row + 1 :], length
        assert [bad[0] for bad in damaged(rows)] == [offsets[row]], length
    for length in range(true + 1, padded + 1):  # the format cannot tell these from a payload that ends in zeros
        rows = scan_bytes(folder, with_lrec(data, offsets[row], 0, length))
        assert sound(rows) == [*PLAIN[:row], PLAIN[row] + bytes(length - true), *PLAIN[row + 1 :]]


@pytest.mark.parametrize("cflag", [1, 2, 3, 5])
@pytest.mark.parametrize("row", range(len(PLAIN)))
def test_wrong_continuation_flag_invents_nothing(folder, plain, row, cflag):
    offsets, data = plain
    rows = scan_bytes(folder, with_lrec(data, offsets[row], cflag, len(PLAIN[row])))
    assert PLAIN[row] not in sound(rows)
    assert set(sound(rows)) < set(PLAIN)
    # Flag 2 or 3 casts doubt on the record in front of it: that one may have been the first part.
    assert len(sound(rows)) >= len(PLAIN) - (2 if cflag in (2, 3) else 1)
    assert offsets[row] in [bad[0] for bad in damaged(rows)]


@pytest.mark.parametrize("row", [1, 4])
def test_first_part_turned_whole_invents_nothing(folder, mixed, row):
    offsets, data = mixed
    rows = scan_bytes(folder, with_lrec(data, offsets[row], 0, lrec_of(data, offsets[row])[1]))
    assert sound(rows) == MIXED[:row] + MIXED[row + 1 :]


@pytest.mark.parametrize("files", ["plain", "mixed"])
def test_cut_at_every_byte(request, folder, files):
    offsets, data = request.getfixturevalue(files)
    payloads = {"plain": PLAIN, "mixed": MIXED}[files]
    for cut in range(1, len(data) + 1):
        rows = scan_bytes(folder, data[:cut])
        whole = sum(end <= cut for end in offsets[1:])
        assert sound(rows) == payloads[:whole], cut
        assert bool(damaged(rows)) == (cut not in offsets), cut  # between records a cut leaves no trace


def test_a_file_without_bytes_has_no_rows(folder):
    (folder / "case.rec").write_bytes(b"")
    assert rows_of(folder / "case.rec", 0, 0) == []


@pytest.mark.parametrize("tail", [b"x", b"xyz", b"xyzw", b"garbage", b"garbage!", bytes(1), bytes(4), bytes(4096)])
def test_garbage_behind_the_last_record(folder, plain, tail):
    rows = scan_bytes(folder, plain[1] + tail)
    assert sound(rows) == PLAIN[:-1]  # the last one's length may be what is wrong
    assert len(damaged(rows)) == 1


@pytest.mark.parametrize("head", [b"garbage!", bytes(4), bytes(8192), b"\xff\xd8\xff\xe0" * 700])
def test_garbage_in_front_of_the_first_record(folder, plain, head):
    rows = scan_bytes(folder, head + plain[1])
    assert sound(rows) == PLAIN
    assert [bad[0] for bad in damaged(rows)] == [0]


@pytest.mark.parametrize("head", [b"x", b"xyzabc"])
def test_a_shifted_file_has_no_records(folder, plain, head):
    rows = scan_bytes(folder, head + plain[1])
    assert len(rows) == len(damaged(rows)) == 1


def test_a_hole_of_zeros_loses_what_it_covers(folder, plain):
    offsets, data = plain
    for start in range(0, len(data), 4):
        for size in (4, 60, 200):
            stop = min(start + size, len(data))
            rows = scan_bytes(folder, put(data, start, bytes(stop - start)))
            touched = [n for n in range(len(PLAIN)) if offsets[n] < stop and start < offsets[n + 1]]
            clear = [PLAIN[n] for n in range(len(PLAIN)) if n not in touched]
            # A hole inside one payload cannot be seen here; one that begins right behind a record casts doubt on it.
            assert set(clear[:]) - set(sound(rows)) <= {PLAIN[touched[0] - 1]}
            assert len(rows) <= len(PLAIN)
            for n in touched:
                assert PLAIN[n] not in sound(rows) or start >= offsets[n] + 8 + len(PLAIN[n]) or stop <= offsets[n]


# ---------------------------------------------------------------------------------------------------------- fuzz


def outside_payloads(data, offsets):
    """Returns the places of headers and padding."""
    places = []
    for at in headers_of(data):
        length = lrec_of(data, at)[1]
        places += [*range(at, at + 8), *range(at + 8 + length, at + 8 + (length + 3 & ~3))]
    return [*places, offsets[-1]]


def mutate(raw, data, places, times):
    """Returns `raw` after `times` flips, insertions, deletions or cuts at drawn places."""
    drawn = data.draw(st.lists(st.sampled_from(places), min_size=times, max_size=times))
    for at in sorted(drawn, reverse=True):  # from behind, so that places stay what they are
        kind = data.draw(st.sampled_from(["set", "flip", "insert", "delete", "cut"]))
        if kind == "set":
            raw = put(raw, at, data.draw(st.binary(min_size=1, max_size=1)))[: len(raw)]
        elif kind == "flip" and at < len(raw):
            raw = put(raw, at, bytes([raw[at] ^ 1 << data.draw(st.integers(0, 7))]))
        elif kind == "insert":
            raw = raw[:at] + data.draw(st.binary(min_size=1, max_size=12)) + raw[at:]
        elif kind == "delete":
            run = 1
            while run < 8 and at + run in places and data.draw(st.booleans()):
                run += 1
            raw = raw[:at] + raw[at + run :]
        elif kind == "cut":
            raw = raw[:at]
    return raw


@settings(FUZZ, max_examples=1000)
@given(st.data())
def test_one_mutation_outside_the_payloads_invents_nothing(folder, mixed, data):
    offsets, raw = mixed
    allowed = {original + bytes(pad) for original in MIXED for pad in range(4)}
    # Two bits must flip for this: a last or middle part that says it begins a record passes for one.
    allowed |= {original.split(MAGIC, n)[-1] for original in MIXED for n in (1, 2)}
    broken = mutate(raw, data, outside_payloads(raw, offsets), 1)
    rows = scan_bytes(folder, broken)
    assert set(sound(rows)) <= allowed
    # Bytes that shift all that follows lose all that follows, as does a cut.
    if (len(broken) - len(raw)) % 4 == 0 and len(broken) > len(raw) - 12:
        assert len(sound(rows)) >= len(MIXED) - 2


@settings(FUZZ, max_examples=500)
@given(st.data())
def test_mutations_of_plain_headers_invent_nothing(folder, plain, data):
    offsets, raw = plain
    times = data.draw(st.integers(1, 4))
    raw = mutate(raw, data, outside_payloads(raw, offsets), times)
    # A length that grows takes in padding, which a second mutation may have changed, and what was inserted there.
    more = 3 + 12 * times
    for payload in sound(scan_bytes(folder, raw)):
        assert any(payload.startswith(original) and len(payload) - len(original) <= more for original in PLAIN)


@settings(FUZZ, max_examples=500)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=9),
            st.just(MAGIC),
            st.integers(0, 2**32 - 1).map(struct.Struct("<I").pack),
            st.tuples(st.integers(0, 3), st.integers(0, 24)).map(
                lambda pair: MAGIC + struct.pack("<I", pair[0] << 29 | pair[1])
            ),
            st.integers(0, 40).map(bytes),
        ),
        max_size=30,
    ),
    st.lists(st.integers(0, 80), max_size=4),
)
def test_any_bytes_are_scanned(folder, pieces, cuts):
    raw = b"".join(pieces)
    rows = scan_bytes(folder, raw)
    assert rows or not raw  # whatever is there is accounted for
    assert scan_bytes(folder, raw, [4 * cut for cut in cuts]) == rows


# --------------------------------------------------------------------------------------------------------- index


def index_of(folder, text):
    path = folder / "case.idx"
    path.write_bytes(text)
    index = read_index(path)
    assert index.offsets.dtype == index.keys.dtype == np.int64
    return list(zip(index.keys.tolist(), index.offsets.tolist(), strict=True)), index.problems


def test_index_is_sorted_by_offset(folder):
    assert index_of(folder, b"2\t200\n0\t0\n1\t100\n") == ([(0, 0), (1, 100), (2, 200)], [])


@pytest.mark.parametrize(
    "text",
    [
        b"0\t0\n\n1\t100\n\n",
        b"0\t0\r\n1\t100\r\n",
        b"0\t0\n1\t100",
        b"\n\n0\t0\n1\t100\n",
        b"0\t0\n  \n1\t100\n",
        b"0\t0\n\r\n1\t100\n",
    ],
)
def test_blank_lines_and_crlf_do_no_harm(folder, text):
    assert index_of(folder, text) == ([(0, 0), (1, 100)], [])


def test_an_empty_index_has_no_entries(folder):
    assert index_of(folder, b"") == ([], [])
    assert index_of(folder, b"\n\n") == ([], [])


def test_repeated_keys_are_told(folder):
    entries, problems = index_of(folder, b"5\t0\n5\t100\n5\t200\n")
    assert entries == [(5, 0), (5, 100), (5, 200)]
    assert len(problems) == 1
    assert "2 of 3 entries repeat a key" in problems[0]


def test_negative_and_large_numbers_are_entries(folder):
    assert index_of(folder, b"-1\t-8\n7\t999999999999999999\n") == ([(-1, -8), (7, 999999999999999999)], [])


@pytest.mark.parametrize(
    "line",
    [
        b"1\t99999999999999999999999999",
        b"99999999999999999999\t4",
        b"one\t4",
        b"1 image.jpg",
        b"1",
        b"1\t",
        b"\t4",
        b"1\t2\t3",
        b"1.5\t4",
        b"\xff\xfe\t4",
        b"1\tnan",
        b'"1"\t4',
        b"\0\0\0",
    ],
)
def test_lines_that_are_no_entries_are_told(folder, line):
    entries, problems = index_of(folder, b"0\t0\n" + line + b"\n2\t200\n")
    assert entries == [(0, 0), (2, 200)]
    assert len(problems) == 1
    assert "line 2" in problems[0]


def test_a_missing_index_is_an_oserror(folder):
    with pytest.raises(OSError, match=r"nowhere\.idx.*No such file or directory"):
        read_index(folder / "nowhere.idx")
    with pytest.raises(OSError, match="is a directory"):
        read_index(folder)


@settings(FUZZ, max_examples=600)
@given(st.one_of(st.binary(max_size=60), st.text("0123456789-+\t\n\r x.\0\"'", max_size=60).map(str.encode)))
def test_any_index_is_read(folder, text):
    entries, _ = index_of(folder, text)
    assert entries == sorted(entries, key=lambda entry: entry[1])
    assert len(entries) <= text.count(b"\n") + text.count(b"\r") + 1


def test_the_index_agrees_with_mxnet(folder):
    path = folder / "named.rec"
    offsets = write_rec(path, PLAIN, [3, 1, 4, 15, 9, 2])
    index = read_index(path.with_suffix(".idx"))
    assert index.offsets.tolist() == offsets[:-1]
    assert index.keys.tolist() == [3, 1, 4, 15, 9, 2]
    assert not index.problems


def test_a_missing_file_is_an_oserror(folder):
    with pytest.raises(OSError, match=r"No such file or directory: .*nowhere\.rec"):
        scan(Path(folder / "nowhere.rec"), 0, 8)

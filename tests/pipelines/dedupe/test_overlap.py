"""Pictures to keep out, found among rows: against loops over Python integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.dedupe import overlap
from pipelines.dedupe.hamming import MIRROR
from pipelines.dedupe.overlap import Finder, Pictures, find_overlaps
from tests.pipelines.dedupe.test_near import flip, random_hashes, to_hashes

pytestmark = pytest.mark.numeric

TURN = sum(1 << bit for bit in range(0, 256, 2))
BASES = (0, int("0123456789abcdef" * 4, 16))
HASHES = st.builds(
    lambda base, turned, bits: BASES[base] ^ (TURN if turned else 0) ^ sum(1 << bit for bit in bits),
    st.integers(0, 1),
    st.booleans(),
    st.sets(st.sampled_from([0, 1, 63, 64, 65, 127, 128, 191, 192, 255]), max_size=4),
)


def to_shas(values):
    """Python integers -> (N, 2) uint64, most of which share a word with another."""
    return np.array([[value // 2, value] for value in values], np.uint64).reshape(-1, 2)


def to_pictures(rows):
    """Rows of (set, sha, hash or None) -> Pictures; numbers count within a set."""
    of_set = np.array([row[0] for row in rows], np.int32)
    number = np.array([sum(other[0] == row[0] for other in rows[:i]) for i, row in enumerate(rows)], np.int32)
    hashes = to_hashes([row[2] or 0 for row in rows])
    hashed = np.array([row[2] is not None for row in rows], bool)
    return Pictures(["a", "b", "c"], of_set, number, to_shas([row[1] for row in rows]), hashes, hashed)


def oracle(pictures, rows, limit):
    """{row: (exact, distance, mirrored, picture)} of rows of (sha, hash), one row after the other."""
    found = {}
    for i, (sha, value) in enumerate(rows):
        near = []
        for place, (_, other, known) in enumerate(pictures):
            if sha == other:
                near.append((False, 0, False, place))  # the same bytes come first
            if known is not None and limit >= 0:
                for turned in (False, True):
                    apart = (value ^ known ^ (TURN if turned else 0)).bit_count()
                    if apart <= limit:
                        near.append((True, apart, turned, place))
        if near:
            other, apart, turned, place = min(near)
            found[i] = (not other, apart, turned, place)
    return found


PICTURES = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 9), st.none() | HASHES.filter(bool)), min_size=1, max_size=12
)


@settings(max_examples=80, deadline=None)
@given(PICTURES, st.lists(st.tuples(st.integers(0, 12), HASHES), max_size=24), st.integers(-1, 6))
def test_what_is_found_is_what_the_oracle_says(pictures, rows, limit):
    finder = Finder(to_pictures(pictures), limit)
    found = finder.find(to_shas([row[0] for row in rows]), to_hashes([row[1] for row in rows]))
    columns = zip(*(column.tolist() for column in found), strict=True)
    got = {row: (exact, apart, turned, place) for row, place, apart, turned, exact in columns}
    expected = oracle(pictures, rows, limit)
    if finder.bits == 0 or limit < 0:  # all pairs are compared: nothing can be missed
        assert got == expected
    assert set(got) <= set(expected)
    assert {row for row, (_, apart, _, _) in expected.items() if apart == 0} <= set(got)
    assert list(got) == sorted(got)


@pytest.mark.parametrize("distance", [0, 8, 16, 24])
def test_planted_copies_are_found_mirrored_or_not_and_nothing_else(distance):
    test = random_hashes(400, 1)
    rows = np.concatenate([random_hashes(3000, 2), flip(test, distance), flip(test, distance, seed=5) ^ MIRROR])
    shas = random_hashes(len(rows), 3)[:, :2]
    ones = np.ones(len(test), bool)
    pictures = Pictures(
        ["lfw"], np.zeros(400, np.int32), np.arange(400, dtype=np.int32), random_hashes(400, 4)[:, :2], test, ones
    )
    finder = Finder(pictures, 24)
    assert finder.bits > 0
    found = find_overlaps(finder, shas, rows, np.arange(len(rows)))
    assert found.row.tolist() == list(range(3000, 3800))  # expected misses at exactly 24: 0.08 of 800
    assert found.picture.tolist() == [*range(400)] * 2
    assert found.mirrored.tolist() == [False] * 400 + [True] * 400
    assert set(found.distance.tolist()) == {distance}
    assert not found.exact.any()
    details = found.details(pictures).to_pylist()
    assert details[0] == f"lfw picture 0, distance {distance}"
    assert details[-1] == f"lfw picture 399, distance {distance}, mirrored"
    assert found.per_set(pictures) == {"lfw": 800}


def test_neither_threads_nor_chunks_nor_other_rows_change_what_is_found(monkeypatch):
    test = random_hashes(50, 1)
    rows = np.concatenate([flip(test, 20), random_hashes(200, 2), test ^ MIRROR])
    shas = random_hashes(len(rows), 3)[:, :2]
    pictures = Pictures(["s"], np.zeros(50, np.int32), np.arange(50), shas[:50], test, np.ones(50, bool))
    finder = Finder(pictures, 24)
    whole = find_overlaps(finder, shas, rows, np.arange(len(rows)))
    monkeypatch.setattr(overlap, "SPAN", 7)
    monkeypatch.setattr(overlap, "_PIECE", 3)
    for some in (np.arange(len(rows)), np.arange(0, len(rows), 3)):
        found = find_overlaps(finder, shas, rows, some, threads=2)
        same = np.isin(whole.row, some)
        assert all(np.array_equal(a, b[same]) for a, b in zip(found, whole, strict=True))


def test_pictures_without_a_hash_are_found_by_their_bytes():
    pictures = to_pictures([(0, 5, None), (1, 7, None)])
    finder = Finder(pictures, 24)
    found = finder.find(to_shas([7, 6, 5]), to_hashes([0, 0, 0]))
    assert found.details(pictures).to_pylist() == [
        "b picture 0, distance 0, same bytes",
        "a picture 0, distance 0, same bytes",
    ]

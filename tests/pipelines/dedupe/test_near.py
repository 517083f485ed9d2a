"""The pair searches against loops over Python integers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.dedupe import equal, near, tables
from pipelines.dedupe.equal import Groups, equal_groups, member_pairs
from pipelines.dedupe.hamming import hamming
from pipelines.dedupe.near import across_pairs, within_pairs
from pipelines.dedupe.tables import plan_tables

pytestmark = pytest.mark.numeric

WORD = (1 << 64) - 1


def to_hashes(values):
    """Python integers of 256 bits -> (N, 4) uint64."""
    words = [[value >> (64 * word) & WORD for word in range(4)] for value in values]
    return np.array(words, np.uint64).reshape(-1, 4)


def to_set(pairs):
    triples = list(zip(pairs.a.tolist(), pairs.b.tolist(), pairs.distance.tolist(), strict=True))
    assert triples == sorted(triples), "pairs must ascend"
    assert len({triple[:2] for triple in triples}) == len(triples), "each pair once"
    return set(triples)


def random_hashes(n, seed=0):
    return np.random.default_rng(seed).integers(0, 1 << 64, (n, 4), dtype=np.uint64)


def flip(hashes, distance, seed=1):
    """Returns the hashes with `distance` random bits turned over in each."""
    rng = np.random.default_rng(seed)
    bits = np.zeros((len(hashes), 256), bool)
    for row in bits:
        row[rng.choice(256, distance, replace=False)] = True
    return hashes ^ np.packbits(bits, axis=1).view(np.uint64)


BASES = (0, (1 << 256) - 1, int("0123456789abcdef" * 4, 16))
# Families of hashes a few bits apart, so that every distance from 0 to about 12 turns up, and far ones too.
HASHES = st.builds(
    lambda base, bits: BASES[base] ^ sum(1 << bit for bit in bits),
    st.integers(0, 2),
    st.sets(st.sampled_from([0, 1, 63, 64, 65, 127, 128, 191, 192, 255]), max_size=6),
)
SETS = st.lists(st.tuples(st.integers(-1, 3), HASHES), max_size=30)


@given(st.lists(st.tuples(st.integers(0, (1 << 256) - 1), st.integers(0, (1 << 256) - 1)), min_size=1, max_size=20))
def test_hamming_counts_the_differing_bits(values):
    values = [*values, (0, (1 << 256) - 1), (0, (1 << 128) - 1)]  # 256 must not wrap to 0
    one, two = to_hashes([a for a, _ in values]), to_hashes([b for _, b in values])
    places, distances = hamming(np.concatenate([one, two]), np.arange(len(one)), np.arange(len(one)) + len(one))
    assert places.tolist() == list(range(len(values)))
    assert distances.tolist() == [(a ^ b).bit_count() for a, b in values]


@settings(max_examples=60, deadline=None)
@given(SETS, st.integers(0, 12), st.sampled_from([2, 5, 1 << 16]))
def test_within_pairs_is_complete(rows, limit, span):
    labels, values = np.array([row[0] for row in rows], np.int32), [row[1] for row in rows]
    expected = {
        (i, j, (values[i] ^ values[j]).bit_count())
        for i in range(len(rows))
        for j in range(i + 1, len(rows))
        if labels[i] == labels[j] >= 0 and (values[i] ^ values[j]).bit_count() <= limit
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near, "SPAN", span)  # identities that lie across chunks
        for threads in (1, 2):
            assert to_set(within_pairs(labels, to_hashes(values), limit, threads)) == expected
        some = np.arange(0, len(rows), 2)
        inside = {pair for pair in expected if pair[0] % 2 == 0 and pair[1] % 2 == 0}
        assert to_set(within_pairs(labels, to_hashes(values), limit, 2, some)) == inside


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=30), st.booleans())
def test_equal_groups_are_exact_even_when_all_keys_collide(rows, collide):
    columns = [np.array([row[i] for row in rows], np.uint64) for i in range(2)]
    use = [i for i in range(len(rows)) if i % 5 != 4]
    expected = {}
    for i in use:
        expected.setdefault(rows[i], []).append(i)
    with pytest.MonkeyPatch.context() as patch:
        if collide:
            patch.setattr(equal, "GOLDEN", np.uint64(0))
        groups = equal_groups(columns, np.array(use, np.int64))
    found = [groups.rows[a:b].tolist() for a, b in itertools.pairwise(groups.starts)]
    assert sorted(found) == sorted(group for group in expected.values() if len(group) > 1)


@settings(max_examples=60, deadline=None)
@given(SETS, st.integers(0, 12))
def test_across_pairs_are_true_and_equal_hashes_complete(rows, limit):
    labels, values = np.array([row[0] for row in rows], np.int32), [row[1] for row in rows]
    true = {
        (i, j, (values[i] ^ values[j]).bit_count())
        for i in range(len(rows))
        for j in range(i + 1, len(rows))
        if labels[i] != labels[j] and min(labels[i], labels[j]) >= 0 and (values[i] ^ values[j]).bit_count() <= limit
    }
    pairs, _ = across_pairs(labels, to_hashes(values), limit, 0.95)
    found = to_set(pairs)
    assert found <= true
    assert {pair for pair in true if pair[2] == 0} <= found
    again, _ = across_pairs(labels, to_hashes(values), limit, 0.95, threads=2)
    assert to_set(again) == found


@pytest.mark.parametrize(("distance", "recall"), [(0, 1.0), (8, 0.99), (16, 0.99), (20, 0.95), (24, 0.94)])
def test_across_pairs_finds_planted_copies(distance, recall):
    hashes = random_hashes(20_000)
    hashes = np.concatenate([hashes, flip(hashes[:3000], distance)])
    labels = np.arange(len(hashes), dtype=np.int32)
    pairs, statistics = across_pairs(labels, hashes, 24, 0.95, threads=2)
    assert np.all(pairs.b - pairs.a == 20_000)
    assert np.all(pairs.distance == distance)
    assert len(pairs.a) >= recall * 3000  # 0.94: three standard deviations below the 0.95 asked for
    assert statistics["cut_buckets"] == 0


def test_threads_change_neither_pairs_nor_statistics_of_a_crowd():
    hashes = np.concatenate([random_hashes(2000), flip(np.zeros((400, 4), np.uint64), 3)])  # a clump of 400
    labels = np.arange(len(hashes), dtype=np.int32)
    one, counted = across_pairs(labels, hashes, 8, 0.95, threads=1)
    two, recounted = across_pairs(labels, hashes, 8, 0.95, threads=2)
    assert to_set(one) == to_set(two)
    assert counted == recounted
    assert counted["cut_buckets"] > 0  # reported, not silent
    assert set(np.concatenate([one.a, one.b])) >= set(range(2000, 2400))  # yet nobody of the clump is missed


def test_copies_of_equal_hashes_take_part_in_near_pairs():
    far = int("0123456789abcdef" * 4, 16)
    values = [0, 0, 1, 1, far]  # row 0 and row 2 are of one identity, rows 1 and 3 of others
    labels = np.array([5, 6, 5, 7, 8], np.int32)
    pairs, statistics = across_pairs(labels, to_hashes(values), 2, 0.9999)
    assert to_set(pairs) == {(0, 1, 0), (2, 3, 0), (0, 3, 1), (1, 2, 1), (1, 3, 1)}
    assert statistics["equal_groups"] == 2


def test_huge_groups_are_cut_to_two_hubs():
    n = 100
    labels = np.repeat(np.arange(n // 2, dtype=np.int32), 2)
    groups = Groups(np.arange(n), np.array([0, n]))
    zero = np.zeros(1, np.int64)
    codes, _, cut = member_pairs(groups, zero, zero, np.zeros(1, np.int16), labels, lambda rows: np.argsort(-rows))
    pairs = {(int(code) >> 32, int(code) & 0xFFFFFFFF) for code in codes}
    assert cut == 1
    assert {row for pair in pairs for row in pair} == set(range(n))
    assert all(labels[a] != labels[b] and a < b for a, b in pairs)
    assert {a for a, b in pairs if b == 99} == set(range(98))  # the hub that comes first is tied to all others
    assert {b for a, b in pairs if a == 97} == {98, 99}  # its own identity hangs on the second hub


def test_masks_use_all_bits_alike_and_no_place_twice():
    masks = tables.masks(31, 77)
    bits = [[int(word) >> place & 1 for word in mask for place in range(64)] for mask in masks]
    uses = np.sum(bits, axis=0)
    assert np.all(np.sum(bits, axis=1) == 31)
    assert uses.max() - uses.min() <= 1
    for mask in masks:
        assert all(int(a) & int(b) == 0 for a, b in itertools.combinations(mask, 2))


@pytest.mark.parametrize("n", [2, 1000, 10**6, 42_500_000])
@pytest.mark.parametrize("limit", [1, 8, 24, 40, 64])
def test_plan_reaches_the_recall(n, limit):
    unlike = np.random.default_rng(0).normal(128, 13.2, 100_000).round().astype(np.int64).clip(0, 256)
    bits, tables = plan_tables(n, limit, 0.95, unlike)
    for distance, wanted in ((limit, 0.95), (min(limit, 16), 0.99)):
        missed = 1.0
        for i in range(bits):  # all bits of the key among the 256 - distance equal ones
            missed *= (256 - distance - i) / (256 - i)
        assert 1 - (1 - missed) ** tables >= wanted
    assert 2**bits >= n or bits == 48


@pytest.mark.parametrize("n", [0, 1, 2])
def test_tiny_sets(n):
    labels, hashes = np.arange(n, dtype=np.int32), np.zeros((n, 4), np.uint64)
    assert len(within_pairs(labels, hashes, 24).a) == 0
    assert len(across_pairs(labels, hashes, 24, 0.95)[0].a) == (n == 2)


TURN = sum(1 << bit for bit in range(0, 256, 2))  # what mirroring turns


def mirrored_pairs(rows, limit, same):
    """{(a, b, distance)} of mirrored copies, one pair after the other."""
    apart = {
        (i, j): (rows[i][1] ^ rows[j][1] ^ TURN).bit_count()
        for i, j in itertools.combinations(range(len(rows)), 2)
        if min(rows[i][0], rows[j][0]) >= 0 and (rows[i][0] == rows[j][0]) == same
    }
    return {(*pair, distance) for pair, distance in apart.items() if distance <= limit}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 3), HASHES, st.booleans()), max_size=24), st.integers(0, 12))
def test_mirrored_pairs_are_complete_within_and_true_across(rows, limit):
    rows = [(label, value ^ TURN if turned else value) for label, value, turned in rows]
    labels, hashes = np.array([row[0] for row in rows], np.int32), to_hashes([row[1] for row in rows])
    found = to_set(within_pairs(labels, hashes, limit, mirrored=True))
    assert found == mirrored_pairs(rows, limit, same=True)
    pairs, _ = across_pairs(labels, hashes, limit, 0.95, mirrored=True)
    expected = mirrored_pairs(rows, limit, same=False)
    assert to_set(pairs) <= expected
    assert {pair for pair in expected if pair[2] == 0} <= to_set(pairs)


@pytest.mark.parametrize(("distance", "recall"), [(0, 1.0), (8, 0.99), (16, 0.99), (24, 0.94)])
def test_across_pairs_finds_planted_mirrored_copies(distance, recall):
    hashes = random_hashes(20_000)
    hashes = np.concatenate([hashes, flip(hashes[:3000], distance) ^ np.uint64(TURN & WORD)])
    labels = np.arange(len(hashes), dtype=np.int32)
    pairs, statistics = across_pairs(labels, hashes, 24, 0.95, threads=2, mirrored=True)
    assert np.all(pairs.b - pairs.a == 20_000)
    assert np.all(pairs.distance == distance)
    assert len(pairs.a) >= recall * 3000
    assert statistics["cut_buckets"] == 0
    upright, _ = across_pairs(labels, hashes, 24, 0.95, threads=2)
    assert len(upright.a) == 0  # a mirrored copy is no near one

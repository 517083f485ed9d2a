"""Dedupe against oracles that walk row by row, and the cases a user will ask about."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faceshards.dataset.schema import CODE, REASONS
from pipelines.config import BuildConfig
from pipelines.dedupe.policy import dedupe, greedy, same_bytes

EXACT, NEAR, CONFLICT = CODE["exact_duplicate"], CODE["near_duplicate"], CODE["label_conflict"]
OUTLIER = int("0123456789abcdef" * 4, 16)


def ones(count, start=0):
    """A hash with `count` bits set from bit `start` on: hashes of one start are |difference of counts| apart."""
    return ((1 << count) - 1) << start


def run(rows, threads=1, **config):
    """Rows of (label, sha, phash, size), plain integers."""
    labels = np.array([row[0] for row in rows], np.int32)
    sha = np.array([[row[1], row[1] // 2] for row in rows], np.uint64).reshape(-1, 2)
    words = [[row[2] >> (64 * word) & ((1 << 64) - 1) for word in range(4)] for row in rows]
    phash = np.array(words, np.uint64).reshape(-1, 4)
    size = np.array([row[3] for row in rows], np.int32)
    return dedupe(labels, same_bytes(labels, sha), phash, size, BuildConfig(**config), threads)


def apart(rows, i, j):
    return (rows[i][2] ^ rows[j][2]).bit_count()


def inside_oracle(rows, limit):
    """Steps 1 and 2, one row after the other: {dropped row: (reason, representative, distance)}."""
    gone = {}
    for i, row in enumerate(rows):
        for j in range(i):
            if row[0] >= 0 and j not in gone and rows[j][:2] == row[:2]:
                gone[i] = (EXACT, j, 0)
                break
    by_priority = sorted(
        (i for i in range(len(rows)) if rows[i][0] >= 0 and i not in gone), key=lambda i: (-rows[i][3], i)
    )
    stays = []
    for i in by_priority:
        if not any(rows[k][0] == rows[i][0] and apart(rows, i, k) <= limit for k in stays):
            stays.append(i)
    for i in by_priority:
        if i not in stays:
            near = [k for k in stays if rows[k][0] == rows[i][0] and apart(rows, i, k) <= limit]
            best = min(near, key=lambda k: (apart(rows, i, k), -rows[k][3], k))
            gone[i] = (NEAR, best, apart(rows, i, best))
    return gone


def policy_oracle(rows, gone, edges, policy):
    """Step 3, given the edges {(a, b)} found: {dropped row: (reason, representative, distance)}."""
    neighbours = {}
    for a, b in edges:
        neighbours.setdefault(a, []).append(b)
        neighbours.setdefault(b, []).append(a)
    if policy == "keep":
        return {}
    if policy == "drop":
        best = {i: min(near, key=lambda k: (apart(rows, i, k), k)) for i, near in neighbours.items()}
        return {i: (CONFLICT, k, apart(rows, i, k)) for i, k in best.items()}
    left = [row[0] for i, row in enumerate(rows) if row[0] >= 0 and i not in gone]

    def priority(i):
        return (-left.count(rows[i][0]), rows[i][0], -rows[i][3], i)

    stays = set()
    for i in sorted(neighbours, key=priority):
        if not any(k in stays for k in neighbours[i]):
            stays.add(i)
    out = {}
    for i in set(neighbours) - stays:
        k = min((k for k in neighbours[i] if k in stays), key=lambda k: (apart(rows, i, k), priority(k)))
        out[i] = (CONFLICT, k, apart(rows, i, k))
    return out


ROWS = st.lists(
    st.tuples(
        st.integers(-1, 3),
        st.integers(0, 12),
        st.builds(lambda count, far: ones(count) ^ (OUTLIER if far else 0), st.integers(0, 14), st.booleans()),
        st.integers(1, 3),
    ),
    max_size=24,
)


@settings(max_examples=80, deadline=None)
@given(ROWS, st.integers(-1, 6), st.integers(-1, 6), st.sampled_from(["drop", "keep-larger", "keep"]))
def test_dedupe_is_what_the_oracles_say(rows, within, across, policy):
    out = run(rows, near_within=within, near_across=across, conflict_policy=policy)
    gone = inside_oracle(rows, within)
    kept = [i for i in range(len(rows)) if rows[i][0] >= 0 and i not in gone]

    stand = {i: gone[i][1] if i in gone else i for i in range(len(rows)) if gone.get(i, (0,))[0] != EXACT}
    exact = {
        (min(stand[i], stand[j]), max(stand[i], stand[j]))
        for i in stand
        for j in stand
        if rows[i][0] != rows[j][0] and min(rows[i][0], rows[j][0]) >= 0 and rows[i][1] == rows[j][1]
    }
    close = {(i, j): apart(rows, i, j) for i in kept for j in kept if i < j and rows[i][0] != rows[j][0]}
    edges = {(a, b): (d, e) for a, b, d, e in out.conflicts.tolist()}
    assert list(edges) == sorted(edges)
    assert {pair for pair, (_, flag) in edges.items() if flag} == exact
    assert all(d == apart(rows, a, b) for (a, b), (d, _) in edges.items())
    assert set(edges) <= exact | {pair for pair, d in close.items() if d <= across}
    if across >= 0:  # the banding owes the recall only statistically, except for equal hashes
        assert set(edges) >= {pair for pair, d in close.items() if d == 0}

    gone |= policy_oracle(rows, gone, edges, policy)
    assert out.reason.tolist() == [gone.get(i, (0,))[0] for i in range(len(rows))]
    assert out.representative.tolist() == [gone[i][1] if i in gone else -1 for i in range(len(rows))]
    assert out.distance.tolist() == [gone[i][2] if i in gone else -1 for i in range(len(rows))]

    links = {}
    for (a, b), (d, _) in edges.items():
        links.setdefault(tuple(sorted((rows[a][0], rows[b][0]))), []).append(d)
    assert out.identity_links.tolist() == [(*pair, len(ds), min(ds)) for pair, ds in sorted(links.items())]
    for name in ("exact_duplicate", "near_duplicate", "label_conflict"):
        assert out.statistics.get(name, 0) == out.reason.tolist().count(CODE[name])  # the books add up

    again = run(rows, threads=2, near_within=within, near_across=across, conflict_policy=policy)
    for name in ("reason", "representative", "distance", "conflicts", "identity_links"):
        assert np.array_equal(getattr(again, name), getattr(out, name))
    assert again.statistics == out.statistics


@settings(deadline=None)
@given(
    st.permutations(range(8)), st.sets(st.tuples(st.integers(0, 7), st.integers(0, 7)).filter(lambda e: e[0] != e[1]))
)
def test_greedy_is_the_loop(rank, edges):
    a, b = np.array([e[0] for e in edges], np.int64), np.array([e[1] for e in edges], np.int64)
    stays = set()
    for node in sorted(range(8), key=lambda i: rank[i]):
        if not any((node, other) in edges or (other, node) in edges for other in stays):
            stays.add(node)
    assert set(np.flatnonzero(greedy(a, b, np.array(rank)))) == stays


def test_chain_keeps_both_ends():
    out = run([(0, 1, ones(0), 9), (0, 2, ones(20), 8), (0, 3, ones(40), 7)])
    assert out.reason.tolist() == [0, NEAR, 0]  # the third is near only to the one that goes
    assert out.representative.tolist() == [-1, 0, -1]
    assert out.distance.tolist() == [-1, 20, -1]


def test_larger_file_stays_then_smaller_row():
    out = run([(0, 1, ones(0), 5), (0, 2, ones(2), 9), (0, 3, ones(4), 9)])
    assert out.representative.tolist() == [1, -1, 1]


def test_exact_copy_under_another_name_is_found_though_it_lost_to_a_near_copy():
    rows = [(0, 1, ones(0), 5), (0, 2, ones(10), 9), (1, 1, ones(0), 5)]  # row 0 goes for row 1; row 2 equals row 0
    out = run(rows, near_across=-1)
    assert out.reason.tolist() == [NEAR, CONFLICT, CONFLICT]
    assert out.conflicts.tolist() == [(1, 2, 10, True)]


@pytest.mark.parametrize(
    ("policy", "reasons"),
    [("drop", [CONFLICT, CONFLICT, 0, 0]), ("keep-larger", [0, CONFLICT, 0, 0]), ("keep", [0, 0, 0, 0])],
)
def test_policies_on_one_photograph_under_two_names(policy, reasons):
    rows = [(7, 1, ones(0), 5), (3, 2, ones(4), 5), (7, 3, OUTLIER, 5), (3, 4, ones(200), 5), (7, 5, ones(99, 99), 5)]
    out = run(rows, conflict_policy=policy)
    assert out.reason.tolist() == [*reasons, 0]
    assert out.identity_links.tolist() == [(3, 7, 1, 4)]


@pytest.mark.parametrize("policy", ["drop", "keep-larger"])
def test_one_photograph_under_very_many_names(policy):
    rows = [(label, 1, 0, 5) for label in range(200)] + [(150, 2, OUTLIER, 5)]  # a "no picture" image, say
    out = run(rows, conflict_policy=policy)
    assert np.count_nonzero(out.reason[:200] == CONFLICT) == (200 if policy == "drop" else 199)
    if policy == "keep-larger":
        assert out.reason[150] == 0  # the identity that has another image
        assert set(out.representative[out.reason == CONFLICT]) == {150}
    assert out.statistics["cut_groups"] == 1


def test_row_order_does_not_matter_when_sizes_differ():
    rng = np.random.default_rng(0)
    rows = [(int(rng.integers(3)), i, ones(int(rng.integers(60))), i + 1) for i in range(60)]
    order = rng.permutation(60)
    for policy in ("drop", "keep-larger"):
        straight = run(rows, conflict_policy=policy).reason
        shuffled = run([rows[i] for i in order], conflict_policy=policy).reason
        assert np.array_equal(straight[order], shuffled)


def test_nothing_eligible():
    for rows in ([], [(-1, 1, 0, 5)] * 3):
        out = run(rows)
        assert not out.reason.any()
        assert len(out.conflicts) == len(out.identity_links) == 0
    assert REASONS[0] == "kept"


TURN = sum(1 << bit for bit in range(0, 256, 2))  # what mirroring turns


def test_a_mirrored_copy_is_a_copy_only_where_the_setting_says_so():
    rows = [
        (0, 1, OUTLIER, 9),
        (0, 2, OUTLIER ^ TURN ^ 0b111, 5),  # mirrored, 3 bits away, the smaller file
        (1, 3, ones(40), 5),
        (2, 4, ones(40) ^ TURN ^ 0b11, 5),  # mirrored under another identity, 2 bits away
        (2, 5, ones(30, 100), 5),
    ]
    off = run(rows)
    assert off.reason.tolist() == [0] * 5
    assert len(off.conflicts) == len(off.mirrored_rows) == 0
    on = run(rows, near_mirror=3)
    assert on.reason.tolist() == [0, NEAR, CONFLICT, CONFLICT, 0]
    assert on.representative.tolist() == [-1, 0, 3, 2, -1]
    assert on.distance.tolist() == [-1, 3, 2, 2, -1]
    assert on.mirrored_rows.tolist() == [1, 2, 3]
    assert on.conflicts.tolist() == [(2, 3, 2, False)]
    assert on.mirrored_conflicts.tolist() == [True]
    assert on.identity_links.tolist() == [(1, 2, 1, 2)]
    within_only = run(rows, near_mirror=3, near_within=-1, near_across=-1, conflict_policy="keep")
    assert within_only.reason.tolist() == [0, NEAR, 0, 0, 0]
    assert run(rows, near_mirror=1).reason.tolist() == [0] * 5


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(-1, 6), st.integers(0, 6), st.sampled_from(["drop", "keep-larger", "keep"]))
def test_with_mirrored_copies_a_drop_is_near_what_stands_for_it(rows, near, mirror, policy):
    rows = [(*row[:2], row[2] ^ TURN if i % 3 == 0 else row[2], row[3]) for i, row in enumerate(rows)]
    out = run(rows, near_within=near, near_across=near, near_mirror=mirror, conflict_policy=policy)
    mirrored = set(out.mirrored_rows.tolist())
    for i in np.flatnonzero((out.reason == NEAR) | (out.reason == CONFLICT)).tolist():
        other = int(out.representative[i])
        assert out.distance[i] == (rows[i][2] ^ rows[other][2] ^ (TURN if i in mirrored else 0)).bit_count()
        if i in mirrored:
            assert out.distance[i] <= mirror
    kept = [i for i in range(len(rows)) if rows[i][0] >= 0 and out.reason[i] == 0]
    for i in kept:
        for j in kept:
            assert i == j or rows[i][0] != rows[j][0] or (rows[i][2] ^ rows[j][2] ^ TURN).bit_count() > mirror
    again = run(rows, 2, near_within=near, near_across=near, near_mirror=mirror, conflict_policy=policy)
    assert np.array_equal(again.reason, out.reason)
    assert np.array_equal(again.mirrored_conflicts, out.mirrored_conflicts)

"""Balance against a loop over identities, and the promises its docstrings make."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faceshards.dataset.schema import CODE
from faceshards.hashing import splitmix64
from pipelines.config import BuildConfig
from pipelines.stages.balance import balance, shard_count

pytestmark = pytest.mark.numeric

SMALL, LARGE = CODE["min_images"], CODE["max_images"]
SETS = st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=80)


def columns(rows):
    return np.array([row[0] for row in rows], np.int32), np.array([row[1] for row in rows], bool)


@settings(max_examples=80, deadline=None)
@given(SETS, st.integers(1, 5), st.integers(0, 5), st.integers(0, (1 << 63) - 1))
def test_balance_is_what_the_loop_says(rows, least, extra, seed):
    config = BuildConfig(min_images=least, max_images=extra and least + extra - 1, seed=seed)
    labels, alive = columns(rows)
    plan = balance(labels, alive, config)
    images = defaultdict(list)
    for row, (label, lives) in enumerate(rows):
        if lives:
            images[label].append(row)
    reason, fresh, number = [0] * len(rows), [-1] * len(rows), 0
    for label in sorted(images):
        by_hash = sorted(images[label], key=lambda row: int(splitmix64(seed, 0, np.array([row]))[0]))
        stay = by_hash[: config.max_images or None]
        for row in set(by_hash) - set(stay):
            reason[row] = LARGE
        if len(stay) < least:
            for row in stay:
                reason[row] = SMALL
            continue
        for row in stay:
            fresh[row] = number
        number += 1
    assert plan.reason.tolist() == reason
    assert plan.label.tolist() == fresh
    assert plan.label.dtype == np.int32
    assert np.array_equal(alive, (plan.reason != 0) | (plan.label >= 0))  # every live row stays or has a reason


@settings(max_examples=80, deadline=None)
@given(SETS, st.integers(1, 12), st.integers(0, 9))
def test_every_shard_gets_its_share_of_everything(rows, shards, seed):
    labels, alive = columns(rows)
    plan = balance(labels, alive, BuildConfig(min_images=1, seed=seed))
    placed = plan.place(shards)
    kept = plan.label >= 0
    assert np.array_equal(placed.shard >= 0, kept)
    assert np.array_equal(placed.row >= 0, kept)
    total = int(kept.sum())
    sizes = Counter(placed.shard[kept].tolist())
    assert {sizes[shard] for shard in range(shards)} <= {total // shards, -(-total // shards)}
    for shard in range(shards):
        assert sorted(placed.row[placed.shard == shard].tolist()) == list(range(sizes[shard]))
    for label in range(int(plan.label.max(initial=-1)) + 1):
        count = int((plan.label == label).sum())
        spread = Counter(placed.shard[plan.label == label].tolist())
        assert {spread[shard] for shard in range(shards)} <= {count // shards, -(-count // shards)}


def test_seed_decides_alone():
    labels, alive = np.repeat(np.arange(50, dtype=np.int32), 20), np.ones(1000, bool)
    plans = [balance(labels, alive, BuildConfig(max_images=10, seed=seed)) for seed in (1, 1, 2)]
    assert np.array_equal(plans[0].label, plans[1].label)
    assert not np.array_equal(plans[0].label, plans[2].label)
    places = [plan.place(8) for plan in plans]
    assert np.array_equal(places[0].shard, places[1].shard)
    assert np.array_equal(places[0].row, places[1].row)


def test_rows_of_a_shard_are_mixed():
    labels, alive = np.repeat(np.arange(100, dtype=np.int32), 40), np.ones(4000, bool)
    plan = balance(labels, alive, BuildConfig())
    placed = plan.place(8)
    order = np.argsort(placed.row[placed.shard == 3])
    sequence = plan.label[placed.shard == 3][order]
    assert np.mean(sequence[1:] == sequence[:-1]) < 0.05  # 1 in 100 by chance, 4 in 5 if identities lay together


def test_splitmix64_spreads_seeds_purposes_and_rows():
    hashes = [splitmix64(seed, purpose, np.arange(1000)) for seed in range(8) for purpose in range(3)]
    assert len(np.unique(np.concatenate(hashes))) == 24_000
    bits = np.unpackbits(np.concatenate(hashes).view(np.uint8)).mean()
    assert abs(bits - 0.5) < 0.005
    assert np.all(splitmix64((1 << 63) - 1, 2, np.arange(3)) == splitmix64((1 << 63) - 1, 2, np.arange(3)))


@pytest.mark.parametrize(
    ("total", "rows", "settings_", "expected"),
    [
        (100 << 20, 10_000, {"shard_bytes": 10 << 20}, 16),  # 10 rounded up to a multiple of 8
        (80 << 20, 10_000, {"shard_bytes": 10 << 20}, 8),
        (1, 10_000, {}, 1),  # of small sets, shards of 16 MiB or more
        ((32 << 20) - 1, 10_000, {}, 1),
        (32 << 20, 10_000, {}, 2),
        (100 << 20, 10_000, {}, 4),
        ((128 << 20) - 1, 10_000, {}, 4),
        (128 << 20, 10_000, {}, 8),
        (256 << 20, 10_000, {}, 8),
        ((8 * 256 << 20) + 1, 10_000, {}, 16),
        (22 << 20, 10_000, {"shard_bytes": 8 << 20}, 4),  # smaller ones are what was asked for
        (1 << 30, 3, {}, 3),  # never an empty shard
        (1 << 40, 10_000, {"shards": 5}, 5),
        (1 << 40, 4, {"shards": 5}, 4),
    ],
)
def test_shard_count(total, rows, settings_, expected):
    assert shard_count(total, rows, BuildConfig(**settings_)) == expected

"""The order in windows: every row once, of few shards at a time, the same on any number of ranks and from any step."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import time
from collections import Counter
from itertools import pairwise
from threading import Event

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.data.test_stream import fake, seen, stream
from tests.training.runs import LIMIT
from training.config import TrainConfig
from training.data.layout import Layout, StreamError, lane_order
from training.data.read_ahead import have_read, will_read
from training.data.windows import Windows
from training.plan import OtherRunError, make_plan

shards = st.lists(st.integers(1, 30), min_size=1, max_size=9)


@given(shards, st.integers(1, 10), st.integers(0, 3), st.sampled_from(["instance", "identity", "sqrt"]))
def test_a_window_holds_the_rows_of_its_shards(sizes, window, epoch, sampling):
    edges = np.cumsum([0, *sizes])
    labels = np.arange(edges[-1], dtype=np.int32) % 7
    order = lane_order(1, epoch, 3, labels, sampling, edges, window)
    assert sorted(np.concatenate(order.pieces).tolist()) == list(range(len(sizes)))
    assert [len(pieces) for pieces in order.pieces[:-1]] == [window] * (len(order.pieces) - 1)
    assert order.starts[0] == 0
    for pieces, (start, end) in zip(order.pieces, pairwise(order.starts), strict=True):
        rows = np.concatenate([np.arange(edges[piece], edges[piece + 1]) for piece in pieces])
        assert end - start == len(rows)
        if sampling == "instance":
            assert sorted(order.rows[start:end].tolist()) == sorted(rows.tolist())
        else:
            assert set(order.rows[start:end].tolist()) <= set(rows.tolist())


def test_windows_and_rows_change_from_epoch_to_epoch():
    edges = np.arange(0, 1001, 100)
    labels = np.zeros(1000, np.int32)
    first, again, other = (lane_order(0, epoch, 0, labels, "instance", edges, 2) for epoch in (0, 0, 1))
    np.testing.assert_array_equal(first.rows, again.rows)
    assert not np.array_equal(np.concatenate(first.pieces), np.concatenate(other.pieces))
    inside = first.rows[:200]
    assert 0.3 < (inside // 100 == inside[0] // 100).mean() < 0.7  # the rows of two shards, mixed
    assert not (np.diff(inside) == 1).mean() > 0.05


@pytest.mark.parametrize(("sampling", "power"), [("identity", 0.0), ("sqrt", 0.5)])
def test_draws_in_windows_are_balanced_as_those_of_a_lane(sampling, power):
    """Of people with fewer images than there are shards, too, who are not in every window."""
    sizes = np.array([1, 4, 16, 64, 400])
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(5), sizes))
    edges = np.arange(0, 486, 97)
    orders = (lane_order(0, epoch, 0, labels, sampling, edges, 2) for epoch in range(300))
    drawn = np.bincount(np.concatenate([labels[order.rows] for order in orders]), minlength=5)
    np.testing.assert_allclose(drawn / drawn.sum(), sizes**power / (sizes**power).sum(), atol=0.06)


def test_a_batch_has_as_many_identities_as_of_all_rows():
    """Of shards as a build makes them: each with its fair part of every identity."""
    people, each, count = 1500, 16, 16
    labels = np.concatenate([np.roll(np.arange(people), -i * 97) for i in range(each)]).astype(np.int32)
    edges = np.arange(0, people * each + 1, people * each // count)
    rng = np.random.default_rng(1)
    # Row i of a person goes to shard (person + i) % count.
    shard = (labels + np.repeat(np.arange(each), people)) % count
    labels = labels[np.lexsort((rng.random(len(labels)), shard))]

    def identities(window: int) -> float:
        order = lane_order(3, 0, 0, labels, "instance", edges, window).rows
        batches = labels[order[: len(order) // 256 * 256]].reshape(-1, 256)
        return float(np.mean([len(np.unique(batch)) for batch in batches]))

    assert 1 <= identities(2) / identities(0) < 1.06  # more: the images of a person are spread over the windows


@pytest.mark.parametrize("world", [1, 2, 8, 3])  # on three, lanes are no whole shards
def test_every_image_once_an_epoch(many, world):
    batch = 4 * world
    got = Counter()
    for rank in range(world):
        part = stream(many, world, rank, batch, mirror=False, order="window")
        got += seen(part.batches(0))
        part.close()
    assert max(got.values()) == 1
    assert got.total() == batch * Layout(many, world, batch).steps_per_epoch


def test_global_batches_do_not_depend_on_the_ranks(many):
    def steps(world):
        parts = [list(stream(many, world, rank, 16, order="window").batches(1)) for rank in range(world)]
        return [sum((seen([step]) for step in together), Counter()) for together in zip(*parts, strict=True)]

    one = steps(1)
    assert len(one) > 10
    for world in (2, 4, 8):
        assert steps(world)[: len(one)] == one


@pytest.mark.parametrize("batch", [1, 16, 128])  # of the last, a lane's part is more than a window
def test_an_epoch_goes_on_at_any_step(many, batch):
    part = stream(many, batch=batch, augment=True, order="window", window=1)
    whole = list(part.batches(3))
    for start in range(0, len(whole), max(1, len(whole) // 5)):
        for a, b in zip(whole[start:], part.batches(3, start), strict=True):
            np.testing.assert_array_equal(a[0], b[0])
            np.testing.assert_array_equal(a[1], b[1])
    part.close()


def test_a_stream_left_or_closed_in_mid_epoch_ends(many):
    part = stream(many, order="window")
    batches = part.batches(0)
    next(batches)
    part.close()
    batches.close()
    with pytest.raises(StreamError, match="closed"):
        next(part.batches(0))


@given(st.lists(st.integers(3, 9), min_size=8, max_size=40), st.sampled_from([1, 2, 8]), st.integers(1, 40), st.data())
def test_what_is_held_is_what_a_step_takes_and_the_next_window(rows, world, each, data):
    try:
        layout = Layout(fake(rows), world, world * each)
    except StreamError:
        return
    start = data.draw(st.integers(0, layout.steps_per_epoch - 1))
    orders = []
    for lane in layout.own_lanes(0):
        edges = layout.edges(lane)
        orders.append(lane_order(0, 0, lane, np.zeros(edges[-1], np.int32), "instance", edges, 2))
    ready, held = [], set()
    windows = Windows(
        layout, orders, start, lambda lane, window, _: ready.append((lane, window)), lambda *window: held.remove(window)
    )
    for step in range(start, layout.steps_per_epoch):
        windows.wait(step)
        items = np.arange(step * each, (step + 1) * each)
        taken = {
            (lane, int(np.searchsorted(orders[lane].starts, place, side="right")) - 1)
            for lane, place in zip(items % len(orders), items // len(orders), strict=True)
        }
        assert taken <= set(ready)
        asked = {(lane, window) for lane, span in enumerate(windows._held) for window in span}
        held |= asked
        assert held == asked  # what was given up is no longer held
        for lane, order in enumerate(orders):
            own = sorted(window for at, window in taken if at == lane)
            if own:
                most = max(own[-1], min(own[0] + 1, len(order.pieces) - 1))
                assert {window for at, window in held if at == lane} == set(range(own[0], most + 1))
        windows.step_done()
    for lane, window in held:
        windows._windows[lane][window].result()
    windows.close()
    assert held == set()
    assert len(ready) == len(set(ready))


def test_what_keeps_a_window_from_being_ready_is_told_and_nobody_waits_for_ever():
    layout = Layout(fake([10] * 16), 8, 8)
    order = lane_order(0, 0, 0, np.zeros(20, np.int32), "instance", layout.edges(0), 1)
    go = Event()

    def ready(lane: int, window: int, ended: Event) -> None:
        go.wait()
        raise StreamError("gone")

    done = []
    windows = Windows(layout, [order], 0, ready, lambda *window: done.append(window))
    go.set()
    with pytest.raises(StreamError, match="gone"):
        windows.wait(0)
    windows.close()
    assert done == []


def test_files_are_read_ahead_and_forgotten(tmp_path):
    size, libc = 3 << 20, ctypes.CDLL(None)
    (tmp_path / "file").write_bytes(os.urandom(size))
    with open(tmp_path / "file", "rb") as file, mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as mapped:
        content = np.frombuffer(mapped, np.uint8)
        start = ctypes.c_void_p(content.ctypes.data)

        def in_memory() -> np.ndarray:
            """Returns of each page whether the system has it."""
            found = np.empty(size // mmap.PAGESIZE, np.uint8)
            assert libc.mincore(start, ctypes.c_size_t(size), ctypes.c_void_p(found.ctypes.data)) == 0
            return (found & 1).astype(bool)

        os.fsync(file.fileno())
        have_read(file.fileno(), 0, size)
        if in_memory().any():
            pytest.skip("a file system that keeps its files in memory")
        will_read(file.fileno(), 1 << 20, size)
        third, until = (1 << 20) // mmap.PAGESIZE, time.monotonic() + LIMIT
        while not in_memory()[third:].all():  # the disk takes its time
            assert time.monotonic() < until
        assert not in_memory()[:third].any()
        have_read(file.fileno(), 1 << 20, size)
        assert not in_memory().any()
        del content


def test_a_run_keeps_its_order_and_older_ones_were_global(data, tmp_path):
    config = TrainConfig(global_batch=16, epochs=1)
    plan = make_plan(config, data, 1)
    before = json.loads(json.dumps(vars(config)))
    del before["order"], before["window"]
    plan.check_same(tmp_path, data.fingerprint, before)
    windowed = make_plan(TrainConfig(global_batch=16, epochs=1, order="window"), data, 1)
    with pytest.raises(OtherRunError, match="made with order global, now window"):
        windowed.check_same(tmp_path, data.fingerprint, before)


def test_what_cannot_be_is_one_line(data):
    with pytest.raises(StreamError, match="order 'windows' is not one of global, window"):
        stream(data, order="windows")
    with pytest.raises(StreamError, match="window is 0, and has to be 1 at least"):
        stream(data, order="window", window=0)

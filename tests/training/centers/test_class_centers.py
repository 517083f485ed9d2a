"""Class centres: the sparse update against dense runs, the three stores, checkpoints."""

from __future__ import annotations

from collections import namedtuple

import mindspore as ms
import numpy as np
import pytest

from faceshards.errors import ConfigError, FaceshardsError
from training.centers import host as center_stores
from training.centers.class_centers import ClassCenters
from training.centers.first_values import initial_rows
from training.centers.registry import STORES
from training.centers.rules import RULES, LazyAdamW, Sgd
from training.centers.store import StoreError

pytestmark = pytest.mark.numeric

CLASSES, DIM, SAMPLE, STEPS = 400, 24, 40, 300
Plan = namedtuple("Plan", "ids grads rates")


def plan(steps=STEPS, classes=CLASSES, sample=SAMPLE, seed=0):
    """Samples, gradients and a learning rate that changes at every step."""
    rng = np.random.default_rng(seed)
    ids = [np.sort(rng.choice(classes, sample, replace=False)) for _ in range(steps)]
    grads = [rng.normal(size=(sample, DIM)).astype(np.float32) for _ in range(steps)]
    return Plan(ids, grads, [0.1 * (1 - t / steps) ** 2 + 0.001 * (t % 7) for t in range(steps)])


def dense_sgd(weight, todo, dtype, momentum=0.9, decay=5e-4):
    """Every row at every step, as torch.optim.SGD: v = mu v + (g + wd w), w = w - lr v."""
    w, v = weight.astype(dtype), np.zeros_like(weight, dtype)
    for ids, grads, lr in zip(*todo, strict=True):
        g = np.zeros_like(w)
        g[ids] = grads
        v = dtype(momentum) * v + (g + dtype(decay) * w)
        w = w - dtype(lr) * v
    return w, v


def centers(tmp_path=None, classes=CLASSES, **arguments):
    return ClassCenters(classes, DIM, seed=3, folder=tmp_path, **arguments)


def advance(held, todo, start=0, stop=None, settle=()):
    """Takes the steps whose part of the sample is in the slice."""
    for t in range(start, len(todo.ids) if stop is None else stop):
        here = (todo.ids[t] >= held.start) & (todo.ids[t] < held.start + held.count)
        held.gather(todo.ids[t][here])
        held.update(todo.ids[t][here], todo.grads[t][here], todo.rates[t])
        if t in settle:
            held.settle(37)
    return held


def all_rows(held, block=77):
    return np.concatenate([weight for _, weight in held.export_blocks(block)])


def copied(held, **arguments):
    """A run that continues from the blocks of one or more others."""
    sources = held if isinstance(held, list) else [held]
    new = centers(rule=sources[0].rule, **arguments)
    for source in sources:
        blocks = [(ids, arrays) for ids, arrays in source.blocks(53)]
        new.load_state({name: np.atleast_1d(value) for name, value in source.state().items()})
        for ids, arrays in blocks:
            new.restore(ids, arrays)
    return new


@pytest.mark.parametrize("store", STORES)
def test_sparse_sgd_is_dense_sgd(store, tmp_path):
    todo = plan(100 if store == "device" else STEPS)  # where a step is a dozen operations of MindSpore
    first = initial_rows(3, np.arange(CLASSES), DIM)
    want, momentum = dense_sgd(first, todo, np.float64)
    rounding = np.abs(dense_sgd(first, todo, np.float32)[0] - want).max()  # what float32 costs the dense run
    held = advance(centers(tmp_path, store=store), todo, settle=(len(todo.ids) // 2,))
    scale = np.abs(want).max()
    assert np.abs(all_rows(held) - want).max() < max(2 * rounding, 1e-6 * scale)
    held.settle()
    for ids, arrays in held.blocks():
        assert np.abs(arrays["weight"] - want[ids]).max() < 1e-6 * scale
        assert np.abs(arrays["momentum"] - momentum[ids]).max() < 2e-6 * np.abs(momentum).max()


def test_unsampled_rows_move_as_in_a_dense_run():
    todo = plan(steps=50, classes=20, sample=5)  # of 40 classes, 20 are never sampled
    first = initial_rows(3, np.arange(40), DIM)
    held = advance(centers(classes=40), todo)
    assert held.touched == 20
    want = dense_sgd(first, todo, np.float64)[0]
    assert np.abs(want[20:] - first[20:]).max() > 1e-6
    np.testing.assert_allclose(all_rows(held)[20:], want[20:], rtol=3e-7)
    np.testing.assert_allclose(held.gather(np.arange(20, 40)), want[20:], rtol=3e-7)
    assert held.touched == 40


def test_weight_decay_keeps_its_digits_over_many_steps():
    """lr * wd = 3e-8 is half of float32's step below 1: as a factor 1 - lr * wd it would be lost or doubled."""
    held = ClassCenters(4, DIM, rule=Sgd(momentum=0.0, weight_decay=1e-4), std=1.0)
    ids, zero = np.arange(4), np.zeros((4, DIM), np.float32)
    first = held.gather(ids).copy()
    for _ in range(200):
        for _ in range(50):
            held.update(ids[:0], zero[:0], 3e-4)
        held.update(ids, zero, 3e-4)
    np.testing.assert_allclose(held.gather(ids) / first, (1 - 3e-8) ** 10200, rtol=0, atol=5e-5)  # lost: 3e-4


@pytest.mark.parametrize("kind", RULES)
def test_rate_one_is_pytorchs_optimizer(kind):
    torch = pytest.importorskip("torch")
    held = centers(rule=RULES[kind](weight_decay=1e-2))
    everyone = np.arange(CLASSES)
    weight = torch.nn.Parameter(torch.tensor(initial_rows(3, everyone, DIM)))
    optimizer = (
        torch.optim.SGD([weight], 0.1, momentum=0.9, weight_decay=1e-2)
        if kind == "sgd"
        else torch.optim.AdamW([weight], 0.1, weight_decay=1e-2)
    )
    rng = np.random.default_rng(0)
    for t in range(40):
        grads = rng.normal(size=(CLASSES, DIM)).astype(np.float32)
        weight.grad = torch.tensor(grads)
        for part in optimizer.param_groups:
            part["lr"] = 0.1 / (t + 1)
        optimizer.step()
        held.update(everyone, grads, 0.1 / (t + 1))
    np.testing.assert_allclose(all_rows(held), weight.detach().numpy(), atol=3e-6)


@pytest.mark.parametrize("store", STORES)
def test_lazy_adamw_moves_only_sampled_rows(store, tmp_path):
    todo = plan(steps=30)
    held = advance(centers(tmp_path, store=store, rule=LazyAdamW(weight_decay=0.01)), todo)
    w = initial_rows(3, np.arange(CLASSES), DIM).astype(np.float64)
    m, u, times = np.zeros_like(w), np.zeros_like(w), np.zeros((CLASSES, 1))
    for ids, g, lr in zip(*todo, strict=True):
        times[ids] += 1
        m[ids] = 0.9 * m[ids] + 0.1 * g
        u[ids] = 0.999 * u[ids] + 0.001 * g.astype(np.float64) ** 2
        m_hat, u_hat = m[ids] / (1 - 0.9 ** times[ids]), u[ids] / (1 - 0.999 ** times[ids])
        w[ids] = w[ids] * (1 - lr * 0.01) - lr * m_hat / (np.sqrt(u_hat) + 1e-8)
    np.testing.assert_allclose(all_rows(held), w, atol=2e-6)
    updates = np.concatenate([arrays["updates"] for _, arrays in held.blocks()])
    np.testing.assert_array_equal(updates, times[times[:, 0] > 0, 0])


@pytest.mark.parametrize("kind", RULES)
def test_stores_agree(kind, tmp_path):
    todo = plan(steps=60)
    memory, disk, device = (
        all_rows(advance(centers(tmp_path, store=store, rule=RULES[kind]()), todo, settle=(20,))) for store in STORES
    )
    np.testing.assert_array_equal(memory, disk)
    np.testing.assert_allclose(memory, device, atol=2e-6)


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("store", STORES)
def test_restored_run_continues_bit_for_bit(store, kind, tmp_path):
    todo = plan(steps=90)
    rule = RULES[kind]()
    through = advance(centers(tmp_path, store=store, rule=rule), todo, settle=(59,))
    until = advance(centers(tmp_path, store=store, rule=rule), todo, stop=60)
    again = copied(until, tmp_path=tmp_path, store=store)
    assert again.step == 60
    assert again.touched == until.touched
    advance(again, todo, start=60)
    np.testing.assert_array_equal(all_rows(again), all_rows(through))


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 4), (3, 2)])
def test_other_numbers_of_ranks_go_on_as_one_does(before, after, kind):
    todo = plan(steps=50)
    rule = RULES[kind]()
    alone = advance(centers(rule=rule), todo, settle=(24,))
    old = [advance(centers(rank=rank, world=before, rule=rule), todo, stop=25) for rank in range(before)]
    new = [copied(old, rank=rank, world=after) for rank in range(after)]
    assert sum(held.touched for held in new) == sum(held.touched for held in old)
    rows = np.concatenate([all_rows(advance(held, todo, start=25)) for held in new])
    np.testing.assert_array_equal(rows, all_rows(alone))


def test_blocks_are_the_touched_rows_in_order():
    held = advance(centers(rank=1, world=2), plan(steps=2))
    ids = np.concatenate([ids for ids, _ in held.blocks(64)])
    assert (np.diff(ids) > 0).all()
    assert len(ids) == held.touched < held.count
    assert held.start <= ids[0]
    for _, arrays in held.blocks(64):
        assert set(arrays) == {"weight", "updates", *held.slots}
        assert arrays["weight"].dtype == np.float32
        assert len(arrays["weight"]) <= 64


@pytest.mark.parametrize(("kind", "slots"), [("sgd", {"momentum"}), ("adamw", {"first", "second"})])
def test_names_in_checkpoints_stay(kind, slots):
    """Checkpoints of older releases have these arrays and numbers."""
    held = advance(centers(rule=RULES[kind]()), plan(steps=3))
    assert set(held.state()) == {"classes", "dim", "seed", "std", "step", "product"}
    assert held.state()["product"].shape == (2, 2)
    for ids, arrays in held.blocks(64):
        assert set(arrays) == {"weight", "updates", *slots}
        assert (ids.dtype, arrays["updates"].dtype) == (np.int64, np.int32)


def test_export_gives_every_row_and_changes_nothing():
    held = advance(centers(rank=1, world=3), plan(steps=3))
    touched = held.touched
    ids = np.concatenate([ids for ids, _ in held.export_blocks(50)])
    np.testing.assert_array_equal(ids, np.arange(held.start, held.start + held.count))
    assert held.touched == touched


def test_a_checkpoint_of_other_centres_is_refused():
    state = centers().state()
    for name, value in (("classes", 9), ("dim", 9), ("seed", 9), ("std", 0.5)):
        with pytest.raises(ConfigError, match=f"the checkpoint has {name} {value}"):
            centers().load_state({**state, name: value})


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("kind", RULES)
def test_no_process_allocates_more_than_its_slice(store, kind, tmp_path):
    for rank in range(3):
        held = centers(tmp_path, classes=100, rank=rank, world=3, store=store, rule=RULES[kind]())
        count = 34 if rank == 0 else 33
        assert held.count == count
        size = sum(array.size for array in held.store.arrays) if store == "device" else held.store.data.size
        assert size == count * DIM * (2 if kind == "sgd" else 3)
        assert held.store.ledger.mark.shape == (count,)
        held.close()


@pytest.mark.parametrize("wrong", [[0, 1], [32, 33], [65, 66], [100, 101]])
def test_ids_of_another_slice_are_refused(wrong):
    with pytest.raises(IndexError, match="are not in 33 to 65"):
        centers(classes=99, rank=1, world=3).gather(np.array(wrong))


def test_untouched_rows_take_no_disk(tmp_path):
    held = ClassCenters(2_000_000, 512, store="disk", folder=tmp_path)
    held.gather(np.arange(0, 2_000_000, 20_000))
    apparent, real = held.store.disk_bytes()
    assert apparent == 2_000_000 * 512 * 4 * 2
    assert real < 2 << 20
    held.close()
    assert not list(tmp_path.iterdir())  # the file has no name


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file: cannot keep \d\.\d{3} MB of class centres: File exists") as failure:
        centers(tmp_path / "file", store="disk")
    assert isinstance(failure.value, FaceshardsError)


def test_more_than_the_memory_is_one_line():
    with pytest.raises(StoreError, match=r"memory: cannot keep [\d,]+\.00 GB of class centres: Cannot allocate memory"):
        ClassCenters(10**12, 500)


def test_a_full_disk_is_one_line_and_changes_nothing(tmp_path, monkeypatch):
    held = advance(centers(tmp_path, store="disk"), plan(steps=2))
    before = all_rows(held)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(center_stores.shutil, "disk_usage", lambda path: usage(1, 1, 1000))
    with pytest.raises(StoreError, match=r"full: \d+ new class centres need 68\.\d MB, 0\.001 MB free") as failure:
        held.update(np.arange(CLASSES), np.ones((CLASSES, DIM), np.float32), 0.1)
    assert str(failure.value).startswith(str(tmp_path))
    known = np.concatenate(list(held.store.ledger.blocks(CLASSES)))
    held.gather(known)  # rows that exist need no room
    assert held.step == 2
    np.testing.assert_array_equal(all_rows(held), before)


@pytest.mark.parametrize("kind", RULES)
def test_slices_with_one_rule_do_not_share_its_steps(kind):
    todo, rule = plan(steps=6), RULES[kind]()
    first, second = centers(rule=rule), centers(rule=rule)
    for t in range(6):  # in turns
        advance(first, todo, t, t + 1)
        advance(second, todo, t, t + 1)
    assert (first.step, second.step, rule.step) == (6, 6, 0)
    np.testing.assert_array_equal(all_rows(first), all_rows(second))
    np.testing.assert_array_equal(all_rows(first), all_rows(advance(centers(rule=RULES[kind]()), todo)))


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("store", STORES)
def test_gradients_may_be_tensors(store, kind, tmp_path):
    arrays, tensors = (centers(tmp_path, store=store, rule=RULES[kind]()) for _ in range(2))
    for ids, grads, lr in zip(*plan(steps=4), strict=True):
        arrays.update(ids, grads, lr)
        tensors.update(ids, ms.Tensor(grads), lr)
    np.testing.assert_array_equal(all_rows(arrays), all_rows(tensors))


@pytest.mark.parametrize("store", ["memory", "disk"])
def test_a_step_allocates_no_second_sample(store, tmp_path):
    held = centers(tmp_path, store=store)
    first = held.gather(np.arange(40))
    held.update(np.arange(40), np.ones((40, DIM), np.float32), 0.1)
    assert held.gather(np.arange(40)) is first  # in the same place
    np.testing.assert_array_equal(first, all_rows(held)[:40])


def test_unknown_store_and_missing_folder_are_refused():
    with pytest.raises(ConfigError, match="store 'tape' is not one of memory, disk, device"):
        centers(store="tape")
    with pytest.raises(ConfigError, match="class centres on disk need a folder"):
        centers(store="disk")

"""Checkpoints: exact, whole or absent, and readable by another number of ranks."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import mindspore as ms
import numpy as np
import pytest

from faceshards.checksums import sealed
from faceshards.formats.safetensors import TensorFileError
from tests.pipelines.build_fixtures import flip_bit
from training import checkpoint
from training.centers.class_centers import ClassCenters
from training.centers.rules import LazyAdamW, Sgd
from training.checkpoint import CheckpointError
from training.device.distributed import Group
from training.state import Meta, RunState

CLASSES, DIM, SGD = 23, 8, Sgd(weight_decay=0.01)


class ThreadGroup(Group):
    """Ranks that are threads of this process; only what happens on the host."""

    def __init__(self, rank, world, table, barrier):
        super().__init__(0, 1)
        self.rank, self.world, self._table, self._barrier = rank, world, table, barrier

    def gather_object(self, obj):
        self._table[self.rank] = obj
        self._barrier.wait(20)
        found = list(self._table)
        self._barrier.wait(20)
        return found


def on_ranks(world, act):
    """Returns what act(group) gives on each of `world` ranks."""
    table, barrier = [None] * world, threading.Barrier(world)
    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(lambda rank: act(ThreadGroup(rank, world, table, barrier)), range(world)))


def trained(rank, world, steps, centers=None, update=SGD):
    """Returns the centres of a rank after steps whose samples and gradients do not depend on the number of ranks."""
    centers = centers or ClassCenters(CLASSES, DIM, rank=rank, world=world, seed=5, rule=update)
    for _ in range(steps):
        rng = np.random.default_rng(centers.step)
        ids = np.sort(rng.choice(CLASSES, 6, replace=False))
        grads = rng.normal(0, 1, (6, DIM)).astype(np.float32)
        mine = (ids >= centers.start) & (ids < centers.start + centers.count)
        centers.gather(ids[mine])
        centers.update(ids[mine], grads[mine], 0.1 + 0.01 * centers.step)
    return centers


def meta(world, step=12, **state):
    state = RunState(step=step, epoch=1, batch=2, **state)
    return Meta(state=state, lanes=8, fingerprint="f" * 64, classes=CLASSES, world=world, config={"lr": 0.1})


ARRAYS = {"conv.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.array(3, np.int64)}


def save(folder, world, steps=12, update=SGD, **changes):
    def act(group):
        centers = trained(group.rank, world, steps, update=update)
        return checkpoint.save(folder, meta(world, steps, **changes), group, ARRAYS, ARRAYS, centers)

    return on_ranks(world, act)[0]


def all_rows(parts):
    return np.concatenate([weight for centers in parts for _, weight in centers.export_blocks()])


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (2, 1), (1, 3), (3, 2)])
@pytest.mark.parametrize("update", [SGD, LazyAdamW(weight_decay=0.01)], ids=["sgd", "adamw"])
def test_another_number_of_ranks_goes_on(tmp_path, before, after, update):
    """What follows equals a run that never stopped, and no rank gets rows of another's slice."""
    path = save(tmp_path, before, update=update)
    found = checkpoint.read_meta(path)
    parts = []
    for rank in range(after):
        centers = ClassCenters(CLASSES, DIM, rank=rank, world=after, seed=5, rule=update)
        checkpoint.restore_rank(path, found, centers)
        assert centers.step == 12
        assert centers.store.data.shape[0] == centers.count
        parts.append(trained(rank, after, 9, centers))
    straight = trained(0, 1, 12, update=update)
    straight.settle()
    trained(0, 1, 9, straight)
    np.testing.assert_array_equal(all_rows(parts), all_rows([straight]))


def test_arrays_come_back(tmp_path):
    path = save(tmp_path, 2, verification={"lfw": 0.9})
    found = checkpoint.read_meta(path)
    assert (found.state.step, found.state.verification, found.world) == (12, {"lfw": 0.9}, 2)
    shapes = {"conv.weight": (2, 3), "step": ()}
    wanted = parameters(shapes)
    checkpoint.set_from(path, found, "backbone", wanted)
    assert all((wanted[name].asnumpy() == ARRAYS[name]).all() for name in ARRAYS)
    for wrong, message in (
        ({"conv.weight": (2, 3)}, "has unknown step"),
        ({**shapes, "fc.bias": (2,)}, "lacks fc.bias"),
        ({**shapes, "conv.weight": (3, 3)}, r"has conv.weight \[2, 3\] instead of \[3, 3\]"),
    ):
        with pytest.raises(CheckpointError, match=f"backbone.safetensors: of another model: {message}"):
            checkpoint.set_from(path, found, "backbone", parameters(wrong))


def parameters(shapes):
    return {
        name: ms.Parameter(ms.Tensor(np.zeros(shape, ARRAYS.get(name, ARRAYS["conv.weight"]).dtype)), name=name)
        for name, shape in shapes.items()
    }


def test_damage_is_named(tmp_path):
    path = save(tmp_path, 2)
    file = path / "rank-1-of-2.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    with pytest.raises(CheckpointError, match=r"rank-1-of-2.safetensors: \d+ bytes, \d+ were written"):
        checkpoint.read_meta(path)
    file.write_bytes(whole[:-5] + bytes(5))
    centers = ClassCenters(CLASSES, DIM, seed=5, rule=SGD)
    with pytest.raises(CheckpointError, match=r"rank-1-of-2.safetensors: its SHA-256 is not what was written"):
        checkpoint.restore_rank(path, checkpoint.read_meta(path), centers)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"rank-1-of-2.safetensors: missing; the checkpoint was written by 2"):
        checkpoint.read_meta(path)
    (path / "checkpoint.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(CheckpointError, match="not of format 1 or 2"):
        checkpoint.read_meta(path)
    (path / "checkpoint.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"checkpoint.json: damaged"):
        checkpoint.read_meta(path)
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        checkpoint.read_meta(tmp_path / "none")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"world": 20_000_000}, "world 20000000 is no whole number from 1 to 3"),
        ({"world": 0}, "world 0 is no"),
        ({"world": True}, "world True is no"),
        ({"world": "2"}, "world 2 is no"),
        ({"classes": 10**30}, "classes 1000000000000000000000000000000 is no"),
        ({"lanes": -1}, "lanes -1 is no"),
        ({"step": 1.5}, "step 1.5 is no"),
        ({"files": {"a": [1]}}, "files: a has no size or checksum"),
        ({"files": {"a": ["1", "0"]}}, "files: a has no size or checksum"),
        ({"verification": {"lfw": "high"}}, "an accuracy or a threshold is no number"),
        ({"loss_scale": [1.0]}, "losses or loss_scale is no pair"),
        ({"pending": [None]}, "a loss or the loss scale is no number"),
        ({"config": []}, "no config, or no fingerprint"),
    ],
)
def test_a_number_that_is_none_or_immense(tmp_path, change, line):
    """With a checksum that is right: nothing is counted up to it, as a list of 20,000,000 names would be."""
    path = save(tmp_path, 1)
    content = json.loads((path / "checkpoint.json").read_text())
    (path / "checkpoint.json").write_text(json.dumps(sealed({**content, **change})))
    with pytest.raises(CheckpointError, match=rf"checkpoint.json: damaged: {line}"):
        checkpoint.read_meta(path)


def test_no_flipped_bit_of_checkpoint_json_passes(tmp_path):
    path = save(tmp_path, 1, verification={"lfw": 0.9})
    file, want = path / "checkpoint.json", checkpoint.read_meta(path)
    whole = file.read_bytes()
    refused = 0
    for bit in np.random.default_rng(0).integers(0, 8 * len(whole), 200).tolist():
        flip_bit(file, bit)
        try:
            assert checkpoint.read_meta(path) == want  # a blank between two words may be another
        except CheckpointError as error:
            assert str(path) in str(error)  # noqa: PT017 - nearly all raise
            refused += 1
        file.write_bytes(whole)
    assert refused > 100


def test_checkpoints_of_before_have_no_checksum_of_their_own(tmp_path):
    path = save(tmp_path, 1)
    want = checkpoint.read_meta(path)
    content = json.loads((path / "checkpoint.json").read_text())
    del content["sha256"]
    (path / "checkpoint.json").write_text(json.dumps({**content, "format": 1}))
    assert checkpoint.read_meta(path) == want
    (path / "checkpoint.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"checkpoint.json: damaged: 'sha256'"):
        checkpoint.read_meta(path)


def test_a_rank_that_cannot_write_leaves_the_last_one(tmp_path, monkeypatch):
    good = save(tmp_path, 2)
    write = checkpoint.write_blocks

    def full(path, *rest):
        if path.name.startswith("rank-1"):
            raise TensorFileError(f"{path}: cannot be written: No space left on device")
        write(path, *rest)

    monkeypatch.setattr(checkpoint, "write_blocks", full)
    with pytest.raises(CheckpointError, match=r"rank-1-of-2.safetensors: cannot be written: No space left"):
        save(tmp_path, 2, steps=14)
    assert os.listdir(tmp_path) == [good.name]
    checkpoint.read_meta(good)


def test_the_last_and_the_best_stay(tmp_path):
    for step, accuracy in ((1, 0.6), (2, 0.9), (3, 0.7), (4, None), (5, 0.8)):
        save(tmp_path, 1, step, verification={} if accuracy is None else {"a": accuracy, "b": accuracy})
    (tmp_path / ".step-000000009.partial").mkdir()
    checkpoint.prune(tmp_path, 2)
    assert [path.name[-1] for path in checkpoint.known(tmp_path)] == ["2", "4", "5"]
    assert checkpoint.best(tmp_path).name == "step-000000002"
    assert checkpoint.known(tmp_path / "none") == []


def test_a_damaged_one_of_before_stops_nothing(tmp_path, caplog):
    for step, accuracy in ((10, 0.9), (20, 0.8), (30, 0.7)):
        save(tmp_path, 1, step, verification={"lfw": accuracy})
    (tmp_path / "step-000000010" / "backbone.safetensors").unlink()
    assert checkpoint.best(tmp_path).name == "step-000000020"
    assert "step-000000010/backbone.safetensors: missing" in caplog.text
    checkpoint.prune(tmp_path, 1)
    assert [path.name for path in checkpoint.known(tmp_path)] == ["step-000000020", "step-000000030"]


def test_a_rank_reads_the_files_with_rows_of_its_slice_only(tmp_path):
    path = save(tmp_path, 3)
    meta = checkpoint.read_meta(path)
    (path / "rank-0-of-3.safetensors").write_bytes(b"not read")
    checkpoint.restore_rank(path, meta, ClassCenters(CLASSES, DIM, rank=2, world=3, seed=5, rule=SGD))
    with pytest.raises(
        CheckpointError, match=r"rank-0-of-3\.safetensors: its SHA-256 is not|rank-0-of-3\.safetensors: 8 bytes"
    ):
        checkpoint.restore_rank(path, meta, ClassCenters(CLASSES, DIM, rank=0, world=3, seed=5, rule=SGD))


def test_the_same_step_again_replaces(tmp_path):
    assert save(tmp_path, 1) == save(tmp_path, 1)
    assert len(os.listdir(tmp_path)) == 1

"""Mixed precision, on a CPU: what float16 may change, what it may not, and steps that its range does not hold."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import shutil
from functools import partial

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn
from safetensors.numpy import load_file

import training.step
from evaluation.during import Verifier
from evaluation.models.backbone_model import load_backbone
from faceshards.errors import ConfigError
from faceshards.formats.verification_bin import write_bin
from tests.recs import jpeg
from tests.training.head.head_oracle import head
from tests.training.linear import DIM, INPUTS, SCALE, integers, linear_step, momentum
from tests.training.runs import train
from tests.training.test_refusals import refused
from training.backbones.blocks import dense
from training.backbones.iresnet import Unit
from training.backbones.vit import VisionTransformer
from training.checkpoint import known, read_meta
from training.config import TrainConfig
from training.device.distributed import Group
from training.device.prepare import prepare
from training.head.margins.combined import CombinedMargin
from training.head.partial_fc import Head
from training.plan import OtherRunError, make_plan
from training.state import Meta, RunState
from training.step import FIRST_SCALE, GROWTH_STEPS, LARGEST_SCALE, LossScale, Step

pytestmark = pytest.mark.numeric

HALF = 2.0**-10  # between 1 and the next float16
LR = 0.5


def scale_of(amp="O2", loss_scale=0.0):
    return LossScale(TrainConfig(amp=amp, loss_scale=loss_scale))


def test_a_loss_scale_halves_and_doubles():
    scale = scale_of()
    assert (scale.value, scale.shrink(), scale.state) == (FIRST_SCALE, True, (FIRST_SCALE / 2, 0))
    for _ in range(GROWTH_STEPS - 1):
        scale.keep()
    assert scale.state == (FIRST_SCALE / 2, GROWTH_STEPS - 1)
    scale.keep()
    assert scale.state == (FIRST_SCALE, 0)
    scale.value, scale.good = LARGEST_SCALE, GROWTH_STEPS - 1
    scale.keep()
    assert scale.value == LARGEST_SCALE


def test_a_loss_scale_ends_at_one():
    scale = scale_of()
    assert [scale.shrink() for _ in range(17)] == [True] * 16 + [False]
    assert scale.value == 1


@pytest.mark.parametrize(("amp", "loss_scale", "value"), [("O0", 0, 1), ("O0", 1, 1), ("O3", 1, 1), ("O3", 4096, 4096)])
def test_a_fixed_loss_scale_stays(amp, loss_scale, value):
    scale = scale_of(amp, loss_scale)
    for _ in range(GROWTH_STEPS):
        scale.keep()
    assert (scale.state, scale.shrink(), scale.state) == ((value, 0), False, (value, 0))  # also of a run that went on


@pytest.fixture
def batch():
    """Weight (DIM, INPUTS), images (8, INPUTS), rows (6, DIM), targets (8,)."""
    rng = np.random.default_rng(3)
    rows = rng.normal(0, 0.01, (6, DIM)).astype(np.float32)
    return integers(rng, DIM, INPUTS), integers(rng, 8, INPUTS), rows, rng.integers(0, 6, 8).astype(np.int32)


@pytest.mark.parametrize("amp", ["O2", "O3"])
@pytest.mark.parametrize("parts", [1, 2])
def test_the_head_is_float32_and_the_scale_is_taken_out(batch, amp, parts):
    """The embeddings are exact in float16, so loss and rows have float32's error alone, and the weight's float16's."""
    weight, images, rows, targets = batch
    step, moved = linear_step(weight, Group(), amp=amp, accumulate=parts)
    loss, norm, d_rows = step(images, rows, targets.reshape(parts, -1), LR, 0)
    assert (step.scale.value, step.scale.good) == (FIRST_SCALE, 1)
    want_loss, want_rows, want_weight = 0.0, 0.0, 0.0
    for x, labels in zip(np.split(images, parts), np.split(targets, parts), strict=True):
        part_loss, d_x, d_w = head(x @ weight.T, rows, labels, m3=0.2, scale=SCALE)
        want_loss, want_rows = want_loss + part_loss / parts, want_rows + d_w / parts
        want_weight = want_weight + d_x.T @ x / parts
    np.testing.assert_allclose(loss, want_loss, rtol=1e-6)
    np.testing.assert_allclose(d_rows.asnumpy(), want_rows, rtol=0, atol=2e-6 * np.abs(want_rows).max())
    found = momentum(step)
    assert found.dtype == moved.asnumpy().dtype == np.float32
    bound = 2 * HALF * (np.abs(d_x).max() * np.abs(images).sum(axis=0).max())
    np.testing.assert_allclose(found, want_weight, rtol=0, atol=bound)
    assert bound < 0.1 * np.abs(want_weight).max()  # a scale left in, or taken out twice, shows
    np.testing.assert_allclose(norm, np.linalg.norm(found), rtol=1e-5)
    np.testing.assert_array_equal(moved.asnumpy(), weight - np.float32(LR) * found)


def test_a_step_too_large_for_float16_moves_nothing(batch):
    weight, images, rows, targets = batch
    tiny = images * np.float32(2.0**-12)  # short embeddings have long gradients
    step, moved = linear_step(weight, Group(), optimizer="adamw")
    before = {name: found.asnumpy().copy() for name, found in step.slots.items()}
    scales = []
    while True:
        loss, norm, d_rows = step(tiny, rows, targets[None], LR, len(scales))
        if d_rows is not None:
            break
        assert math.isfinite(loss)
        assert not math.isfinite(norm)
        np.testing.assert_array_equal(moved.asnumpy(), weight)
        for name, found in step.slots.items():
            np.testing.assert_array_equal(found.asnumpy(), before[name], err_msg=name)
        scales.append(step.scale.value)
    assert scales == [FIRST_SCALE / 2 ** (n + 1) for n in range(len(scales))]
    assert len(scales) > 3
    assert math.isfinite(norm)
    # The first step that counts is the first of an optimiser that never saw the others.
    other, expected = linear_step(weight, Group(), optimizer="adamw", loss_scale=step.scale.value)
    other(tiny, rows, targets[None], LR, 0)
    np.testing.assert_array_equal(moved.asnumpy(), expected.asnumpy())
    assert np.abs(expected.asnumpy() - weight).max() > 0


@pytest.mark.parametrize("loss_scale", [0, 64])
def test_where_the_scale_cannot_shrink_the_step_is_returned_and_moves_nothing(batch, loss_scale):
    weight, images, rows, targets = batch
    step, moved = linear_step(weight, Group(), loss_scale=loss_scale)
    step.scale.value = 1.0 if loss_scale == 0 else loss_scale
    _, norm, d_rows = step(images * np.float32(2.0**-23), rows, targets[None], LR, 0)
    assert d_rows is not None
    assert not math.isfinite(norm)
    np.testing.assert_array_equal(moved.asnumpy(), weight)


def test_a_checkpoint_without_a_loss_scale_still_loads():
    state = RunState(step=7, losses=(3.0, 2.0), loss_scale=(4096.0, 12), skipped=4)
    meta = Meta(state, lanes=8, fingerprint="f", classes=3, world=1, config={}, files={"centers-0": [1, "f"]})
    content = json.loads(json.dumps(meta.to_json()))
    assert Meta.from_json(content) == meta
    del content["sha256"]
    content["format"] = 1  # which had no checksum of its own
    assert Meta.from_json(content) == meta
    del content["skipped"]
    assert Meta.from_json(content).state == dataclasses.replace(state, skipped=0)
    del content["loss_scale"]
    assert Meta.from_json(content).state == dataclasses.replace(state, skipped=0, loss_scale=None)


def test_a_loss_scale_makes_another_run_of_float16_only(data, tmp_path):
    for amp, then in (("O0", 1.0), ("O0", 1024.0), ("O2", 1.0)):
        plan = make_plan(TrainConfig(amp=amp, global_batch=16), data, 1)
        settings = {**vars(plan.config), "loss_scale": then, "margin": [1.0, 0.5, 0.0], "milestones": [], "verify": []}
        if amp == "O0":
            plan.check_same(tmp_path, data.fingerprint, settings)
            continue
        with pytest.raises(OtherRunError, match=r"made with loss_scale 1\.0, now 0\.0"):
            plan.check_same(tmp_path, data.fingerprint, settings)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"amp": "O2"},
            "backbone in float16 (amp O2), loss scale found as it goes; weights, head and centres in float32",
        ),
        ({"amp": "O3", "loss_scale": 1024}, "backbone in float16 (amp O3), loss scale 1024; weights, head and"),
    ],
)
def test_the_plan_says_the_precision(data, tmp_path, settings, line):
    assert line in train(data.path, tmp_path / "run", "--dry-run", **settings).stdout
    plain = train(data.path, tmp_path / "plain", "--dry-run")
    assert "float16" not in plain.stdout


def test_a_loss_scale_of_float32_is_refused(data):
    with pytest.raises(ConfigError, match="loss_scale: 64 is for float16: amp is O0"):
        make_plan(TrainConfig(loss_scale=64, global_batch=16), data, 1)
    make_plan(TrainConfig(loss_scale=1, global_batch=16), data, 1)  # as earlier releases wrote it down


def units(rng):
    """Returns the two kinds of residual units, one after the other, and an embedding."""
    return nn.SequentialCell(Unit(rng, 3, 8, 2), Unit(rng, 8, 8, 1), nn.Flatten(), dense(rng, 8 * 8 * 8, DIM))


def small_step(backbone, amp, side):
    """Returns loss, gradient's norm and rows' gradient of a batch, from the step's first graph.

    Its other two, which sum and apply gradients, know no kinds of backbones, and take seconds to compile.
    """
    config = TrainConfig(clip=0, amp=amp, mask_ratio=0.5, drop_path=0.3)
    prepare(backbone, config, Group())
    rng = np.random.default_rng(2)
    images = rng.uniform(-1, 1, (6, 3, side, side)).astype(np.float32)
    rows = rng.normal(0, 0.01, (6, DIM)).astype(np.float32)
    scale = 1 if amp == "O0" else 64
    step = Step(config, backbone, Head(Group(), CombinedMargin(1, 0.5, 0, SCALE)), Group())
    batch = (images, rows, rng.integers(0, 6, 6).astype(np.int32), np.float32(scale), *step._chance(len(images), 0))
    loss, d_rows, gradients = step._gradients(*map(ms.Tensor, batch))
    squares = sum(np.square(gradient.asnumpy().astype(np.float64)).sum() for gradient in gradients)
    return float(loss), math.sqrt(squares) / scale, d_rows.asnumpy()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "side", "others"),
    [
        (lambda: units(np.random.default_rng(1)), 16, [("O2", {}), ("O3", {})]),
        (partial(VisionTransformer, 16, 1, 8, DIM), 112, [("O2", {}), ("O3", {"recompute": True})]),
    ],
    ids=["residual units", "vit"],
)
def test_a_step_of_every_kind_of_backbone_is_that_of_float32(build, side, others):
    want = small_step(build(), "O0", side)
    for amp, more in others:
        loss, norm, d_rows = small_step(build(**more), amp, side)
        assert loss == pytest.approx(want[0], rel=4 * HALF)
        assert norm == pytest.approx(want[1], rel=32 * HALF)
        np.testing.assert_allclose(d_rows, want[2], rtol=0, atol=32 * HALF * np.abs(want[2]).max())


# Whole runs. AdamW at a low rate, so that noise stays small beside what 60 steps learn.
CALM = {"optimizer": "adamw", "lr": 3e-4, "global_batch": 8}


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def sixty(data, tmp_path_factory):
    """Runs of 60 steps by level; those in float16 measured after each epoch, and the set that they are measured on."""
    folder = tmp_path_factory.mktemp("sixty")
    write_bin(folder / "pairs.bin", [jpeg(i // 2 * 3 + i % 2) for i in range(40)], [i % 2 == 0 for i in range(20)])
    runs = {}
    for amp in ("O0", "O2", "O3"):
        verify = [str(folder / "pairs.bin")] if amp != "O0" else []
        done = train(data.path, folder / amp, amp=amp, verify=verify, **CALM)
        assert done.exit_code == 0, done.output
        runs[amp] = folder / amp, done.stdout
    return runs, folder / "pairs.bin"


@pytest.mark.slow
@pytest.mark.parametrize("amp", ["O2", "O3"])
def test_sixty_steps_beside_float32(sixty, amp):
    runs, _ = sixty
    found, want = ([line["loss"] for line in lines(runs[name][0]) if "loss" in line] for name in (amp, "O0"))
    assert len(found) == len(want) == 60
    assert found[0] == pytest.approx(want[0], rel=4 * HALF)
    assert np.mean(found[-10:]) == pytest.approx(np.mean(want[-10:]), rel=0.05)
    assert np.mean(want[-10:]) < 0.9 * want[0]
    steps = [line for line in lines(runs[amp][0]) if "loss" in line]
    skipped = [line["skipped_steps"] for line in steps]
    assert 0 < skipped[-1] < 16
    assert skipped[-1] == sum("gradient_norm" not in line for line in steps)
    assert steps[-1]["loss_scale"] == FIRST_SCALE / 2 ** skipped[-1]
    assert f"steps 60 ({skipped[-1]} skipped: too large for float16)" in runs[amp][1]
    assert not any("loss_scale" in line or "skipped_steps" in line for line in lines(runs["O0"][0]))


@pytest.mark.slow
@pytest.mark.parametrize("amp", ["O2", "O3"])
def test_what_a_run_measures_is_what_its_checkpoint_holds(sixty, amp):
    """Bit for bit: float32 weights, embedded in float32."""
    runs, pairs = sixty
    path = known(runs[amp][0] / "checkpoints")[-1]
    state = read_meta(path).state
    measured = Verifier([pairs])(load_backbone(path).cell)["pairs"]
    assert (state.verification["pairs"], state.thresholds["pairs"], state.digests["pairs"]) == measured
    for name in ("backbone", "optimizer", "rank-0-of-1"):
        arrays = load_file(path / f"{name}.safetensors")
        assert {array.dtype.name for array in arrays.values()} & {"float16", "bfloat16"} == set()
        assert all(np.isfinite(array).all() for array in arrays.values())


@pytest.mark.slow
def test_scale_and_count_survive_a_kill(data, tmp_path, monkeypatch):
    """The same losses, bit for bit, from a checkpoint between a scale's halving and its doubling; and with AdaFace's
    statistics and the centres on the device, which one run shows, too."""
    monkeypatch.setattr(training.step, "GROWTH_STEPS", 3)
    settings = {"amp": "O3", "accumulate": 2, "epochs": 1, "checkpoint_steps": 5, "keep": 9}
    settings |= {"margin": "adaface", "centers": "device"}
    done = train(data.path, tmp_path / "straight", **settings)
    assert done.exit_code == 0, done.output
    shutil.copytree(tmp_path / "straight", tmp_path / "killed")
    first, *later = known(tmp_path / "killed" / "checkpoints")
    for path in (*later, tmp_path / "killed" / "tensorboard"):
        shutil.rmtree(path)
    (tmp_path / "killed" / "result.json").unlink()
    assert read_meta(first).state.loss_scale[0] < FIRST_SCALE
    done = train(data.path, tmp_path / "killed", "--resume", **settings)
    assert done.exit_code == 0, done.output
    straight, killed = (
        [
            {name: value for name, value in line.items() if name not in ("images_per_second", "peak_memory")}
            for line in found
        ]
        for found in (lines(tmp_path / "straight"), lines(tmp_path / "killed"))
    )
    assert killed == straight
    scales = [line["loss_scale"] for line in straight]
    assert any(after > before for before, after in itertools.pairwise(scales))  # it grew, too
    lasts = [known(tmp_path / name / "checkpoints")[-1] for name in ("straight", "killed")]
    states = [read_meta(last).state for last in lasts]
    assert states[0] == states[1]
    assert statistics(first) != statistics(lasts[0])
    for name in ("backbone", "optimizer", "rank-0-of-1"):
        one, other = ((last / f"{name}.safetensors").read_bytes() for last in lasts)
        assert one == other
    assert "margin" in refused(train(data.path, tmp_path / "killed", "--resume", **{**settings, "margin": [1, 0, 0.4]}))
    assert read_meta(lasts[1]).config["margin"] == "adaface"


def statistics(path):
    """Returns what a checkpoint holds of the margin."""
    arrays = load_file(path / "optimizer.safetensors")
    return {name: float(array[0]) for name, array in arrays.items() if name.startswith("margin.")}


@pytest.mark.slow
def test_a_run_whose_steps_were_all_skipped_fails(data, tmp_path, monkeypatch):
    monkeypatch.setattr(training.step, "FIRST_SCALE", 2.0**24)
    settings = {"amp": "O2", "epochs": 1, "global_batch": 80}
    for options in ((), ("--resume",)):
        message = refused(train(data.path, tmp_path / "run", *options, **settings))
        assert message.startswith("Error: all ")
        assert "steps were skipped, so nothing was trained" in message
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.slow
def test_a_fixed_loss_scale_that_is_too_large_is_one_line(data, tmp_path):
    message = refused(train(data.path, tmp_path / "run", amp="O2", loss_scale=2**24))
    assert "gradient norm" in message
    assert "loss scale 16777216" in message
    assert "a lower loss_scale or 0, which finds one may help" in message

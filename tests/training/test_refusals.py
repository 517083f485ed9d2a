"""What a run refuses: each in one line, before anything is lost."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from faceshards.dataset.manifest import Manifest
from tests.pipelines.build_fixtures import rewrite_info
from tests.training.runs import SETTINGS, refused, tiny_dataset, trace, train
from training.config import TrainConfig
from training.device.distributed import Group
from training.plan import make_plan
from training.setup import set_up


@pytest.mark.parametrize(
    ("options", "settings", "message"),
    [
        ((), {"backbone": "r51"}, "Error: backbone: 'r51' is not one of r18, r34, r50"),
        ((), {"depth": 3}, "depth"),
        (("--set", "lr=fast"), {}, "lr"),
        ((), {"device": "GPU"}, "Error: device GPU is not available here (available: CPU"),
        (("--devices", "3"), {}, "16 images are not equal parts for 3 ranks"),
        ((), {"global_batch": 4096}, "images on 1 ranks give no batch of 4096"),
        ((), {"sample_rate": 0.5}, "sample"),
        ((), {"verify": ["nowhere.bin"]}, "nowhere.bin: No such file"),
        (("--finetune", "nowhere"), {}, "nowhere: no checkpoint there"),
        (("--dry-run",), {"margin": [0.5, 0, 0]}, "margin: m1 = 0.5 is not a number from 1 to 10"),
        ((), {"margin": "arcface"}, "Error: margin: 'arcface' is not one of combined, adaface, subcenter, nor [m1, m2"),
        (("--set", "margin={name: adaface, h: 0}"), {}, "Error: margin: h = 0.0 is not a number from 0.001 to 10"),
        ((), {"amp": "O1"}, "amp: 'O1' is not one of O0, O2, O3"),
        (("--dry-run",), {"loss_scale": 1024}, "Error: loss_scale: 1024 is for float16: amp is O0, float32"),
        ((), {"loss_scale": 1024}, "Error: loss_scale: 1024 is for float16: amp is O0, float32"),
        ((), {"amp": "O2", "loss_scale": 0.5}, "loss_scale: 0.5 is neither 0 (found as it goes) nor 1 or more"),
        ((), {"amp": "O2", "loss_scale": 1e9}, "loss_scale: 1000000000.0 is outside"),
        (("--host-rank", "1"), {}, None),
        (("--hosts", "a,b"), {}, "several hosts need one --port"),
    ],
)
def test_settings_that_cannot_be(data, tmp_path, options, settings, message):
    result = train(data.path, tmp_path / "run", *options, **settings)
    if message is None:  # click's own two lines of usage
        assert result.exit_code == 2
        return
    assert message in refused(result)
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def damaged(data, tmp_path, how):
    """Returns a copy of the dataset after something happened to it."""
    copy = tmp_path / "copy"
    shutil.copytree(data.path, copy)
    manifest = Manifest(copy)
    shard = manifest.shard_path(manifest.table("shards", ["file"])["file"][0].as_py())
    if how == "unpublished":
        (copy / "dataset.json").unlink()
    elif how == "schema":
        content = json.loads((copy / "dataset.json").read_text())
        key = next(name for name in content if "version" in name or "schema" in name)
        content[key] = 99
        (copy / "dataset.json").write_text(json.dumps(content))
    elif how == "flipped":
        raw = bytearray(shard.read_bytes())
        raw[len(raw) // 2] ^= 1
        shard.write_bytes(raw)
    elif how == "gone":
        shard.unlink()
    elif how == "pipe":
        shard.unlink()
        os.mkfifo(shard)
    elif how == "cut":
        next((copy / "manifest" / "images.parquet").iterdir()).write_bytes(b"PAR1")
    elif how == "larger":
        rewrite_info(copy, lambda info: info["config"].update(image_size=[128, 128]))
    return copy


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("unpublished", "dataset.json"),
        ("schema", "99"),
        ("flipped", "changed since it was published: its SHA-256 is not the manifest's"),
        ("gone", "missing; the manifest lists it"),
        ("pipe", "no regular file; the manifest lists one"),
        ("cut", ".parquet: 4 bytes, dataset.json says "),
        ("larger", "images of 128 x 128 pixels; the backbones take 112 x 112"),
    ],
)
def test_a_dataset_that_is_not_what_was_published(data, tmp_path, how, message):
    assert message in refused(train(damaged(data, tmp_path, how), tmp_path / "run"))


@pytest.mark.slow
def test_a_folder_with_a_run_is_not_overwritten(data, run):
    assert "holds a run already: --resume goes on with it" in refused(train(data.path, run, epochs=1, warmup_epochs=0))


@pytest.mark.slow
def test_other_settings_are_another_run(data, run):
    result = train(data.path, run, "--resume", epochs=2, warmup_epochs=0)
    assert "made with epochs 1, now 2; choose another --out" in refused(result)
    # As many steps as the run has done, but others.
    result = train(data.path, run, "--resume", epochs=1, warmup_epochs=0, lr=0.5)
    assert "made with lr 0.05, now 0.5; choose another --out" in refused(result)
    assert "lr: 0.05" in (run / "config.yaml").read_text()


@pytest.mark.slow
def test_killed_before_its_result_it_has_the_same(data, run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    want = json.loads((copy / "result.json").read_text())
    (copy / "result.json").unlink()
    result = train(data.path, copy, "--resume", epochs=1, warmup_epochs=0)
    assert result.exit_code == 0, result.output
    got = json.loads((copy / "result.json").read_text())
    assert (got["first_loss"], got["last_loss"]) == (want["first_loss"], want["last_loss"])
    assert got["first_loss"] > 0


@pytest.mark.slow
def test_another_dataset_needs_finetune(run, tmp_path):
    other = tiny_dataset(tmp_path, seed=4).path
    message = refused(train(other, run, "--resume", epochs=1, warmup_epochs=0, global_batch=8))
    assert "made with the dataset" in message
    assert "--finetune takes over its backbone only" in message
    checkpoint = next((run / "checkpoints").iterdir())
    tuned = train(other, tmp_path / "tuned", "--finetune", str(checkpoint), epochs=1, warmup_epochs=0)
    assert tuned.exit_code == 0, tuned.output
    assert min(trace(tmp_path / "tuned")) == 1
    # What it begins with, of the checkpoint and of its file.
    data, config = Manifest(other), TrainConfig(**{**SETTINGS, "margin": (1.0, 0.0, 0.2)})
    file = checkpoint / "backbone.safetensors"
    begins = {}
    for start in (None, checkpoint, file):
        parts = set_up(make_plan(config, data, 1), data, tmp_path, Group(), start)
        begins[start] = {name: weight.asnumpy() for name, weight in parts.weights.items()}
        parts.close()
    stored = load_file(file)
    for start in (checkpoint, file):
        assert begins[start].keys() == stored.keys()
        for name, array in stored.items():
            np.testing.assert_array_equal(begins[start][name], array)
    assert any((begins[None][name] != array).any() for name, array in stored.items())


@pytest.mark.slow
def test_weights_of_another_model(data, run, tmp_path):
    checkpoint = next((run / "checkpoints").iterdir())
    result = train(data.path, tmp_path / "run", "--finetune", str(checkpoint), embedding_size=64)
    assert "of another model" in refused(result)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoints(data, tmp_path):
    out = tmp_path / "run"
    result = train(data.path, out, lr=1000, clip=0, weight_decay=0.9, warmup_epochs=0, checkpoint_steps=1)
    message = refused(result)
    assert "not finite; lr" in message
    left = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert left
    assert all(name.startswith("step-") for name in left)


def test_ctrl_c_says_how_to_go_on(data, tmp_path, monkeypatch):
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000000010"
    begins, goes_on = "before the first checkpoint: the command begins again", "with --resume the command goes on from"
    for there, promise in ((False, begins), (True, f"{goes_on} {checkpoint}")):

        def interrupted(*_, there=there):
            if there:
                checkpoint.mkdir(parents=True)
                (checkpoint / "rank-00000").touch()
            raise KeyboardInterrupt

        monkeypatch.setattr("training.loop.set_up", interrupted)
        result = train(data.path, tmp_path / "run")
        assert refused(result) == f"Error: interrupted; {promise}"
        assert result.exit_code == 130


def test_the_plan_is_printed_and_nothing_is_made(data, tmp_path):
    result = train(data.path, tmp_path / "run", "--dry-run", "--devices", "2")
    facts = json.loads(train(data.path, tmp_path / "run", "--dry-run", "--devices", "2", "--json").stdout)
    assert f"{facts['steps_per_epoch']:,} steps of" in result.stdout
    assert [rank["classes"] for rank in facts["ranks"]] == [facts["identities"] // 2] * 2
    assert sum(rank["images"] for rank in facts["ranks"]) == data.totals["kept"]
    assert facts["fingerprint"] == data.fingerprint
    assert result.exit_code == 0
    assert "epochs of" in result.stdout
    assert "rank 1: 8 images a step from 4 files" in result.stdout
    assert "centres 6 of 12 from 6 on" in result.stdout
    assert not (tmp_path / "run").exists()

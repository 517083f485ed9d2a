"""What the plan and the look at the machine refuse before a folder is made, and what a failed start leaves: nothing."""

from __future__ import annotations

import dataclasses
import json
import shutil
import socket
from pathlib import Path

import cv2
import mindspore as ms
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

from faceshards.cli.main import main
from faceshards.formats.verification_bin import write_bin
from pipelines.config import BuildConfig
from tests.pipelines.build_fixtures import run_build
from tests.training.runs import SETTINGS, train
from tests.training.test_refusals import refused
from training import preflight
from training.backbones.registry import BACKBONES, create_backbone
from training.config import TrainConfig, load_recipe
from training.hosts import Hosts, LaunchError
from training.plan import make_plan


def picture(seed: int, height: int = 112, width: int = 112) -> bytes:
    small = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return cv2.imencode(".png", cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC))[1].tobytes()


def faces(folder: Path, people: int, each: int, size=lambda image: (112, 112)) -> Path:
    """Returns a dataset of random pictures in 8 shards, of any size."""
    for person in range(people):
        (folder / "faces" / f"p{person:02d}").mkdir(parents=True)
        for image in range(each):
            path = folder / "faces" / f"p{person:02d}" / f"{image}.png"
            path.write_bytes(picture(1000 * person + image, *size(image)))
    config = BuildConfig(shards=8, image_size=(0, 0), near_within=0, min_images=1)
    return run_build(folder / "faces", folder / "data", config).path


@pytest.mark.parametrize(
    ("people", "each", "size", "settings", "message"),
    [
        (
            *(3, 8, lambda image: (160, 160), {}),
            "24 of 24 images are not of 112 x 112 pixels, which the backbones take (160 x 160: 24; the first: ",
        ),
        (
            *(3, 8, lambda image: (96, 112) if image < 2 else (112, 112), {}),
            "6 of 24 images are not of 112 x 112 pixels, which the backbones take (96 x 112: 6; the first: ",
        ),
        (1, 24, lambda image: (112, 112), {}, "data: one identity; training tells identities apart, so it takes two"),
        (24, 1, lambda image: (112, 112), {"sampling": "sqrt"}, "sampling: sqrt evens out identities"),
    ],
)
def test_datasets_that_no_run_can_use(tmp_path, people, each, size, settings, message):
    data = faces(tmp_path, people, each, size)
    for options in ((), ("--dry-run",)):
        result = train(data, tmp_path / "deep" / "run", *options, **{"global_batch": 8, **settings})
        assert message in refused(result)
        assert "Traceback" not in result.output
    assert not (tmp_path / "deep" / "run").exists()


@pytest.mark.parametrize(
    ("options", "settings", "message"),
    [
        (("--devices", "2"), {"global_batch": 2, "sync_bn": False}, "global_batch: 2 is one image for each of 2 ranks"),
        (("--devices", "16"), {"global_batch": 32}, "12 identities on 16 ranks: each rank needs at least one"),
        ((), {"accumulate": 16}, "the batch norm of one image is 0: 32 at least"),
        (("--devices", "8"), {"global_batch": 4096}, "give no batch of 4096: global_batch can be "),
        ((), {"global_batch": 64, "sample_rate": 0.5}, "sample_rate: 0.5 of 12 classes"),
        ((), {"warmup_epochs": 2}, "warmup_epochs: 2 is all of the run's 2 epochs"),
        ((), {"schedule": "multistep", "milestones": [1, 2]}, "milestones: epoch 2 never begins, the run has 2 epochs"),
        ((), {"lr": 0}, "lr: 0 trains nothing"),
        ((), {"embedding_size": 1}, "embedding_size: 1 is outside 2"),
        (
            (),
            {"device": "Ascend"},
            "device Ascend is not available here (available: CPU); choose with --set device=CPU",
        ),
        (("--finetune", "nowhere.pth"), {}, "nowhere.pth: no checkpoint there, and no file of weights"),
        (("--hosts", "a,a", "--port", "8118"), {}, "--hosts: a is there twice"),
        (("--devices", "2", "--rank-table", "nowhere"), {}, "--rank-table: nowhere: No such file"),
        ((), {"keep": 10**6, "epochs": 10_000, "checkpoint_steps": 1, "embedding_size": 16384}, "make room"),
        ((), {"verify": ["wide.bin"]}, "verify: wide.bin: 0 pairs do not make 10 folds; 12 of 12 pairs are left out"),
        ((), {"verify": ["text.bin"]}, "verify: text.bin: "),
    ],
)
@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_what_is_refused_before_anything_is_made(data, tmp_path, monkeypatch, options, settings, message, more):
    monkeypatch.chdir(tmp_path)
    write_bin(Path("wide.bin"), [picture(i, 112, 120) for i in range(24)], [True, False] * 6)
    Path("text.bin").write_text("<html>")
    assert message in refused(train(data.path, Path("made/deep/run"), *options, *more, **settings))
    assert sorted(path.name for path in Path("made").rglob("*")) == ["deep", "run.yaml"]  # which the test made


def test_a_port_that_is_taken():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(LaunchError, match=f"--port {port}: Address already in use"):
            Hosts(2, ("a", "b"), 0, port).check()
    Hosts(2, ("a", "b"), 1, port).check()  # the scheduler is on the first host


def test_where_nothing_can_be_written(data, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "mine.yaml").write_text(json.dumps(SETTINGS))
    for out in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run")):
        options = ["train", str(tmp_path / "mine.yaml"), "--data", str(data.path), "--out", str(out)]
        assert f"{out}: cannot be written: " in refused(CliRunner().invoke(main, options))


def test_a_start_that_fails_on_a_rank_leaves_nothing(data, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(data.path, copy)
    shard = next((copy / "shards").glob("*.mindrecord"))
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("kept")
    for out in (tmp_path / "new" / "run", mine):
        assert "changed since it was published" in refused(train(copy, out, check_shards=True))
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["run.yaml"]
    assert [path.name for path in mine.iterdir()] == ["notes.txt"]


def test_a_dry_run_says_sizes_sets_and_doubts(data, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    write_bin(Path("faces.bin"), [picture(i, 112, 96 if i == 0 else 112) for i in range(48)], [True, False] * 12)
    settings = {"backbone": "mbf_narrow", "milestones": [1], "centers": "disk", "keep": 1, "epochs": 5}
    result = train(data.path, Path("run"), "--dry-run", verify=["faces.bin"], **settings)
    assert result.exit_code == 0, result.output
    assert "device CPU" in result.stdout.splitlines() or any(map(ms.hal.is_available, ("GPU", "Ascend")))
    assert "up to 3 checkpoints of 2.2 MB at once (keep 1, the best, the one being written)" in result.stdout
    assert result.stdout.splitlines()[-2:] == [
        "verification on faces: 24 pairs, 12 of one person",
        "all that the run needs is there",
    ]
    said = [record.getMessage() for record in caplog.records]
    assert "milestones: [1] are those of schedule=multistep, this is polynomial" in said
    assert any("faces: 1 of 24 pairs left out: pair 0 left out: image 0: an image of 112 x 96" in line for line in said)
    assert not Path("run").exists()


@pytest.mark.slow
def test_the_room_that_a_checkpoint_takes(data, run, tmp_path):
    adamw = {"optimizer": "adamw", "lr": 0.001}
    assert train(data.path, tmp_path / "adamw", epochs=1, warmup_epochs=0, **adamw).exit_code == 0
    for out, settings in ((run, {}), (tmp_path / "adamw", adamw)):
        checkpoint = next((out / "checkpoints").iterdir())
        arrays = [array for path in checkpoint.glob("*.safetensors") for array in load_file(path).values()]
        config = TrainConfig(**{**SETTINGS, "margin": (1.0, 0.0, 0.2), "epochs": 1, "warmup_epochs": 0, **settings})
        size = sum(array.nbytes for array in arrays)  # without headers and JSON, small beside a backbone of use
        assert make_plan(config, data, 1).checkpoint_bytes == pytest.approx(size, rel=0.02)


@pytest.mark.parametrize(
    "name",
    ["mbf_narrow", "mbf", *(pytest.param(name, marks=pytest.mark.slow) for name in ("r18", "vit_t"))],
)
def test_the_values_of_backbones(name):
    fixed, each = BACKBONES[name].values
    for size in (2, 512):
        stored = sum(int(np.prod(parameter.shape)) for parameter in create_backbone(name, size).get_parameters())
        assert fixed + each * size == stored


def test_centres_and_ranks_beyond_the_machine(data, caplog, monkeypatch):
    # 29 million identities on one host: 2 ranks of 14.5 million rows of 4 KB each.
    config = load_recipe("webface42m", {"device": "CPU", "global_batch": 16, "sample_rate": 1.0})
    plan = dataclasses.replace(make_plan(config, data, 2), slices=((0, 14_500_000), (14_500_000, 14_500_000)))
    monkeypatch.setattr(preflight, "_memory", lambda: 64 * 10**9)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    preflight._weigh(plan, Hosts(2))
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["--devices 2", "centers"]
    assert "take up to 118.78 GB, the host has 64.00 GB of memory" in caplog.text

"""What a model knows of itself: which checkpoint it is, of which training, and which sets chose it."""

from __future__ import annotations

import json
import shutil

import pytest

from evaluation.models.load import load_model
from evaluation.models.stored_checkpoint import bring_checkpoint
from faceshards.formats.verification_bin import read_bin, write_bin
from tests.evaluation.commands import run
from tests.faceshards.test_stored_dataset import upload
from tests.recs import jpeg
from training import checkpoint
from training.backbones.registry import create_backbone
from training.centers.class_centers import ClassCenters
from training.centers.rules import Sgd
from training.device.distributed import Group
from training.state import Meta, RunState

LFW, ORL = "1" * 64, "2" * 64


@pytest.fixture
def trained(tmp_path):
    """A run's folder, and what puts another checkpoint of given accuracies into it."""
    weights = {name: part.asnumpy() for name, part in create_backbone("mbf_narrow", 32).parameters_dict().items()}
    centers = ClassCenters(8, 32, seed=0, rule=Sgd())

    def save(step, accuracy, digests):
        sets = ("lfw", "orl") if accuracy else ()
        measured = dict.fromkeys(sets, accuracy)
        meta = Meta(
            state=RunState(step=step, verification=measured, thresholds=dict.fromkeys(sets, 0.3), digests=digests),
            lanes=8,
            fingerprint="f" * 64,
            classes=8,
            world=1,
            config={"backbone": "mbf_narrow", "embedding_size": 32},
            dataset="mine",
        )
        return checkpoint.save(tmp_path / "run" / "checkpoints", meta, Group(), weights, {}, centers)

    return tmp_path / "run", save


def test_the_sets_of_a_run_choose_its_best_checkpoint_alone(trained, tmp_path, monkeypatch):
    out, save = trained
    digests = {"lfw": LFW, "orl": ORL}
    first, best, last = save(10, 0.7, digests), save(20, 0.9, digests), save(30, 0.8, digests)
    origin = load_model(out).origin()
    assert (origin.file, origin.step, origin.dataset, origin.fingerprint) == (str(best), 20, "mine", "f" * 64)
    assert origin.chosen_on == digests
    assert load_model(best).origin().facts()["model"] == origin.facts()["model"]
    assert [load_model(path).origin().chosen_on for path in (first, last)] == [{}, {}]
    # Taken out of its run, a checkpoint may have been the best.
    shutil.copytree(last, tmp_path / "mine")
    assert load_model(tmp_path / "mine").origin().chosen_on == digests
    monkeypatch.chdir(best)
    assert load_model(best.relative_to(best)).origin().file == str(best)


def test_without_verification_nothing_chose(trained):
    out, save = trained
    save(10, None, {})
    assert (load_model(out).origin().step, load_model(out).origin().chosen_on) == (10, {})


def test_a_checkpoint_of_before_knows_its_sets_by_name(trained):
    out, save = trained
    path = save(10, 0.9, {}) / "checkpoint.json"
    content = json.loads(path.read_text())
    del content["digests"], content["sha256"]
    path.write_text(json.dumps(content | {"format": 1}))
    origin = load_model(out).origin()
    assert origin.chosen_on == {"lfw": "", "orl": ""}
    assert origin.chosen_by("orl", ORL)


def test_what_is_exported_knows_it_too(trained, tmp_path):
    out, save = trained
    save(20, 0.9, {"lfw": LFW, "orl": ORL})
    found = run("export", out, tmp_path / "model.safetensors")
    assert found.exit_code == 0, found.output
    origin = load_model(tmp_path / "model.safetensors").origin()
    assert (origin.step, origin.dataset, origin.fingerprint) == (20, "mine", "f" * 64)
    assert origin.chosen_on == {"lfw": LFW, "orl": ORL}
    assert "| chosen among its run's checkpoints by | lfw, orl |" in (tmp_path / "model.safetensors.md").read_text()
    # A card of a release before, which says no more than accuracies.
    card = tmp_path / "model.safetensors.json"
    card.write_text(
        json.dumps({name: part for name, part in json.loads(card.read_text()).items() if name != "chosen_on"})
    )
    assert load_model(tmp_path / "model.safetensors").origin().chosen_on == {"lfw": "", "orl": ""}


def test_a_run_in_a_bucket_is_the_one_on_the_disk(trained, bucket, tmp_path):
    out, save = trained
    digests = {"lfw": LFW, "orl": ORL}
    best = [save(step, accuracy, digests) for step, accuracy in ((10, 0.7), (20, 0.9), (30, 0.8))][1]
    stored = upload(out, bucket / "run")
    (bucket / "run" / "logs" / "worker.log").write_bytes(b"1")
    copy = bring_checkpoint(stored, tmp_path)
    name = best.relative_to(out) / "backbone.safetensors"
    assert (copy / name).read_bytes() == (out / name).read_bytes()
    ranks = [*copy.rglob("rank-*"), *copy.rglob("optimizer*")]
    assert len(ranks) == 6
    assert not any(set(file.read_bytes()) - {0} for file in ranks)
    assert not (copy / "logs").exists()
    for place in (stored, bucket / "run" / "checkpoints" / best.name):
        done = run("export", place, tmp_path / "model.safetensors")
        assert done.exit_code == 0, done.output
        origin = load_model(tmp_path / "model.safetensors").origin()
        assert (origin.step, origin.chosen_on) == (20, digests)
        assert (tmp_path / "model.safetensors").read_bytes() == exported(out, tmp_path)
    done = run("export", bucket / "run" / "logs", tmp_path / "none.safetensors")
    assert done.exit_code == 1
    assert done.output == (
        f"Error: {bucket}/run/logs: no model there: neither a file, nor a checkpoint, nor a run that has one\n"
    )


def exported(out, tmp_path):
    """Returns the weights that are exported of a run on a disk."""
    assert run("export", out, tmp_path / "local.safetensors").exit_code == 0
    return (tmp_path / "local.safetensors").read_bytes()


def test_a_model_from_elsewhere_says_what_is_known(tiny_weights):
    origin = load_model(tiny_weights, "mbf_tiny").origin("ms1mv3")
    assert origin.lines()[:2] == [
        f"model {tiny_weights}: mbf_tiny, sha256 {origin.sha256[:12]}",
        "trained on ms1mv3, as --trained-on says",
    ]
    assert (origin.step, origin.dataset, origin.chosen_on) == (None, "", {})


def test_a_set_is_known_by_its_pairs(tmp_path):
    images, same = [jpeg(i) for i in range(4)], [True, False]
    write_bin(tmp_path / "a.bin", images, same)
    write_bin(tmp_path / "b.bin", images, same)
    want = read_bin(tmp_path / "a.bin").digest()
    assert read_bin(tmp_path / "b.bin").digest() == want
    for other, flags in ((images, [True, True]), (images[::-1], same), ([*images[:3], jpeg(9)], same)):
        write_bin(tmp_path / "b.bin", other, flags)
        assert read_bin(tmp_path / "b.bin").digest() != want

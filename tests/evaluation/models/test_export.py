"""Models out and in again: ONNX, MindIR and safetensors of every kind of backbone, and what is refused."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from evaluation.models.load import load_model
from evaluation.models.model import ModelError
from faceshards.cli.main import main
from training.backbones.iresnet import IResNet
from training.backbones.mobilefacenet import DepthWise, Gdc, MobileFaceNet, conv_block, residuals
from training.backbones.registry import BACKBONES, create_backbone
from training.backbones.vit import VisionTransformer
from training.weights.assign import to_torch

pytestmark = pytest.mark.numeric


def mobilefacenet(embedding_size, seed, recompute):
    """Returns a block of each kind that the wide one has."""
    rng = np.random.default_rng(seed)
    layers = [conv_block(rng, 3, 16, 3, 2, 1), conv_block(rng, 16, 16, 3, 1, 1, 8)]
    layers += [DepthWise(rng, 16, 16, 2, 16, False), residuals(rng, 16, 1, 16)]
    layers += [DepthWise(rng, 16, 32, 2, 32, False), DepthWise(rng, 32, 32, 2, 32, False)]
    return MobileFaceNet(layers, conv_block(rng, 32, 64, 1), Gdc(rng, 64, 7, embedding_size), recompute)


SMALL = {
    "r18": partial(IResNet, (1, 1, 1, 1)),
    "mbf": mobilefacenet,
    "vit_t": partial(VisionTransformer, 64, 2, 8),
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The architectures with fewer layers: minutes less, the same kinds of layers."""
    for name, build in SMALL.items():
        monkeypatch.setitem(BACKBONES, name, replace(BACKBONES[name], build=build))


def weights(folder, name):
    """Returns an untrained backbone's file of weights, its batch norms no identities."""
    rng = np.random.default_rng(1)
    state = to_torch(create_backbone(name, 64))
    for key, value in state.items():
        if value.ndim == 1:
            state[key] = np.abs(value + rng.normal(0, 0.1, value.shape)).astype(np.float32)
    save_file(state, folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


SUFFIXES = (".onnx", ".mindir", ".safetensors")


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("mbf_narrow", ".onnx"),
        *(
            pytest.param(name, suffix, marks=pytest.mark.slow)
            for name, suffix in [("mbf", ".onnx"), *itertools.product(("r18", "mbf_narrow", "vit_t"), SUFFIXES)]
            if (name, suffix) not in (("mbf_narrow", ".onnx"), ("r18", ".mindir"))  # the latter compiles for a minute
        ),
    ],
)
def test_there_and_back(tmp_path, name, suffix):
    path, out = weights(tmp_path, name), tmp_path / f"out{suffix}"
    made = run("export", path, out, "--backbone", name, "--licence", "ours", "--json")
    assert made.exit_code == 0, made.output
    card = json.loads(made.stdout.splitlines()[-1])
    assert (card["backbone"], card["embedding_size"], card["licence"]) == (name, 64, "ours")
    assert card["largest_difference"] < 1e-5
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(
        [path.name, out.name, f"{out.name}.json", f"{out.name}.md"]
    )
    again = load_model(out)
    assert again.backbone == name
    if suffix == ".safetensors":  # the same arrays under the same names: the same embeddings
        before, after = load_file(path), load_file(out)
        assert before.keys() == after.keys()
        assert all(np.array_equal(before[key], after[key]) for key in before)
        return
    images = np.random.default_rng(0).uniform(-1, 1, (2, 3, 112, 112)).astype(np.float32)
    want = load_model(path, name).forward(images)
    np.testing.assert_allclose(again.forward(images), want, atol=1e-5 * np.abs(want).max())


def test_onnx_takes_any_number_of_images(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    out = tmp_path / "out.onnx"
    assert run("export", weights(tmp_path, "mbf_narrow"), out, "--backbone", "mbf_narrow").exit_code == 0
    session = runtime.InferenceSession(str(out))
    images = np.random.default_rng(0).uniform(-1, 1, (5, 3, 112, 112)).astype(np.float32)
    whole = session.run(None, {"images": images})[0]
    one = np.concatenate([session.run(None, {"images": images[i : i + 1]})[0] for i in range(5)])
    np.testing.assert_allclose(whole, one, atol=1e-5 * np.abs(whole).max())


def test_what_is_refused(tmp_path):
    path = weights(tmp_path, "mbf_narrow")
    for arguments, message in (
        ((path, tmp_path / "a.onnx"), "does not say of which backbone it is; name one: r18"),
        ((path, tmp_path / "a.onnx", "--backbone", "mbf"), "narrow.safetensors: weights of another backbone: lacks"),
        ((path, tmp_path / "a.tflite", "--backbone", "mbf_narrow"), "writes .onnx, .mindir, .safetensors"),
        ((tmp_path / "none", tmp_path / "a.onnx"), "no checkpoint there"),
    ):
        found = run("export", *arguments)
        assert found.exit_code == 1
        assert message in found.stderr
        assert len(found.stderr.strip().splitlines()) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"onnx no more")
    with pytest.raises(ModelError, match=r"broken.onnx: not an ONNX model, or damaged"):
        load_model(broken)

"""Weights of others: PyTorch's files read without PyTorch, and what is refused in them."""

from __future__ import annotations

import os
import re
import zipfile
from collections import OrderedDict

import mindspore as ms
import numpy as np
import pytest

from faceshards.errors import WeightsError
from tests.training.weights.torch_files import numbered, torch_file
from training.backbones.registry import BACKBONES, create_backbone
from training.backbones.vit import VisionTransformer
from training.weights.assign import embedding_size, load_weights, set_parameters, to_torch
from training.weights.read import read_weights

pytestmark = pytest.mark.numeric

STATE = {"a.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "b": np.array([7], np.int64)}


@pytest.mark.parametrize("wrap", [dict, OrderedDict, lambda s: {"epoch": 3, "state_dict_backbone": OrderedDict(s)}])
def test_a_state_dict_is_read_without_pytorch(tmp_path, wrap):
    found = read_weights(torch_file(tmp_path / "x.pth", wrap(STATE), numbered(STATE)))
    assert found.keys() == STATE.keys()
    for key, array in STATE.items():
        np.testing.assert_array_equal(found[key], array)
        assert found[key].dtype == array.dtype


def test_a_backbone_of_pytorch_is_taken_over(tmp_path):
    theirs, ours = create_backbone("mbf_narrow", 32, seed=1), create_backbone("mbf_narrow", 32, seed=2)
    state = {f"module.{key}": np.ascontiguousarray(value) for key, value in to_torch(theirs).items()}
    load_weights(torch_file(tmp_path / "x.pth", state, numbered(state)), ours)
    got, want = to_torch(ours), to_torch(theirs)
    assert all(np.array_equal(got[key], want[key]) for key in want)


def test_pytorch_itself_agrees(tmp_path):
    torch = pytest.importorskip("torch")
    state = OrderedDict((key, torch.from_numpy(value.copy())) for key, value in STATE.items())
    state["turned"] = torch.arange(6.0).reshape(2, 3).T
    state["half"] = torch.arange(4).to(torch.bfloat16)
    torch.save(state, tmp_path / "x.pth")
    found = read_weights(tmp_path / "x.pth")
    for key, value in state.items():
        np.testing.assert_array_equal(found[key].astype(np.float64), value.double().numpy())


class Hostile:
    def __init__(self, act, *arguments):
        self.made = (act, arguments)

    def __reduce__(self):
        return self.made


@pytest.mark.parametrize(
    ("act", "arguments", "name"),
    [
        (os.system, ("touch {}",), "posix.system"),
        (eval, ("open('{}', 'w')",), "eval"),
        (getattr, (1, "real"), "getattr"),
    ],
)
def test_code_is_refused_by_name(tmp_path, act, arguments, name):
    mark = tmp_path / "ran"
    arguments = tuple(a.format(mark) if isinstance(a, str) else a for a in arguments)
    path = torch_file(tmp_path / "x.pth", {"a": Hostile(act, *arguments)}, {})
    with pytest.raises(WeightsError, match=rf"x.pth: refused: .*{name}") as failure:
        read_weights(path)
    assert "\n" not in str(failure.value)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x02})" + b"\x85" * 500_000 + b"Ns.", "keys are neither names nor numbers"),
        (b"\x80\x02ccollections\nOrderedDict\n](K\x01K\x02\x86e\x85R.", "OrderedDict that is made of"),
        (b"\x80\x02ctorch\nSize\n(" + b"K\x01" * 9 + b"t\x85R.", "more than 8 axes"),
    ],
)
def test_tricks_are_refused_before_they_work(tmp_path, data, message):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("archive/data.pkl", data)
    with pytest.raises(WeightsError, match=f"x.pth: refused: .*{message}"):
        read_weights(tmp_path / "x.pth")


def test_damage_is_one_line(tmp_path):
    whole = torch_file(tmp_path / "whole.pth", STATE, numbered(STATE)).read_bytes()
    short = {key: array.ravel()[:1] for key, array in numbered(STATE).items()}
    cut = tmp_path / "short.pth"
    torch_file(cut, STATE, numbered(STATE))
    with zipfile.ZipFile(cut) as archive:
        pickled = archive.read("archive/data.pkl")
    with zipfile.ZipFile(cut, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, array in short.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
    cases = {
        "cut.pth": whole[: len(whole) // 2],
        "empty.pth": b"",
        **dict.fromkeys(("text.pth", "x.ckpt", "x.safetensors"), b"no weights"),
    }
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "folder.pth").mkdir()
    for name in (*cases, "short.pth", "folder.pth", "absent.pth"):
        with pytest.raises(WeightsError, match=name) as failure:
            read_weights(tmp_path / name)
        assert "\n" not in str(failure.value)


def test_a_checkpoint_of_mindface_is_taken_over(tmp_path):
    """Its names: a prefix, its MobileFaceNet's missing `layers.`, MindSpore 1's `a` for slopes, moments and a head."""
    theirs, ours = create_backbone("mbf_narrow", 32, seed=1), create_backbone("mbf_narrow", 32, seed=2)
    named = []
    for parameter in theirs.get_parameters():
        name = re.sub(r"^layers\.(\d+)\.(?=layers\.)", r"\1.", parameter.name)
        named.append({"name": f"backbone.{re.sub(r'[.]w$', '.a', name)}", "data": ms.Tensor(parameter.asnumpy())})
    others = ("moments.backbone.conv_sep.layers.0.weight", "learning_rate", "global_step")
    named += [{"name": name, "data": ms.Tensor(np.ones(3, np.float32))} for name in others]
    ms.save_checkpoint(named, str(tmp_path / "x.ckpt"))
    load_weights(tmp_path / "x.ckpt", ours)
    got, want = to_torch(ours), to_torch(theirs)
    assert all(np.array_equal(got[key], want[key]) for key in want)


@pytest.mark.parametrize("name", ["r18", "mbf_narrow", "vit_t"])
def test_the_embedding_size_is_read_from_the_last_norm(name):
    state = to_torch(create_backbone(name, 48))
    spec = BACKBONES[name]
    assert embedding_size(state, spec) == 48
    assert embedding_size({f"module.{key}": value for key, value in state.items()}, spec) == 48
    gain = f"{spec.last_norm}.weight"
    assert embedding_size({gain.replace(".weight", ".gamma"): state[gain]}, spec) == 48
    for wrong, message in (
        ({key: value for key, value in state.items() if key != gain}, f"weights of another backbone: lacks {gain}"),
        ({**state, gain: np.zeros((3, 3))}, rf"weights of another backbone: has {gain} \[3, 3\]"),
    ):
        with pytest.raises(WeightsError, match=message):
            embedding_size(wrong, spec)


def test_a_checkpoint_of_mindspore_keeps_a_transformers_tokens(tmp_path):
    """They belong to no layer, like what a checkpoint holds beside weights."""
    theirs, ours = (VisionTransformer(16, 1, 4, 8, seed) for seed in (1, 2))
    named = [{"name": parameter.name, "data": parameter} for parameter in theirs.get_parameters()]
    named += [{"name": "global_step", "data": ms.Tensor([3], ms.int32)}]
    ms.save_checkpoint(named, str(tmp_path / "x.ckpt"))
    load_weights(tmp_path / "x.ckpt", ours)
    got, want = to_torch(ours), to_torch(theirs)
    assert all(np.array_equal(got[key], want[key]) for key in want)


def test_parameters_are_set_all_or_none():
    parameters = {name: ms.Parameter(ms.Tensor([1.0, 2.0]), name=name) for name in "ab"}
    new = np.array([3, 4], np.float64)
    for wrong, message in (
        ({"a": new}, "of another model: lacks b"),
        ({"a": new, "b": new, "c": new}, "of another model: has unknown c"),
        ({"a": new, "b": new[:1]}, r"of another model: has b \[1\] instead of \[2\]"),
    ):
        with pytest.raises(WeightsError, match=message):
            set_parameters(parameters, wrong)
    assert [parameters[name].asnumpy().tolist() for name in "ab"] == [[1, 2], [1, 2]]
    set_parameters(parameters, {"b": new, "a": new + 1})
    assert [parameters[name].asnumpy().tolist() for name in "ab"] == [[4, 5], [3, 4]]
    assert parameters["a"].dtype == ms.float32

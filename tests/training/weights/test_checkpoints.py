"""Checkpoints as others save them: what they hold beside the weights, and where in them the backbone is."""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter

import mindspore as ms
import numpy as np
import pytest

from faceshards.errors import WeightsError
from tests.training.weights.torch_files import numbered, torch_file
from training.backbones.iresnet import IResNet
from training.backbones.registry import BACKBONES, create_backbone
from training.weights.assign import embedding_size, load_weights, to_torch
from training.weights.read import read_weights

pytestmark = pytest.mark.numeric

DIM = 32
HEAD = np.ones((7, DIM), np.float32)


@pytest.fixture(scope="module")
def weights():
    """The weights of a backbone under PyTorch's names."""
    return {
        name: np.ascontiguousarray(value)
        for name, value in to_torch(create_backbone("mbf_narrow", DIM, seed=1)).items()
    }


def under(prefix, state):
    return {prefix + name: array for name, array in state.items()}


def loaded(path):
    """Returns what a backbone has of a file, by PyTorch's names."""
    cell = create_backbone("mbf_narrow", DIM, seed=2)
    load_weights(path, cell)
    assert embedding_size(read_weights(path), BACKBONES["mbf_narrow"]) == DIM
    return to_torch(cell)


def same(found, wanted):
    return found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in wanted)


def saved(path, content):
    """Saves whatever dictionaries of arrays, as torch.save does."""
    arrays, waiting = {}, [content]
    for part in waiting:
        if isinstance(part, dict):
            waiting += part.values()
        elif isinstance(part, np.ndarray) and not any(part is array for array in arrays.values()):
            arrays[str(len(arrays))] = part
    return torch_file(path, content, arrays)


def refusal(path):
    with pytest.raises(WeightsError) as failure:
        loaded(path)
    assert str(failure.value).startswith(f"{path}: ")
    assert "\n" not in str(failure.value)
    return str(failure.value).removeprefix(f"{path}: ")


# --- prefixes and keys


@pytest.mark.parametrize(
    "prefix",
    [
        "module.backbone.",
        "backbone.module.",
        "module._orig_mod.model.net.",
        "student.encoder._orig_mod.module.",
        "net.net.",
        "of.our.own.",
    ],
)
def test_prefixes_in_any_order_and_nesting(tmp_path, weights, prefix):
    assert same(loaded(saved(tmp_path / "x.pth", under(prefix, weights))), weights)


def test_layers_that_were_compiled_or_wrapped_alone(tmp_path, weights):
    state = {name.replace("conv_sep.", "conv_sep._orig_mod.module."): array for name, array in weights.items()}
    assert same(loaded(saved(tmp_path / "x.pth", state)), weights)


@pytest.mark.parametrize(
    "keys",
    [
        *([key] for key in ("state_dict", "model", "model_state_dict", "net", "net_state_dict", "backbone")),
        ["state_dict_backbone"],
        ["model", "state_dict"],
        ["network"],
        ["ema"],
    ],
)
def test_a_state_dict_in_a_checkpoint(tmp_path, weights, keys):
    content = under("module.", weights)
    for key in reversed(keys):
        content = {"epoch": 3, key: content, "best": np.ones(1), "optimizer": {"state": {0: {"exp_avg": HEAD}}}}
    assert same(loaded(saved(tmp_path / "x.pth", content)), weights)


def test_of_two_models_the_one_that_is_trained_is_taken_and_said(tmp_path, weights, caplog):
    other = {name: array + 1 for name, array in weights.items()}
    for number, (content, line) in enumerate(
        [
            ({"teacher": other, "student": weights}, "takes the weights under 'student', not those under 'teacher'"),
            ({"state_dict_ema": other, "state_dict": weights}, "under 'state_dict', not those under 'state_dict_ema'"),
            ({"model": other, "backbone": weights}, "under 'backbone', not those under 'model'"),
            ({**under("teacher.", other), **under("student.", weights)}, "beside the backbone: teacher.layers.0"),
            ({**under("ema.", other), **weights}, "beside the backbone: ema.layers.0"),
        ]
    ):
        caplog.clear()
        path = saved(tmp_path / f"{number}.pth", content)
        assert same(loaded(path), weights)
        assert any(f"{path}: " in text and line in text for text in caplog.messages), caplog.messages


def test_what_could_be_either_is_refused_with_both_names(tmp_path, weights):
    other = {name: array + 1 for name, array in weights.items()}
    name = "conv_sep.layers.0.weight"
    path = saved(tmp_path / "x.pth", {"model": weights, "net": other})
    assert refusal(path) == "has state dicts under 'model' and 'net'; save that of the backbone alone"
    for content, names in (
        ({**under("net.", weights), **under("model.", other)}, ("'net.layers.0.layers.0.weight'", "'model.layers.0.")),
        ({**weights, f"module.{name}": other[name]}, (f"'{name}'", f"'module.{name}'")),
        ({**under("backbone.", weights), f"model.{name}": other[name]}, (f"'backbone.{name}'", f"'model.{name}'")),
        ({**weights, "features.layers.3.gamma": HEAD[0]}, ("'features.layers.3.weight'", "'features.layers.3.gamma'")),
    ):
        message = refusal(saved(tmp_path / "x.pth", content))
        assert "comes twice, as" in message
        assert all(name in message for name in names), message


# --- heads


def test_a_head_is_passed_over_with_a_line(tmp_path, weights, caplog):
    heads = dict.fromkeys(("fc.weight", "head.kernel", "arcface.weight", "classifier.0.weight", "weight"), HEAD)
    for prefix in ("", "backbone."):
        caplog.clear()
        path = saved(tmp_path / "x.pth", {**under(prefix, weights), **heads, "fc.bias": np.ones(7, np.float32)})
        assert same(loaded(path), weights)
        assert (
            f"{path}: passed over beside the backbone: fc.weight, head.kernel, arcface.weight and 3 more" in caplog.text
        )


def test_what_is_no_head_is_not_passed_over(tmp_path, weights):
    path = saved(tmp_path / "x.pth", {**weights, "attention.weight": HEAD, "layers.9.layers.0.weight": HEAD})
    assert "has unknown attention.weight, layers.9.layers.0.weight" in refusal(path)


def test_an_iresnet_beside_a_head_of_the_name_of_its_own_layer(tmp_path):
    theirs, ours = (IResNet((1, 1, 1, 1), DIM, seed) for seed in (1, 2))
    state = {**under("backbone.", to_torch(theirs)), "fc.weight": HEAD, "fc.bias": np.ones(7, np.float32)}
    load_weights(saved(tmp_path / "x.pth", {"state_dict": state}), ours)
    assert same(to_torch(ours), to_torch(theirs))


# --- classes of others


class Callback:
    """Stands for what a framework saves of its own."""

    def __init__(self):
        self.best, self.seen = {"score": 1.0}, {1, 2}


def test_classes_beside_the_weights_are_passed_over(tmp_path, weights, caplog):
    content = {
        "state_dict": under("model.", weights),
        "callbacks": {Callback: Callback(), ("a", 1): None},
        "hyper_parameters": argparse.Namespace(lr=0.1, path=tmp_path),
        "best": np.float64(0.5),
        "counts": Counter("aab"),
    }
    path = saved(tmp_path / "x.ckpt", content)
    assert same(loaded(path), weights)
    assert f"{path}: passed over beside its weights: objects of {__name__}.Callback, argparse.Namespace" in caplog.text


def test_classes_among_the_weights_are_refused_by_name(tmp_path, weights):
    assert f"'more' of its weights is an object of {__name__}.Callback" in refusal(
        saved(tmp_path / "x.pth", {"state_dict": {**weights, "more": Callback()}})
    )
    assert f"it has no state dict, but an object of {__name__}.Callback; only a state" in refusal(
        saved(tmp_path / "y.pth", {"model": Callback(), "epoch": 3})
    )


class Program:
    def __init__(self, act, *arguments):
        self.made = (act, arguments)

    def __reduce__(self):
        return self.made


def test_what_reaches_for_the_machine_is_refused_wherever_it_stands(tmp_path, weights):
    mark = tmp_path / "ran"
    for act, name in ((os.system, "posix.system"), (eval, "eval")):
        content = {"state_dict": weights, "callbacks": Program(act, f"open({str(mark)!r}, 'w')")}
        assert f"{name}; only a state dict is read" in refusal(saved(tmp_path / "x.pth", content))
    assert not mark.exists()


# --- precision

FORMATS = {"float16": "F16", "bfloat16": "BF16", "float64": "F64"}  # the dtypes' names in safetensors


def tensors_file(path, kind, arrays):
    """Writes a safetensors file as its README describes it: NumPy's writer has no bfloat16."""
    entries, size = {}, 0
    for name, array in arrays.items():
        entries[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [size, size + array.nbytes]}
        size += array.nbytes
    header = json.dumps(entries).encode()
    data = b"".join(array.tobytes() for array in arrays.values())
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".ckpt"])
def test_other_floats_become_float32_with_a_line(tmp_path, weights, caplog, kind, suffix):
    path = tmp_path / f"x{suffix}"
    if kind == "bfloat16":  # what float32 is without its lower half
        stored = {name: (array.view(np.uint32) >> 16).astype(np.uint16) for name, array in weights.items()}
        wanted = {name: (bits.astype(np.uint32) << 16).view(np.float32) for name, bits in stored.items()}
    else:
        stored = {name: array.astype(kind) for name, array in weights.items()}
        wanted = {name: array.astype(np.float32) for name, array in stored.items()}
    if suffix == ".pth":
        torch_file(path, stored, numbered(stored))
    elif suffix == ".safetensors":
        tensors_file(path, FORMATS[kind], stored)
    else:
        parts = [{"name": name, "data": ms.Tensor(wanted[name]).astype(getattr(ms, kind))} for name in stored]
        ms.save_checkpoint(parts, str(path))
    assert same(loaded(path), wanted)
    assert f"{path}: arrays taken as float32: {len(stored)} of {kind}" in caplog.messages


def test_numbers_that_are_no_weights(tmp_path, weights):
    first = next(iter(weights))
    whole = {**weights, first: weights[first].astype(np.int64)}
    assert (
        refusal(saved(tmp_path / "x.pth", whole)) == f"weights that are no floats, quantised perhaps: {first} of int64"
    )
    for value in (np.nan, 1e300):
        odd = {**weights, first: np.full(weights[first].shape, value)}
        assert refusal(saved(tmp_path / "x.pth", odd)) == f"weights that are not finite: {first}"
    tensors_file(tmp_path / "x.safetensors", "F8_E4M3", {"a": np.zeros(2, np.uint8)})
    assert "a is of F8_E4M3, which NumPy lacks; save it as float32" in refusal(tmp_path / "x.safetensors")


def test_a_torch_before_zip_archives_is_named(tmp_path):
    for start in (b"\x80\x02\x8a\n", b"\x80\x04\x95\r\x00\x00\x00\x00\x00\x00\x00\x8a\n"):
        (tmp_path / "x.pth").write_bytes(start + b"l\xfc\x9cF\xf9 j\xa8P\x19.")
        assert refusal(tmp_path / "x.pth").startswith("the format of torch before 1.6; save it again")


def test_what_torch_itself_saves(tmp_path, weights):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(array.copy()) for name, array in weights.items()}
    first = next(iter(tensors))
    marked = torch.nn.Parameter(tensors[first])
    marked.tag = 1  # which torch saves by another function
    for protocol in (2, 4):
        torch.save({"model": {**tensors, first: marked}}, tmp_path / "x.pth", pickle_protocol=protocol)
        assert same(loaded(tmp_path / "x.pth"), weights)
    for value, message in (
        (torch.quantize_per_tensor(tensors[first], 0.1, 0, torch.qint8), "is a quantised tensor"),
        (tensors[first].to(torch.float8_e4m3fn), "is a tensor of a dtype that NumPy lacks"),
        (tensors[first].to_sparse(), "is a sparse tensor"),
    ):
        torch.save({**tensors, first: value}, tmp_path / "x.pth")
        assert f"'{first}' of its weights {message}; " in refusal(tmp_path / "x.pth")
    torch.save(tensors, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    assert refusal(tmp_path / "x.pth").startswith("the format of torch before 1.6; save it again")

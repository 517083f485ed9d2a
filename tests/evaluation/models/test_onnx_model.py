"""ONNX files of others as models, where MindSpore is not installed."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from evaluation.models.load import load_model
from evaluation.models.model import ModelError
from faceshards.formats.verification_bin import write_bin
from tests.recs import jpeg

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def pooling(path, batch="batch", side=112, first=()):
    """Writes a model whose embedding is the means of 7 x 7 squares, by channel; `first` are nodes before it."""
    helper, number = onnx.helper, onnx.TensorProto.FLOAT
    start = first[-1].output[0] if first else "images"
    nodes = [
        *first,
        helper.make_node("AveragePool", [start], ["pooled"], kernel_shape=[16, 16], strides=[16, 16]),
        helper.make_node("Flatten", ["pooled"], ["embeddings"]),
    ]
    constants = [onnx.numpy_helper.from_array(np.float32(value), name) for name, value in SCALING.items()]
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info("images", number, [batch, 3, side, side])],
        [helper.make_tensor_value_info("embeddings", number, [batch, 3 * (side // 16) ** 2])],
        constants if first else [],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


SCALING = {"mean": 127.5, "factor": 0.0078125}


def images(count):
    return np.random.default_rng(0).uniform(-1, 1, (count, 3, 112, 112)).astype(np.float32)


def means(pixels):
    return pixels.reshape(len(pixels), 3, 7, 16, 7, 16).mean(axis=(3, 5)).reshape(len(pixels), -1)


@pytest.mark.parametrize("batch", ["batch", 1, 4])
def test_any_number_of_images_whatever_the_model_takes(tmp_path, batch):
    model = load_model(pooling(tmp_path / "x.onnx", batch))
    np.testing.assert_allclose(model.forward(images(6)), means(images(6)), atol=1e-6)


def test_a_model_that_scales_pixels_itself_gets_pixels(tmp_path):
    """MXNet's old models: (x - 127.5) / 128 of 0 to 255."""
    nodes = [
        onnx.helper.make_node("Sub", ["images", "mean"], ["centred"]),
        onnx.helper.make_node("Mul", ["centred", "factor"], ["scaled"]),
    ]
    model = load_model(pooling(tmp_path / "x.onnx", first=nodes))
    np.testing.assert_allclose(model.forward(images(2)), means(images(2)) * 127.5 / 128, atol=1e-5)


def test_a_graph_of_other_images_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"x\.onnx: takes \['batch', 3, 128, 128\] and gives .*, not one \[B, 3, 112"):
        load_model(pooling(tmp_path / "x.onnx", side=128))


# In a process of its own, in which a search for MindSpore fails as where it is not installed.
COMMANDS = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mindspore":
            raise ModuleNotFoundError("No module named 'mindspore'", name="mindspore")

sys.meta_path.insert(0, Absent())
from click.testing import CliRunner
from faceshards.cli.main import main

results = [CliRunner().invoke(main, command) for command in json.loads(sys.argv[1])]
print(json.dumps([[result.exit_code, result.output] for result in results]))
"""


def test_an_onnx_file_and_embeddings_need_no_mindspore(tmp_path):
    pictures = [jpeg(i) for i in range(40)]
    write_bin(tmp_path / "set.bin", pictures, [i % 2 == 0 for i in range(20)])
    for i in range(2):
        (tmp_path / f"{i}.jpg").write_bytes(pictures[i])
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(40, 8)))
    model = ["--model", str(pooling(tmp_path / "x.onnx"))]
    commands = [
        ["eval", *model, "--set", str(tmp_path / "set.bin"), "--out", str(tmp_path / "report"), "--quiet"],
        ["eval", "--embeddings", str(tmp_path / "rows.npy"), "--set", str(tmp_path / "set.bin")],
        ["embed", str(tmp_path / "set.bin"), str(tmp_path / "rows"), *model, "--quiet"],
        [
            "compare",
            str(tmp_path / "0.jpg"),
            str(tmp_path / "1.jpg"),
            *model,
            "--threshold",
            "0.5",
            "--channels",
            "bgr",
        ],
        ["eval", "--model", str(tmp_path / "x.safetensors"), "--set", str(tmp_path / "set.bin")],
    ]
    made = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)], capture_output=True, text=True, check=True
    )
    *done, refused = json.loads(made.stdout)
    assert [code for code, _ in done] == [0] * 4, done
    assert (tmp_path / "report" / "report.html").is_file()
    assert refused[0] == 1
    assert "needs mindspore, which is not installed: pip install 'faceshards[train]'" in refused[1]

"""Models of MXNet through --model PREFIX give what MXNet's own forward gives, and what is no such model is one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from evaluation.models import mxnet_import
from evaluation.models.load import load_model
from evaluation.models.model import ModelError
from evaluation.models.mxnet_model import find_mxnet
from faceshards.cli.main import main
from faceshards.formats.verification_bin import write_bin
from tests.recs import jpeg

mx = mxnet_import.load()
pytestmark = pytest.mark.numeric


def unit(x, filters, name, kernel=(1, 1), stride=(1, 1), pad=(0, 0), groups=1):
    """Returns a convolution, its norm and a slope, as InsightFace's MobileFaceNet has them."""
    shape = {"kernel": kernel, "stride": stride, "pad": pad, "num_group": groups}
    x = mx.sym.Convolution(x, num_filter=filters, no_bias=True, name=name, **shape)
    x = mx.sym.BatchNorm(x, fix_gamma=False, momentum=0.9, name=f"{name}_bn")
    return mx.sym.LeakyReLU(x, act_type="prelu", name=f"{name}_relu")


def network(normalises=True, head=False, dim=16):
    """Returns a small MobileFaceNet: depthwise units, a global depthwise convolution, `fc1` with its norm."""
    x = mx.sym.var("data")
    if normalises:
        x = (mx.sym.identity(x, name="id") - 127.5) * 0.0078125
    x = unit(x, 8, "conv_1", (3, 3), (2, 2), (1, 1))
    x = unit(x, 8, "conv_2_dw", (3, 3), (2, 2), (1, 1), groups=8)
    x = unit(x, 16, "conv_3", (3, 3), (4, 4), (1, 1))
    x = mx.sym.Convolution(x, num_filter=16, kernel=(7, 7), num_group=16, no_bias=True, name="conv_6dw7_7")
    x = mx.sym.FullyConnected(mx.sym.Flatten(x), num_hidden=dim, name="pre_fc1")
    x = mx.sym.BatchNorm(x, fix_gamma=True, eps=2e-5, name="fc1")
    if head:
        x = mx.sym.FullyConnected(x, num_hidden=5, name="fc7")
        x = mx.sym.SoftmaxOutput(x, mx.sym.var("softmax_label"), name="softmax")
    return x


def save(prefix: Path, graph, seed=0, epoch=0, leave_out=(), **changed):
    """Saves a graph with random values, as MXNet's save_checkpoint does; returns the values."""
    arguments, _, states = graph.infer_shape(data=(2, 3, 112, 112))
    names = [*graph.list_arguments(), *graph.list_auxiliary_states()]
    rng = np.random.default_rng(seed)
    values = {}
    for name, shape in zip(names, [*arguments, *states], strict=True):
        low, high = (0.5, 1.5) if name.endswith(("gamma", "var")) else (-0.2, 0.2)
        if name not in ("data", "softmax_label", *leave_out):
            values[name] = mx.nd.array(changed.get(name, rng.uniform(low, high, shape)))
    args = {name: values[name] for name in graph.list_arguments() if name in values}
    aux = {name: values[name] for name in graph.list_auxiliary_states() if name in values}
    mx.model.save_checkpoint(str(prefix), epoch, graph, args, aux)
    return values


def own_forward(graph, values, pixels):
    """Returns what MXNet's executor gives."""
    names = {"arguments": graph.list_arguments(), "states": graph.list_auxiliary_states()}
    args = {name: values[name] for name in names["arguments"] if name != "data"} | {"data": mx.nd.array(pixels)}
    bound = graph.bind(mx.cpu(), args, aux_states={name: values[name] for name in names["states"]})
    return bound.forward(is_train=False)[0].asnumpy()


def cosines(a, b):
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


PIXELS = np.random.default_rng(1).integers(0, 256, (5, 3, 112, 112)).astype(np.float32)
IMAGES = (PIXELS / 255 - 0.5) / np.float32(0.5)


@pytest.mark.parametrize("normalises", [True, False])
@pytest.mark.parametrize("head", [True, False])
def test_embeddings_are_those_of_mxnets_own_forward(tmp_path, normalises, head, caplog):
    values = save(tmp_path / "model", network(normalises, head))
    wanted = own_forward(network(normalises), values, PIXELS if normalises else IMAGES)
    found = load_model(tmp_path / "model")
    assert found.input_range == ("0-255" if normalises else "-1-1")
    assert cosines(found.forward(IMAGES), wanted).min() >= 1 - 1e-6
    np.testing.assert_allclose(found.forward(IMAGES[:3]), wanted[:3], atol=1e-4 * abs(wanted).max())
    assert ("takes fc1_output, the embeddings, not softmax_output" in caplog.text) == head


def test_order_of_colours_and_range_are_as_they_are_said(tmp_path):
    values = save(tmp_path / "model", network(False))
    wanted = own_forward(network(False), values, PIXELS[:, ::-1])
    found = load_model(tmp_path / "model", channels="bgr", input_range="0-255")
    assert cosines(found.forward(IMAGES), wanted).min() >= 1 - 1e-6
    assert found.identity.endswith(" bgr 0-255")
    assert found.identity != load_model(tmp_path / "model").identity


def test_every_way_to_name_a_model(tmp_path, caplog):
    save(tmp_path / "model", network())
    first, symbol = tmp_path / "model-0000.params", tmp_path / "model-symbol.json"
    for name in ("model", "model-symbol.json", "model-0000.params", "model,0", "model,0000"):
        assert find_mxnet(tmp_path / name) == (symbol, first)
    assert caplog.text == ""
    save(tmp_path / "model", network(), seed=1, epoch=12)
    assert find_mxnet(tmp_path / "model") == (symbol, tmp_path / "model-0012.params")
    assert "the last is taken" in caplog.text
    assert find_mxnet(tmp_path / "model,0") == (symbol, first)
    for other in ("run", "weights.pth", "model.onnx"):
        assert find_mxnet(tmp_path / other) is None
    with pytest.raises(ModelError, match=r"model-0003.params: no such file; there is model-0000.params, model-0012"):
        find_mxnet(tmp_path / "model,3")


def test_eval_says_what_the_model_got(tmp_path):
    save(tmp_path / "model", network())
    same = [True, False] * 10
    images = [jpeg(i if flag else i + 100 * j) for i, flag in enumerate(same) for j in range(2)]
    write_bin(tmp_path / "faces.bin", images, same)
    options = ["eval", "--model", str(tmp_path / "model"), "--set", str(tmp_path / "faces.bin"), "--quiet"]
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 0, result.output
    assert f"model {tmp_path / 'model-0000.params'}: pixels 0-255, sha256 " in result.stdout
    assert result.stdout.splitlines()[1].split()[:2] == ["faces", "20"]
    facts = json.loads(CliRunner().invoke(main, [*options, "--json", "--input-range", "-1-1"]).stdout)
    assert (facts["model"]["channels"], facts["model"]["input_range"]) == ("rgb", "-1-1")


def other_input():
    return mx.sym.FullyConnected(mx.sym.Flatten(mx.sym.var("image")), num_hidden=4, name="fc1")


def two_outputs():
    x = mx.sym.Flatten(mx.sym.var("data"))
    return mx.sym.Group([mx.sym.FullyConnected(x, num_hidden=4, name=name) for name in ("a", "b")])


@pytest.mark.parametrize(
    ("graph", "options", "message"),
    [
        (
            network(),
            {"leave_out": ("pre_fc1_weight", "fc1_moving_mean")},
            "model-0000.params: lacks pre_fc1_weight, fc1_moving_mean, which model-symbol.json takes",
        ),
        (network(), {"pre_fc1_bias": np.zeros(3)}, r"pre_fc1_bias is [3], model-symbol.json wants [16]"),
        (network(), {"pre_fc1_bias": np.full(16, np.nan)}, "pre_fc1_bias has values that are not finite"),
        (mx.sym.Flatten(mx.sym.var("image")), {}, "model-symbol.json: takes image, not 'data', the images"),
        (two_outputs(), {}, "gives a_output [B, 4], b_output [B, 4]: more than one of them [B, D]"),
        (mx.sym.Convolution(mx.sym.var("data"), num_filter=4, kernel=(3, 3)), {}, "none of them [B, D], floats"),
    ],
)
def test_what_is_no_model_of_faces_is_one_line(tmp_path, graph, options, message):
    if "data" not in graph.list_arguments():
        graph.save(str(tmp_path / "model-symbol.json"))
        mx.nd.save(str(tmp_path / "model-0000.params"), {"arg:image": mx.nd.zeros((1,))})
    else:
        save(tmp_path / "model", graph, **options)
    with pytest.raises(ModelError) as failure:
        load_model(tmp_path / "model")
    assert message in str(failure.value)
    assert "\n" not in str(failure.value)


def test_damaged_files_are_one_line(tmp_path):
    save(tmp_path / "model", network())
    params, symbol = tmp_path / "model-0000.params", tmp_path / "model-symbol.json"
    whole, text = params.read_bytes(), symbol.read_text()
    for size in (0, 7, 8, 30, 200, len(whole) - 1):
        params.write_bytes(whole[:size])
        with pytest.raises(ModelError, match=r"model-0000.params: (no parameters of MXNet, or damaged|lacks)"):
            load_model(tmp_path / "model")
    params.write_bytes(whole)
    for content in ("", "{", "[]", '{"nodes": 3}', text.replace("Convolution", "Convoluted"), text[: len(text) // 2]):
        symbol.write_text(content)
        with pytest.raises(ModelError, match=r"model-symbol.json: no symbol of MXNet, or damaged") as failure:
            load_model(tmp_path / "model")
        assert "\n" not in str(failure.value)

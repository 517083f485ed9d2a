"""ONNX files as exporters leave them: slopes, outputs, precision, batches, colours; and what cannot be run."""

from __future__ import annotations

import json

import numpy as np
import pytest

from evaluation.models.load import load_model
from evaluation.models.model import ModelError
from faceshards.formats.verification_bin import write_bin
from tests.evaluation.commands import run
from tests.recs import jpeg

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def images(count):
    return np.random.default_rng(0).uniform(-1, 1, (count, 3, 112, 112)).astype(np.float32)


CHANNELS, DIM = 8, 16
RNG = np.random.default_rng(1)
FILTERS = RNG.normal(0, 0.1, (CHANNELS, 3, 16, 16)).astype(np.float32)
MATRIX = RNG.normal(0, 0.1, (CHANNELS * 49, DIM)).astype(np.float32)
SLOPES = np.linspace(0.1, 0.9, CHANNELS, dtype=np.float32)
NUMBERS = {np.dtype(np.float32): onnx.TensorProto.FLOAT, np.dtype(np.float16): onnx.TensorProto.FLOAT16}


def embedded(pixels, slopes=SLOPES):
    """Returns in NumPy what a convolution of 16 x 16, a PReLU by channel and a matrix give."""
    squares = pixels.reshape(len(pixels), 3, 7, 16, 7, 16)
    maps = np.einsum("nciajb,kcab->nkij", squares, FILTERS)
    return np.where(maps < 0, maps * slopes.reshape(-1, 1, 1), maps).reshape(len(pixels), -1) @ MATRIX


def model_of(path, before=(), after=(), outputs=(("y", ["B", DIM]),), dtype=np.float32, ir=8, **arrays):
    """Writes that network with the slopes `s`, which nodes in `before` may make; `after` are nodes behind it."""
    node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    arrays = {"w": FILTERS, "f": MATRIX, **({} if before else {"s": SLOPES}), **arrays}
    arrays = {name: array.astype(dtype) if array.dtype == np.float32 else array for name, array in arrays.items()}
    number = NUMBERS[np.dtype(dtype)]
    inputs = [value("x", number, ["B", 3, 112, 112])]
    if ir < 4:  # the constants are inputs, too
        inputs += [value(name, NUMBERS[array.dtype], array.shape) for name, array in arrays.items()]
    nodes = [
        *before,
        node("Conv", ["x", "w"], ["c"], kernel_shape=[16, 16], strides=[16, 16]),
        node("PRelu", ["c", "s"], ["p"]),
        node("Flatten", ["p"], ["l"]),
        node("MatMul", ["l", "f"], ["y"]),
        *after,
    ]
    constants = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = onnx.helper.make_graph(
        nodes, "g", inputs, [value(name, number, shape) for name, shape in outputs], constants
    )
    opset = [onnx.helper.make_opsetid("", 8 if ir < 4 else 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=ir), str(path))
    return path


def close(found, wanted, tolerance=1e-5):
    return np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


def test_slopes_that_lie_along_the_channels_are_left_alone(tmp_path, caplog):
    for number, slopes in enumerate((SLOPES.reshape(-1, 1, 1), SLOPES.reshape(1, -1, 1, 1), SLOPES[:1])):
        found = load_model(model_of(tmp_path / f"{number}.onnx", s=slopes)).forward(images(3))
        assert close(found, embedded(images(3), np.broadcast_to(slopes.reshape(-1), CHANNELS)))
    assert not caplog.messages


MAKE = onnx.helper.make_node
COMES = {
    "an initializer": {},
    "an input of old files": {"ir": 3},
    "a constant": {"before": [MAKE("Constant", [], ["s"], value=onnx.numpy_helper.from_array(SLOPES))]},
    "an Identity": {"before": [MAKE("Identity", ["t"], ["s"])], "t": SLOPES},
    "a Reshape": {"before": [MAKE("Reshape", ["t", "k"], ["s"])], "t": SLOPES.reshape(2, -1), "k": np.array([-1])},
    "an Unsqueeze": {"before": [MAKE("Unsqueeze", ["t", "k"], ["s"])], "t": SLOPES, "k": np.array([0])},
}


@pytest.mark.parametrize("how", COMES)
def test_slopes_of_mxnet_get_their_shape(tmp_path, caplog, how):
    path = model_of(tmp_path / "x.onnx", **COMES[how])
    with pytest.raises(Exception, match="PRelu"):  # as it is
        onnxruntime.InferenceSession(str(path)).run(None, {"x": images(2)})
    assert close(load_model(path).forward(images(3)), embedded(images(3)))
    assert caplog.messages == [f"{path}: the slopes of 1 PReLU are one per channel: [C] is taken as [C, 1, 1]"]


def test_slopes_of_a_fully_connected_layer_stay(tmp_path):
    slopes = np.linspace(-0.5, 0.5, DIM, dtype=np.float32)
    path = model_of(
        tmp_path / "x.onnx", after=[MAKE("PRelu", ["y", "t"], ["z"])], outputs=[("z", ["B", DIM])], t=slopes
    )
    wanted = embedded(images(3))
    assert close(load_model(path).forward(images(3)), np.where(wanted < 0, wanted * slopes, wanted))


def test_slopes_of_a_model_whose_arrays_lie_beside_it(tmp_path):
    model = onnx.load(str(model_of(tmp_path / "x.onnx")))
    onnx.save(model, str(tmp_path / "y.onnx"), save_as_external_data=True, location="y.data", size_threshold=0)
    assert close(load_model(tmp_path / "y.onnx").forward(images(3)), embedded(images(3)))
    (tmp_path / "y.data").unlink()
    with pytest.raises(ModelError, match=r"y\.onnx: not an ONNX model, or damaged: .*y\.data"):
        load_model(tmp_path / "y.onnx")


def test_float16_is_taken(tmp_path):
    found = load_model(model_of(tmp_path / "x.onnx", dtype=np.float16)).forward(images(3))
    assert found.dtype == np.float32
    assert close(found, embedded(images(3)), 0.01)


NORM = MAKE("ReduceL2", ["y"], ["norm"], axes=[1], keepdims=1)


@pytest.mark.parametrize("outputs", [("y", "norm"), ("norm", "y")])
def test_of_two_outputs_the_embeddings_are_taken_and_said(tmp_path, caplog, outputs):
    shapes = {"y": ["B", DIM], "norm": ["B", 1]}
    path = model_of(tmp_path / "x.onnx", after=[NORM], outputs=[(name, shapes[name]) for name in outputs], s=SLOPES[:1])
    assert close(load_model(path).forward(images(3)), embedded(images(3), np.full(CHANNELS, SLOPES[0])))
    assert caplog.messages == [f"{path}: of its outputs takes y [B, 16], not norm [B, 1]"]


def test_axes_of_one_behind_the_embeddings_are_nothing(tmp_path):
    pool, outputs = MAKE("GlobalAveragePool", ["p"], ["z"]), [("z", ["B", CHANNELS, 1, 1])]
    assert load_model(model_of(tmp_path / "x.onnx", after=[pool], outputs=outputs)).forward(images(3)).shape == (3, 8)


def test_a_graph_for_one_image_that_says_any(tmp_path, caplog):
    after = [MAKE("Reshape", ["y", "k"], ["z"])]
    path = model_of(tmp_path / "x.onnx", after=after, outputs=[("z", ["B", DIM])], k=np.array([1, DIM]))
    assert close(load_model(path).forward(images(3)), embedded(images(3)))
    assert f"{path}: takes one image at a time, whatever its input says" in caplog.messages


def test_the_order_of_colours(tmp_path):
    path = model_of(tmp_path / "x.onnx")
    model = load_model(path, channels="bgr")
    assert model.channels == "bgr"
    assert close(model.forward(images(3)), embedded(images(3)[:, ::-1]))
    assert load_model(path).channels == "rgb"


def broken(folder):
    """Writes models that load and cannot be used, and yields each with what is said of it."""
    outputs = [("y", ["B", DIM]), ("z", ["B", DIM])]
    yield (
        model_of(folder / "two.onnx", after=[MAKE("Neg", ["y"], ["z"])], outputs=outputs),
        "gives y [B, 16], z [B, 16]: more than one of them [B, D], floats, D above 1; keep one of them",
    )
    yield (
        model_of(folder / "map.onnx", outputs=[("p", ["B", CHANNELS, 7, 7])]),
        "gives p [B, 8, 7, 7]: none of them [B, D]",
    )
    yield (
        model_of(folder / "nan.onnx", s=SLOPES * np.float32(np.nan)),
        "its embeddings of random images are not finite",
    )
    cut = MAKE("Reshape", ["y", "k"], ["z"])
    yield (
        model_of(folder / "run.onnx", after=[cut], outputs=[("z", ["B", "D"])], k=np.array([-1, 3])),
        "ONNX Runtime cannot run it: Non-zero status code returned while running Reshape node",
    )
    model = onnx.load(str(model_of(folder / "size.onnx")))
    for side, size in zip(model.graph.input[0].type.tensor_type.shape.dim[1:], (112, 112, 3), strict=True):
        side.dim_value = size
    onnx.save(model, str(folder / "size.onnx"))
    yield folder / "size.onnx", "ONNX Runtime does not take it"


def test_what_fails_when_it_runs_is_one_line_and_leaves_nothing(tmp_path):
    write_bin(tmp_path / "set.bin", [jpeg(i) for i in range(40)], [i % 2 == 0 for i in range(20)])
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    for path, message in broken(tmp_path):
        for command in (
            ("eval", "--set", tmp_path / "set.bin", "--out", tmp_path / "out"),
            ("embed", tmp_path / "set.bin", tmp_path / "out"),
            ("compare", tmp_path / "a.jpg", tmp_path / "a.jpg", "--threshold", 0),
        ):
            result = run(*command, "--model", path)
            assert (result.exit_code, result.stdout) == (1, ""), result.output
            assert result.stderr.startswith(f"Error: {path}: {message}"), result.stderr
            assert len(result.stderr.splitlines()) == 1
            assert not (tmp_path / "out").exists()


def test_channels_last_is_refused(tmp_path):
    turn = [MAKE("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]), MAKE("Flatten", ["t"], ["y"])]
    value = onnx.helper.make_tensor_value_info
    ends = [[value(name, 1, shape)] for name, shape in (("x", ["B", 112, 112, 3]), ("y", ["B", "D"]))]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(turn, "g", *ends), opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(model, str(tmp_path / "x.onnx"))
    with pytest.raises(ModelError, match=r"takes \['B', 112, 112, 3\], channels last; only channels first"):
        load_model(tmp_path / "x.onnx")


def test_the_order_of_colours_is_named_with_what_was_measured(tmp_path):
    """Random colours: gray pictures would look the same in any order."""
    model = ("--model", model_of(tmp_path / "x.onnx"), "--channels", "bgr")
    write_bin(tmp_path / "set.bin", [jpeg(i) for i in range(40)], [i % 2 == 0 for i in range(20)])
    for i in range(2):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(i))
    compare = ("compare", tmp_path / "0.jpg", tmp_path / "1.jpg", "--threshold", 0)
    for command in (
        ("eval", "--set", tmp_path / "set.bin", "--quiet"),
        ("embed", tmp_path / "set.bin", tmp_path / "rows", "--quiet"),
        compare,
    ):
        result = run(*command, *model)
        assert result.exit_code == 0, result.output
        assert "channels bgr" in result.stdout
    found = {
        order: json.loads(run(*compare, *model[:2], "--channels", order, "--json").stdout) for order in ("rgb", "bgr")
    }
    assert [found[order]["model"]["channels"] for order in found] == ["rgb", "bgr"]
    assert found["rgb"]["cosine"] != found["bgr"]["cosine"]
    again = run("embed", tmp_path / "set.bin", tmp_path / "rows", *model[:2])
    assert again.exit_code == 1
    assert "holds embeddings of another channels" in again.stderr
    np.save(tmp_path / "rows.npy", np.ones((40, 4)))
    odd = run("eval", "--embeddings", tmp_path / "rows.npy", "--set", tmp_path / "set.bin", "--channels", "bgr")
    assert odd.exit_code == 2
    assert "--channels belongs to --model" in odd.stderr

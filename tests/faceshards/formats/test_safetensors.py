"""Files of arrays: the safetensors library reads what we write, and the other way round."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from faceshards.formats.safetensors import DTYPES, TensorFile, TensorFileError, write_arrays, write_blocks


@given(
    st.dictionaries(
        st.text("abc.0", min_size=1, max_size=5),
        st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), min_size=1, max_size=3)),
        min_size=1,
        max_size=5,
    )
)
def test_the_library_reads_what_is_written(tmp_path_factory, shapes):
    path = tmp_path_factory.mktemp("tensors") / "x.safetensors"
    rng = np.random.default_rng(0)
    arrays = {name: (rng.random(shape) * 2).astype(dtype) for name, (dtype, shape) in shapes.items()}
    write_arrays(path, arrays)
    found = safetensors.numpy.load_file(str(path))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_blocks_in_any_order(tmp_path):
    path = tmp_path / "x.safetensors"
    weight, ids = np.arange(24, dtype=np.float32).reshape(8, 3), np.arange(8)
    shapes = {"weight": ("float32", (8, 3)), "ids": ("int64", (8,))}
    blocks = [("weight", 5, weight[5:]), ("ids", 0, ids[:4]), ("weight", 0, weight[:5]), ("ids", 4, ids[4:])]
    write_blocks(path, shapes, iter(blocks))
    with TensorFile(path) as file:
        np.testing.assert_array_equal(file.array("weight"), weight)
        np.testing.assert_array_equal(file.rows("weight", 2, 6), weight[2:6])
        assert [(start, rows.tolist()) for start, rows in file.blocks("ids", 5)] == [
            (0, [0, 1, 2, 3, 4]),
            (5, [5, 6, 7]),
        ]
        assert file.shape("weight") == (8, 3)
        with pytest.raises(TensorFileError, match=r"x\.safetensors: has no array 'other'"):
            file.array("other")


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (("a", 0, np.zeros((3, 2), np.float32)), "24 bytes of 32 were given"),
        (("a", 2, np.zeros((3, 2), np.float32)), r"a block float32 \(3, 2\) at 2 is not in it"),
        (("a", 0, np.zeros((4, 2), np.float64)), "a block float64"),
    ],
)
def test_blocks_that_do_not_fit(tmp_path, block, message):
    with pytest.raises(TensorFileError, match=message):
        write_blocks(tmp_path / "x", {"a": ("float32", (4, 2))}, [block])


def test_a_cut_file_and_a_full_disk(tmp_path):
    path = tmp_path / "x.safetensors"
    write_arrays(path, {"a": np.zeros((100, 100), np.float32)})
    os.truncate(path, 20_000)
    with pytest.raises(TensorFileError, match=r"x\.safetensors: cannot be read"):
        TensorFile(path)
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    link = tmp_path / "missing" / "x"
    with pytest.raises(TensorFileError, match="cannot be written: No such file"):
        write_arrays(link, {"a": np.zeros(3)})


@pytest.mark.parametrize(
    ("kind", "shape", "size", "message"),
    [
        ("F8_E4M3", [2], 2, "a is of F8_E4M3, which NumPy lacks; save it as float32"),
        ("F8_E8M0", [2], 2, "a is of F8_E8M0, which NumPy lacks; save it as float32"),
        ("F4", [2], 1, "a is of F4, which NumPy lacks; save it as float32"),
        ("F99", [2], 2, "cannot be read: .*F99"),
        ("F32", [1 << 62, 1 << 62], 4, "cannot be read: "),
        ("F32", [], 4, "a is a number, no array"),
    ],
)
def test_an_array_that_is_none_here_is_one_line(tmp_path, kind, shape, size, message):
    header = json.dumps({"a": {"dtype": kind, "shape": shape, "data_offsets": [0, size]}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    reads = [lambda file: file.rows("a", 0, 1), lambda file: list(file.blocks("a", 1))]
    for read in reads + [lambda file: file.array("a")] * bool(shape):
        with pytest.raises(TensorFileError, match=rf"x.safetensors: {message}") as failure, TensorFile(path) as file:
            read(file)
        assert "\n" not in str(failure.value)

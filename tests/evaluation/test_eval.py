"""The commands eval and make-bin: a table, a report, and what they refuse."""

from __future__ import annotations

import json
import re

import cv2
import mindspore as ms
import numpy as np
import pytest

from evaluation.during import Verifier
from evaluation.embedder import Embedder
from evaluation.models.backbone_model import cell_forward
from faceshards.errors import FaceshardsError
from faceshards.formats.verification_bin import write_bin
from tests.evaluation.commands import run
from tests.recs import jpeg
from training.backbones.registry import create_backbone
from training.data.transforms import decode

pytestmark = pytest.mark.numeric

PAIRS = 20


@pytest.fixture
def pairs(tmp_path):
    """A set in which a pair of one person is the same picture at two qualities."""
    images, same = [], []
    for i in range(PAIRS):
        same.append(i % 2 == 0)
        images += [jpeg(i), jpeg(i if same[-1] else i + 100, quality=60)]
    path = tmp_path / "lfw.bin"
    write_bin(path, images, same)
    return path, images, same


def test_embeddings_from_elsewhere(pairs, tmp_path):
    path, images, _ = pairs
    rows = np.stack([decode(image).reshape(-1).astype(np.float32) - 128 for image in images])
    np.save(tmp_path / "e.npy", rows)
    options = ("--far", "0.3", "--far", "1e-1", "--out", tmp_path / "out")
    result = run("eval", "--embeddings", tmp_path / "e.npy", "--set", path, *options)
    assert result.exit_code == 0, result.output
    assert re.findall(r"TAR@\S+", result.stdout.splitlines()[0]) == ["TAR@0.3", "TAR@0.1"]
    assert result.stdout.splitlines()[1].split()[:3] == ["lfw", "20", "100.00"]
    report = json.loads((tmp_path / "out" / "report.json").read_text())["sets"][0]
    assert report["accuracy"] == 1
    assert report["tar"] == {
        "0.3": 1,
        "0.1": 1,
        "0.01": None,
        "0.001": None,
        "0.0001": None,
        "1e-05": None,
        "1e-06": None,
    }
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/jpeg") == 20  # five pairs of each kind
    assert "http" not in page.replace("http-equiv", "")


def test_the_sum_of_both_views_whatever_the_batch(pairs):
    _, images, _ = pairs
    backbone = create_backbone("mbf_narrow", 32)
    whole = Embedder(cell_forward(backbone), batch=64).views(images[:5])[0]
    parts = Embedder(cell_forward(backbone), batch=2).views(images[:5])[0]
    backbone.set_train(False)
    first = (decode(images[0]).transpose(2, 0, 1).astype(np.float32) / 255 - 0.5) / 0.5
    pair = np.stack([first, first[:, :, ::-1]])
    alone = [backbone(ms.Tensor(view[None])).asnumpy()[0] for view in pair]
    # A processor may add in another order for another shape. What that can do is what rounding the pixels does: to
    # change them by float32's epsilon moves the embedding by as much as the layers let it.
    rng = np.random.default_rng(0)
    nudged = pair * (1 + rng.choice([-1, 1], pair.shape) * np.finfo(np.float32).eps)
    moved = np.abs(backbone(ms.Tensor(nudged.astype(np.float32))).asnumpy() - alone).max()
    tolerance = 100 * max(moved, np.finfo(np.float32).eps * np.abs(alone).max())
    assert tolerance < 0.01 * np.abs(whole[0] - whole[1]).max()  # far below what tells a view from its mirror image
    np.testing.assert_allclose(parts, whole, rtol=0, atol=tolerance)
    np.testing.assert_allclose(whole[:, 0], alone, rtol=0, atol=tolerance)


def test_images_that_do_not_decode_cost_their_pair(pairs, tmp_path, tiny_weights):
    images = list(pairs[1])
    images[3], images[8] = b"junk", jpeg(1, 50, 50)
    write_bin(tmp_path / "odd.bin", images, pairs[2])
    options = ("--model", tiny_weights, "--backbone", "mbf_tiny", "--quiet")
    result = run("eval", *options, "--set", tmp_path / "odd.bin", "--set", pairs[0], "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert [line.split()[:2] for line in result.stdout.splitlines()[1:3]] == [["lfw", "20"], ["odd", "18"]]
    assert "odd: pair 1 left out: image 3: 4 bytes are no image: neither JPEG nor PNG" in result.stderr
    assert "odd: pair 4 left out: image 8: an image of 50 x 50 pixels" in result.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())["sets"]
    assert [len(entry["excluded"]) for entry in report] == [0, 2]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((3, 4), np.float32), r"e.npy: float32 \[3, 4\]; lfw needs floats \[40, D\]"),
        (np.full((40, 4), np.nan, np.float32), "lfw: embedding 0 is not finite"),
        (np.zeros((40, 4), int), r"int64 \[40, 4\]"),
    ],
)
def test_embeddings_that_cannot_be(pairs, tmp_path, rows, message):
    np.save(tmp_path / "e.npy", rows)
    result = run("eval", "--embeddings", tmp_path / "e.npy", "--set", pairs[0])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert re.search(message, result.stderr.strip())
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"\x93NUMPY\x01\x00\x02\x00{}"])
def test_files_that_are_no_arrays(pairs, tmp_path, content):
    (tmp_path / "e.npy").write_bytes(content)
    result = run("eval", "--embeddings", tmp_path / "e.npy", "--set", pairs[0])
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
    assert "e.npy: no array in NumPy's format" in result.stderr


def test_a_set_without_a_pair_left_says_why(pairs, tmp_path, tiny_weights):
    write_bin(tmp_path / "large.bin", [jpeg(i, 250, 250) for i in range(2 * PAIRS)], pairs[2])
    options = ("--model", tiny_weights, "--backbone", "mbf_tiny", "--quiet")
    result = run("eval", *options, "--set", tmp_path / "large.bin")
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
    assert "large.bin: 0 pairs do not make 10 folds; 20 of 20 pairs are left out, the first: pair 0" in result.stderr
    assert result.stderr.endswith("an image of 250 x 250 pixels among 112 x 112; models take pictures of 112 x 112\n")
    with pytest.raises(FaceshardsError, match=r"large.bin: .*20 of 20 pairs are left out"):
        Verifier([tmp_path / "large.bin"])
    # A set of one kind is refused before a model is even looked for.
    write_bin(tmp_path / "alike.bin", pairs[1], [True] * PAIRS)
    result = run("eval", "--model", "nowhere", "--set", pairs[0], "--set", tmp_path / "alike.bin")
    assert "alike.bin: all 20 pairs are the same person" in result.stderr


def test_where_a_report_cannot_be_written_is_said_first(pairs, tmp_path):
    (tmp_path / "file").write_text("")
    for command in (("eval", "--set", pairs[0]), ("ijb", tmp_path)):
        result = run(*command, "--model", "nowhere", "--out", tmp_path / "file" / "report")
        assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
        assert f"{tmp_path / 'file' / 'report'}: cannot be written" in result.stderr


def test_embeddings_from_elsewhere_belong_to_images_of_any_size(pairs, tmp_path):
    write_bin(tmp_path / "large.bin", [jpeg(i, 250, 250) for i in range(2 * PAIRS)], pairs[2])
    np.save(tmp_path / "e.npy", np.random.default_rng(0).normal(size=(2 * PAIRS, 4)))
    result = run("eval", "--embeddings", tmp_path / "e.npy", "--set", tmp_path / "large.bin")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[1].startswith("large")


def test_a_verifier_takes_black_images(pairs, tmp_path):
    images = [*pairs[1][:-1], cv2.imencode(".png", np.zeros((112, 112, 3), np.uint8))[1].tobytes()]
    write_bin(tmp_path / "black.bin", images, pairs[2])
    assert Verifier([tmp_path / "black.bin"]).raw_pixels["black"] > 0.5


def test_two_sets_of_one_name_are_told_apart_by_path(pairs, tmp_path, tiny_weights):
    for folder, kept in (("a/aligned", PAIRS), ("b/aligned", PAIRS - 10)):
        (tmp_path / folder).mkdir(parents=True)
        write_bin(tmp_path / folder / "lfw.bin", pairs[1][: 2 * kept], pairs[2][:kept])
    write_bin(tmp_path / "b" / "other.bin", pairs[1], pairs[2])
    paths = [tmp_path / "b" / "other.bin", *(tmp_path / name / "aligned" / "lfw.bin" for name in "ba")]
    options = ("--model", tiny_weights, "--backbone", "mbf_tiny", "--trained-on", "casia", "--quiet")
    result = run("eval", *options, *(word for path in paths for word in ("--set", path)), "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    rows = [line.split()[:2] for line in result.stdout.splitlines()[1:4]]
    assert rows == [["b/aligned/lfw", "10"], ["a/aligned/lfw", "20"], ["other", "20"]]  # the field's sets first
    page = (tmp_path / "out" / "report.html").read_text()
    assert [page.count(f"<h2>{name}</h2>") for name, _ in rows] == [1, 1, 1]
    # Likewise in a training, whose accuracies are known by the sets' names.
    assert list(Verifier(paths).raw_pixels) == ["other", "b/aligned/lfw", "a/aligned/lfw"]


def test_a_folder_without_a_checkpoint(pairs, tmp_path):
    result = run("eval", "--model", tmp_path, "--set", pairs[0])
    assert result.exit_code == 1
    assert "no checkpoint there" in result.stderr
    assert run("eval", "--set", pairs[0]).exit_code == 2

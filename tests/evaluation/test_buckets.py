"""What embed, export, compare and ijb read and write in a bucket is what they do on a disk."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from evaluation import image_sources
from evaluation.during import raw_pixels
from evaluation.embed_source import embed
from evaluation.ijb import embeddings
from evaluation.ijb.alignment import REFERENCE
from evaluation.ijb.embeddings import embed_protocol
from evaluation.ijb.protocol import Protocol
from evaluation.models.model import Model
from faceshards.dataset.manifest import Manifest
from faceshards.errors import FaceshardsError
from faceshards.formats.verification_bin import write_bin
from faceshards.reading import content, for_arrow, names_in
from faceshards.storage.lease import HeldError, leased
from faceshards.storage.location import StoredPath
from tests.evaluation.commands import run
from tests.faceshards.test_stored_dataset import upload
from tests.recs import jpeg, pack, write_rec

pytestmark = pytest.mark.usefixtures("temporary")

MODEL = Model(raw_pixels, "", Path("pixels"), "1" * 64, {})


def parts(out: Path | StoredPath) -> list[dict[str, object]]:
    """Returns the rows of all parts."""
    names = sorted(name for name in names_in(out) if name.endswith(".parquet"))
    return [row for name in names for row in pq.read_table(for_arrow(out / name)).to_pylist()]


def test_sources_in_a_bucket_have_the_embeddings_of_those_on_a_disk(
    tiny_dataset: Manifest, bucket: StoredPath, tmp_path: Path, temporary: Path
) -> None:
    (tmp_path / "in").mkdir()
    write_bin(tmp_path / "in" / "set.bin", [jpeg(i) for i in range(4)], [True, False])
    write_rec(tmp_path / "in" / "train.rec", [pack(jpeg(i), i % 2) for i in range(4)])
    stored = upload(tmp_path / "in", bucket / "in")
    upload(tiny_dataset.path, bucket / "set")
    for number, (here, there) in enumerate(
        (
            (tiny_dataset.path, bucket / "set"),
            (tmp_path / "in" / "set.bin", stored / "set.bin"),
            (tmp_path / "in" / "train.rec", stored / "train.rec"),
        )
    ):
        outs = tmp_path / f"out{number}", bucket / f"out{number}"
        counts = [embed(source, out, MODEL, quiet=True) for source, out in zip((here, there), outs, strict=True)]
        assert counts[0] == counts[1]
        assert str(parts(outs[0])) == str(parts(outs[1]))  # as text: NaN is not itself
        assert {*names_in(outs[1])} == {entry.name for entry in outs[0].iterdir()} - {".lock"}
        assert json.loads(content(outs[1] / "_embed.json"))["images"] == counts[0]["images"]
    for source in ([bucket / "a.jpg"], [bucket / "list.txt"], [bucket / "a.jpg", tmp_path / "in" / "set.bin"]):
        with pytest.raises(
            FaceshardsError, match="in a bucket; pictures, and lists of them, are read from a disk only"
        ):
            embed(source, tmp_path / "none", MODEL, quiet=True)
    assert [*temporary.iterdir()] == []


def test_an_interrupted_embed_goes_on_in_the_bucket(
    bucket: StoredPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_sources, "ROWS", 4)
    write_bin(tmp_path / "set.bin", [jpeg(i) for i in range(6)], [True, False, True])
    out, seen = bucket / "out", []

    def forward(images: np.ndarray, dies: bool = False) -> np.ndarray:
        seen.append(len(images))
        if dies and len(seen) == 2:
            raise KeyboardInterrupt
        return raw_pixels(images)

    dying = Model(lambda images: forward(images, True), "", Path("pixels"), "1" * 64, {})
    with pytest.raises(KeyboardInterrupt):
        embed(tmp_path / "set.bin", out, dying, quiet=True)
    assert names_in(out) == {"_embed.json", "part-00000.parquet"}
    with leased(out / ".lock"), pytest.raises(HeldError, match=f"{out}: another process .* is at work there"):
        embed(tmp_path / "set.bin", out, MODEL, quiet=True)
    seen.clear()
    model = Model(forward, "", Path("pixels"), "1" * 64, {})
    assert embed(tmp_path / "set.bin", out, model, quiet=True)["embedded"] == 6
    assert len(seen) == 1  # the second block
    embed(tmp_path / "set.bin", tmp_path / "out", MODEL, quiet=True)
    assert parts(out) == parts(tmp_path / "out")
    with pytest.raises(FaceshardsError, match=f"{out}: holds embeddings of another model; choose another folder"):
        embed(tmp_path / "set.bin", out, Model(raw_pixels, "", Path("p"), "2" * 64, {}), quiet=True)


def test_embeddings_of_ijb_are_kept_in_a_bucket(
    bucket: StoredPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "PART", 2)
    names = [f"{number}.jpg" for number in range(5)]
    for number, name in enumerate(names):
        cv2.imwrite(str(tmp_path / name), cv2.imdecode(np.frombuffer(jpeg(number), np.uint8), 1))
    points = np.tile(REFERENCE.astype(np.float32), (5, 1, 1))
    where = np.zeros(5, np.int64)
    protocol = Protocol("ijbc", tmp_path, names, where, where, points, where, np.zeros((1, 2), np.int64), where[:1])
    want = embed_protocol(protocol, raw_pixels, None).rows
    batches = []

    def forward(images: np.ndarray) -> np.ndarray:
        batches.append(len(images))
        return raw_pixels(images)

    kept = bucket / "out" / "embeddings"
    for count in (3, 0):
        batches.clear()
        np.testing.assert_array_equal(embed_protocol(protocol, forward, kept, "model").rows, want)
        assert len(batches) == count
    (kept / "part-00001.npz").write_bytes(b"damaged")
    (kept / "part-00009.npz").write_bytes(b"of a longer list")
    np.testing.assert_array_equal(embed_protocol(protocol, forward, kept, "model").rows, want)
    assert len(batches) == 1
    assert names_in(kept) == {f"part-{number:05d}.npz" for number in range(3)}


def test_a_model_goes_out_with_its_card_and_comes_in_with_it(
    bucket: StoredPath, tiny_weights: Path, tmp_path: Path, temporary: Path
) -> None:
    stored = bucket / "in" / tiny_weights.name
    stored.write_bytes(tiny_weights.read_bytes())
    made = {}
    for out in (tmp_path / "m.safetensors", bucket / "out" / "m.safetensors"):
        found = run("export", stored if isinstance(out, StoredPath) else tiny_weights, out, "--backbone", "mbf_tiny")
        assert found.exit_code == 0, found.output
        assert found.stdout.startswith(f"{out}: ")
        made[out] = [content(out.with_name(f"m.safetensors{more}")) for more in ("", ".json", ".md")]
    assert made[out] == made[tmp_path / "m.safetensors"]
    for name in ("a.jpg", "b.jpg"):
        (bucket / name).write_bytes(jpeg(3))
    faces = bucket / "a.jpg", bucket / "b.jpg"
    found = run("compare", *faces, "--model", out, "--threshold", "0.5", "--json")  # its card says the backbone
    assert found.exit_code == 0, found.output
    said = json.loads(found.stdout)
    assert (said["same"], said["model"]["file"]) == (True, str(out))
    (bucket / "b.jpg").write_bytes(b"no picture")
    found = run("compare", *faces, "--model", out, "--threshold", "0.5")
    assert found.stderr.startswith(f"Error: {bucket}/b.jpg: 10 bytes are no image")
    assert [*temporary.iterdir()] == []

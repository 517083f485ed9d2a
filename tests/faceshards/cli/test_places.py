"""What commands write and read in a bucket: the same as on a disk, by the names that its user knows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click
import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

import faceshards
from faceshards.cli import paths
from faceshards.cli.main import main
from faceshards.dataset.manifest import Manifest
from faceshards.files import deliver
from faceshards.formats.verification_bin import read_bin, write_bin
from faceshards.reading import content
from faceshards.storage.faults import StorageError
from faceshards.storage.location import StoredPath
from tests import fault_proxy as faults
from tests.faceshards.test_stored_dataset import upload
from tests.fault_proxy import FaultProxy
from tests.pipelines.build_fixtures import shared_worker
from tests.recs import jpeg

pytestmark = pytest.mark.usefixtures("temporary")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def below(place: StoredPath) -> list[str]:
    """Returns the names of all objects below a place."""
    return sorted(str(found)[len(str(place)) + 1 :] for found, _ in place.tree())


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """A folder of ten people with two pictures each, and pairs.txt beside it, of five pairs of one and of two."""
    root = tmp_path / "faces"
    for person in range(10):
        (root / f"p{person}").mkdir(parents=True)
        for number in (1, 2):
            (root / f"p{person}" / f"p{person}_{number:04d}.jpg").write_bytes(jpeg(2 * person + number))
    lines = [f"p{i}\t1\t2" for i in range(10)] + [f"p{i}\t1\tp{(i + 1) % 10}\t2" for i in range(10)]
    (tmp_path / "pairs.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def refusing(bucket: StoredPath, object_store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A store that takes no object of the name lost.*, which it says when it is asked to."""
    found = FaultProxy(object_store)
    found.add(faults.says(403, "AccessDenied"), method="PUT|POST", path=r"/lost\.", times=-1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", found.endpoint)
    yield found
    found.down()


def test_files_are_those_of_a_disk(
    tiny_dataset: Manifest, bucket: StoredPath, faces: Path, tmp_path: Path, temporary: Path
) -> None:
    here, there = tmp_path / "out ü", bucket / "out ü"
    here.mkdir()
    pairs = upload(tmp_path / "faces", bucket / "faces").parent / "pairs.txt"
    pairs.write_bytes((tmp_path / "pairs.txt").read_bytes())
    path = tiny_dataset.path
    for name, options in {
        "a.jpg": ("manifest", "image", path, 0, "--json", "--out"),
        "a.csv": ("manifest", "query", path, "FROM images ORDER BY sid", "--out"),
        "a.parquet": ("manifest", "query", path, "FROM images ORDER BY sid", "--out"),
        "a.html": ("manifest", "report", path, "--json", "--out"),
        "a.bin": ("make-bin", faces, "PAIRS"),
    }.items():
        said = []
        for out, listed in ((here / name, tmp_path / "pairs.txt"), (there / name, pairs)):
            for _ in range(2):  # what is there is replaced
                found = call(*(listed if word == "PAIRS" else word for word in options), out)
            assert found.exit_code == 0, found.output
            assert found.stderr == ""
            said.append(found.stdout.replace(json.dumps(str(out)), "OUT").replace(str(out), "OUT"))
        assert said[0] == said[1]
        assert content(there / name) == (here / name).read_bytes()
    assert below(there) == sorted(entry.name for entry in here.iterdir())
    assert [*temporary.iterdir()] == []


def test_a_bucket_that_takes_nothing_is_known_before_any_work(
    tiny_dataset: Manifest, bucket: StoredPath, faces: Path, tmp_path: Path, refusing: FaultProxy
) -> None:
    refusing.add(faults.says(403, "AccessDenied"), method="PUT", path=r"/closed/", times=-1)
    closed = bucket / "closed"
    for arguments in (
        ("make-bin", faces, "none.txt", closed / "a.bin"),
        ("export", "none.pth", closed / "a.onnx"),
        ("embed", "none", closed, "--model", "none"),
        ("eval", "--embeddings", "none.npy", "--set", "none.bin", "--out", closed),
        ("ijb", "none", "--embeddings", "none.npy", "--out", closed),
        ("manifest", "image", "none", 0, "--out", closed / "a.jpg"),
        ("manifest", "query", "none", "FROM images", "--out", closed / "a.csv"),
        ("manifest", "report", "none", "--out", closed / "a.html"),
        ("build", "--source", "none", "--out", tmp_path / "out", "--report", closed / "a.html"),
    ):
        found = call(*arguments)
        assert found.exit_code == 1
        assert found.stderr.startswith(f"Error: {closed}: access denied by {refusing.endpoint} (AccessDenied); check")
        assert len(found.stderr.splitlines()) == 1
    assert below(bucket) == []


def test_what_cannot_be_uploaded_is_kept_here(
    bucket: StoredPath, faces: Path, tmp_path: Path, temporary: Path, refusing: FaultProxy
) -> None:
    found = call("make-bin", faces, tmp_path / "pairs.txt", bucket / "lost.bin")
    assert found.exit_code == 1
    [line] = found.stderr.splitlines()
    said, _, kept = line.partition("; what was made is kept: ")
    assert said.startswith(f"Error: {bucket}/lost.bin: access denied by")
    assert len(read_bin(Path(kept)).same) == 20
    assert [*temporary.iterdir()] == [Path(kept).parent]
    assert (below(bucket), found.stdout) == ([], "")


def test_of_several_files_all_are_kept_with_the_one_that_was_refused(
    bucket: StoredPath, tmp_path: Path, temporary: Path, refusing: FaultProxy
) -> None:
    names = ["card.md", "card.json", "lost.onnx"]
    for name in names:
        (tmp_path / name).write_text(name)
    with pytest.raises(StorageError, match=r"access denied.*; what was made is kept: .*/lost\.onnx$"):
        deliver(tmp_path, names, bucket)
    [kept] = temporary.iterdir()
    assert {entry.name: entry.read_text() for entry in kept.iterdir()} == {name: name for name in names}
    assert below(bucket) == ["card.json", "card.md"]  # the model, which comes last, has its card when it is there


def test_a_failure_puts_nothing_and_leaves_what_was_there(
    tiny_dataset: Manifest, bucket: StoredPath, faces: Path, tmp_path: Path, temporary: Path
) -> None:
    stored = upload(tiny_dataset.path, bucket / "set")
    for arguments, message in (
        (("make-bin", faces, tmp_path / "none.txt", "OUT/a.bin"), "none.txt: cannot be read: No such file"),
        (("manifest", "image", stored, 10**6, "--out", "OUT/a.jpg"), "no sid 1000000"),
        (("manifest", "query", stored, "FROM nothing", "--out", "OUT/a.csv"), "nothing does not exist"),
        (
            ("manifest", "query", stored, "FROM images", "--out", stored / "a.csv"),
            f"{stored}/a.csv: inside the dataset",
        ),
        (("manifest", "report", stored, "--out", stored / "a.html"), f"{stored}/a.html: inside the dataset, which"),
        (
            ("manifest", "report", stored, "--max-size", "1kB", "--out", "OUT/a.html"),
            "OUT/a.html: 0.001 MB is too small",
        ),
        (("make-bin", faces, tmp_path / "pairs.txt", "s3://nothing-of-the-kind/"), "is a whole bucket; name an object"),
    ):
        (bucket / "out" / "a.csv").write_bytes(b"before")
        found = call(*(str(word).replace("OUT", f"{bucket}/out") for word in arguments))
        assert found.exit_code in (1, 2)
        assert message.replace("OUT", f"{bucket}/out") in found.stderr
        assert below(bucket / "out") == ["a.csv"]
    assert content(bucket / "out" / "a.csv") == b"before"
    assert [*temporary.iterdir()] == []


def test_what_is_said_of_a_copy_is_said_of_the_object(bucket: StoredPath, tmp_path: Path, temporary: Path) -> None:
    for name, text in {
        "bad.bin": b"no set",
        "bad.npy": b"no array",
        "bad.yaml": b"colour: red\n",
        "a.jpg": b"x",
    }.items():
        (bucket / "in ü" / name).write_bytes(text)
    write_bin(tmp_path / "lfw.bin", [jpeg(i) for i in range(80)], [i % 2 == 0 for i in range(40)])
    (bucket / "in ü" / "pairs.txt").write_bytes(b"a b c d e\n")
    for arguments in (
        ("eval", "--embeddings", tmp_path / "e.npy", "--set", bucket / "in ü" / "bad.bin"),
        ("eval", "--embeddings", bucket / "in ü" / "bad.npy", "--set", tmp_path / "lfw.bin"),
        ("make-bin", tmp_path, bucket / "in ü" / "pairs.txt", tmp_path / "a.bin"),
        ("build", "--source", tmp_path, "--out", tmp_path / "set", "--config", bucket / "in ü" / "bad.yaml"),
        ("eval", "--embeddings", bucket / "in ü" / "none.npy", "--set", tmp_path / "lfw.bin"),
    ):
        found = call(*arguments)
        assert found.exit_code in (1, 2)
        assert f"{bucket}/in ü/" in found.stderr
        assert str(temporary) not in found.output
    assert [*temporary.iterdir()] == []


def test_eval_names_the_objects(bucket: StoredPath, tmp_path: Path, temporary: Path) -> None:
    images = [jpeg(i) for i in range(80)]
    write_bin(tmp_path / "lfw.bin", images, [i % 2 == 0 for i in range(40)])
    rows = np.stack([cv2.imdecode(np.frombuffer(image, np.uint8), 1).reshape(-1)[:512] for image in images])
    np.save(tmp_path / "e.npy", rows.astype(np.float32) - 128)
    stored = {}
    for folder, name in (("a", "lfw.bin"), ("b", "lfw.bin"), ("a", "e.npy")):
        stored[folder, name] = bucket / folder / name
        stored[folder, name].write_bytes((tmp_path / name).read_bytes())
    out = bucket / "report"
    found = call("eval", "--embeddings", stored["a", "e.npy"], "--set", stored["a", "lfw.bin"], "--out", out)
    assert found.exit_code == 0, found.output
    assert f"report {out}/report.html" in found.stdout.splitlines()
    assert below(out) == ["report.html", "report.json"]
    report = json.loads(content(out / "report.json"))
    assert report["model"]["file"] == str(stored["a", "e.npy"])
    assert str(temporary) not in found.output + content(out / "report.html").decode() + json.dumps(report)
    twice = call("eval", "--model", "none", *("--set", stored["a", "lfw.bin"], "--set", stored["a", "lfw.bin"]))
    assert f"{stored['a', 'lfw.bin']}: is named twice" in twice.stderr


def test_what_belongs_to_a_model_comes_with_it(bucket: StoredPath, refusing: FaultProxy) -> None:
    for name in (
        "m-symbol.json",
        "m-0003.params",
        "m-0012.params",
        "mm-0040.params",
        "m.onnx",
        "m.onnx.json",
        "n.onnx",
    ):
        (bucket / name).write_bytes(name.encode())
    (bucket / "n.onnx.json").write_bytes(b"closed")
    refusing.add(faults.says(403, "AccessDenied"), method="HEAD|GET", path=r"/n\.onnx\.json", times=-1)
    for name, others in {
        "m-symbol.json": {"m-0012.params"},
        "m-0003.params": {"m-symbol.json"},
        "m.onnx": {"m.onnx.json"},
        "n.onnx": set(),  # a store that does not list says no to what is not there
        "mm-0040.params": set(),
    }.items():
        with click.Context(main) as ctx:
            copy = paths.settled(paths.MODEL.convert(f"{bucket}/{name}", None, ctx), ctx)
            assert {entry.name for entry in copy.parent.iterdir()} == {name, *others}
            assert all(entry.read_bytes() == entry.name.encode() for entry in copy.parent.iterdir())
        assert not copy.exists()


def test_sets_of_one_name_are_told_apart_by_their_addresses(
    tiny_source: Path, bucket: StoredPath, tmp_path: Path, temporary: Path
) -> None:
    write_bin(tmp_path / "lfw.bin", [jpeg(i) for i in range(4)], [True, False])
    sets = [bucket / "a" / "lfw.bin", bucket / "b" / "lfw.bin"]
    for place in sets:
        place.write_bytes((tmp_path / "lfw.bin").read_bytes())
    out, worker = tmp_path / "set", shared_worker()
    found = faceshards.build(tiny_source, out, exclude=[*map(str, sets)], shards=4, scheduler=worker, quiet=True)
    assert [entry["name"] for entry in found.info["exclude"]] == ["a/lfw", "b/lfw"]
    options = [word for place in sets for word in ("--exclude", place)]
    again = call("build", "--source", tiny_source, "--out", out, "--set", "shards=4", "--scheduler", worker, *options)
    assert (again.exit_code, "already built from the same sources and settings" in again.stderr) == (0, True)
    with pytest.raises(faceshards.FaceshardsError, match=f"{bucket}/none.bin: no such object"):
        faceshards.build(tiny_source, out, exclude=bucket / "none.bin", quiet=True)
    assert [*temporary.iterdir()] == []

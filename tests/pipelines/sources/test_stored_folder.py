"""Image folders in a bucket: names, order, warnings, rows and datasets are those of the same folder on a disk."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs as fs
import pytest

from benchmarks.in_process import InProcess
from faceshards.dataset.manifest import Manifest
from faceshards.dataset.verify import verify
from faceshards.errors import BuildError, FaceshardsError, SourceError
from faceshards.storage import requests, stores
from faceshards.storage.faults import StorageError
from faceshards.storage.location import Location, StoredPath, as_location
from pipelines.config import BuildConfig
from pipelines.sources import base, folder, folder_listing
from pipelines.sources.base import Partition
from pipelines.sources.find import cut, find_files
from pipelines.sources.folder_listing import with_records
from pipelines.sources.registry import doubt_of, identity_names, labels, read_record, scan
from pipelines.upload import build_at
from tests import fault_proxy as faults
from tests.faceshards.test_stored_dataset import upload
from tests.fault_proxy import Fault, FaultProxy
from tests.object_store import KEY, SECRET
from tests.pipelines.build_fixtures import CONFIG, by_shared_worker, digests, flip_bit, read_rec
from tests.pipelines.test_upload import downloaded
from tests.recs import jpeg, write_im2rec

IMAGE = jpeg(1, 8, 8)

TREES: dict[str, list[str]] = {
    # Whole keys sort as a!, a-b, a, a.c; folders as a, a!, a-b, a.c; a0 comes last of either.
    "order": [
        *("a/1.jpg", "a-b/1.jpg", "a!/1.jpg", "a.c/1.jpg", "a0/1.jpg", "a/b/1.jpg", "a/b-c.jpg", "a/b.jpg", "a/B.PNG"),
        *("é/日本 語%41.jpeg", "Z/1.jpg", "#1/+ &?.jpg", "😀/1.jpg", "\uffee/1.jpg"),
    ],
    "aside": [
        *("alice/0.jpg", "alice/._0.jpg", "alice/@eaDir/0.jpg/x.jpg", "alice/@eaDir/0.jpg/y.txt", "alice/notes.TXT"),
        *(".git/a/b.jpg", ".git/c.jpg", ".DS_Store", ".hidden.jpg", "bob/.thumbs/deep/.x/1.png", "bob/Thumbs.db"),
        *("bob/1.png", "readme", "face.jpg", "face.txt", "zoe/x.webp", "yan/.DS_Store", "xi/deep/er/.keep"),
        *("carl/a/b/c/1.jpg", "__MACOSX/alice/._0.jpg", "alice.txt/1.jpg"),
    ],
    "too high": ["train/a/0.jpg", "train/b/0.jpg", "val/a/0.jpg", "val/sheet.jpg"],
    "deep": ["ann/0.jpg", "ann/old/1.jpg", "bob/0.jpg"],
    "nobody": [".alice/0.jpg", "@eaDir/1.jpg", "a.jpg", "b.txt", "sub/deep/x.rec"],
    "beside tars": ["0.tar", "x/1.jpg"],
    "beside compressed": ["0.tar.gz", "x/a/1.jpg"],
}
"""Paths of files with a picture in each."""


def tree(root: Path, paths: list[str]) -> Path:
    """Writes files, each with a picture of its own size, and returns the root."""
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(IMAGE + bytes(number))
    return root


def arrow(endpoint: str) -> fs.S3FileSystem:
    """Returns somebody else's client."""
    return fs.S3FileSystem(
        access_key=KEY, secret_key=SECRET, endpoint_override=endpoint.removeprefix("http://"), scheme="http"
    )


def found(root: Location, work: Path, step: int = 0) -> object:
    """Returns all that is found in a folder, but for where it lies."""

    def plain(line: str) -> str:
        return line.replace(str(root), "")

    try:
        files, warnings = find_files(root)
    except SourceError as error:
        return plain(str(error))
    work.mkdir()
    parts, told = cut(files, work, step)
    rows = [scan(part) for part in parts]
    return (
        [(file.name, file.kind, file.bytes) for file in files],
        list(map(plain, (*warnings, *told))),
        [(part.start, part.stop, part.last) for part in parts],
        [(identity_names(part), labels(part).tolist(), plain(doubt_of(part))) for part in parts],
        [[np.asarray(value).tolist() for name, value in vars(row).items() if name != "images"] for row in rows],
        [image if image is None else bytes(image) for row in rows for image in row.images],
    )


@pytest.mark.parametrize(("name", "step"), [*((name, 0) for name in TREES), ("order", 1500)])
def test_a_prefix_is_read_as_the_folder(name: str, step: int, bucket: StoredPath, tmp_path: Path) -> None:
    local = tree(tmp_path / "set", TREES[name])
    stored = upload(local, bucket / "set")
    assert found(stored, tmp_path / "stored", step) == found(local, tmp_path / "local", step)


@pytest.mark.parametrize("name", ["order", "aside"])
def test_the_order_of_the_store_does_not_matter(
    name: str, bucket: StoredPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Amazon's is that of whole keys, others list folder by folder."""
    local = tree(tmp_path / "set", TREES[name])
    stored = upload(local, bucket / "set")
    plain, expected = requests.below, found(local, tmp_path / "local")
    seen = []

    def ordered(place: StoredPath, after: str = "", backwards: bool = False) -> Iterator[Any]:
        entries = sorted(plain(place, after), key=lambda entry: entry["path"], reverse=backwards)
        seen.append([entry["path"] for entry in entries])
        return iter(entries)

    monkeypatch.setattr(requests, "below", ordered)
    assert found(stored, tmp_path / "keys") == expected
    monkeypatch.setattr(requests, "below", functools.partial(ordered, backwards=True))
    assert found(stored, tmp_path / "backwards") == expected
    assert len({tuple(paths) for paths in seen if len(paths) > 2}) == 2


def test_somebody_elses_dataset_json_beside_pictures_is_no_dataset(bucket: StoredPath, tmp_path: Path) -> None:
    """StyleGAN keeps labels under that name."""
    for root in (tmp_path / "faces", bucket / "faces"):
        for name, data in (("dataset.json", b'{"labels": null}'), ("a/1.jpg", jpeg(1)), ("b/1.jpg", jpeg(2))):
            if isinstance(root, Path):
                (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)
        (file,), _ = find_files(root)
        assert file.kind == "folder"


def test_what_stands_for_folders_is_no_file(bucket: StoredPath, object_store: str, tmp_path: Path) -> None:
    """Consoles make objects whose keys end in a slash; here Arrow does."""
    local = tree(tmp_path / "set", ["alice/0.jpg", "carl/x/1.jpg"])
    for name in ("alice/deep", "zoe", "Empty.jpgs/a", ".hidden"):
        (local / name).mkdir(parents=True)
    (local / "_SUCCESS").touch()
    stored = upload(local, bucket / "set")
    for path in (local, *local.rglob("*/")):
        if path.is_dir():
            arrow(object_store).create_dir(f"{bucket.bucket}/{stored.key}/{path.relative_to(local)}".removesuffix("/."))
    assert "zoe" in {name for name, _ in stored.below()}
    assert found(stored, tmp_path / "stored") == found(local, tmp_path / "local")


@pytest.mark.parametrize("name", ["a\nb.jpg", "/b.jpg", "../b.jpg"])
def test_names_that_the_client_does_not_take_are_said(name: str, bucket: StoredPath, proxy: FaultProxy) -> None:
    """This store has none of them: answers are changed on their way."""

    def renamed(to: Any) -> None:
        answer = to.ask()
        body = answer.body.replace(b"/b.jpg", f"/{name}".replace("\n", "&#10;").encode())
        to.say(answer._replace(headers={**answer.headers, "Content-Length": str(len(body))}, body=body))

    (bucket / "set" / "ann" / "b.jpg").write_bytes(IMAGE)
    proxy.add(renamed, path="list-type", times=-1)
    with pytest.raises(FaceshardsError) as caught:
        find_files(bucket / "set")
    named = f"{bucket.key}/set/ann/{name}"
    assert str(caught.value) == (
        f"{bucket}/set: holds an object named {named!r}; names may hold no control character, and between slashes be "
        "neither empty nor . or ..: rename it"
    )


def test_what_lies_beside_packed_files_decides_as_on_a_disk(
    bucket: StoredPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [
        "x/a/1.jpg",
        "x/a/2.jpg",
        "x/b/1.jpg",
        "x-y/1.jpg",
        ".git/1.jpg",
        "y/.thumbs/1.jpg",
        "z/deep/a.TAR",
        "w/t.txt",
    ]
    local = tree(tmp_path / "set", paths)
    write_im2rec(local, [(0, IMAGE), (1, IMAGE)], "a")
    stored = upload(local, bucket / "set")
    expected = found(local, tmp_path / "local")
    assert "leaves 3 folders with pictures, .rec or .tar files: 'x', 'x-y', 'z'" in str(expected)
    assert found(stored, tmp_path / "stored") == expected
    monkeypatch.setattr(folder_listing, "_PAGE", 1)  # every picture but the first of a folder is passed over
    assert sorted(with_records(stored)) == ["x", "x-y", "z"]


def test_prefixes_within_each_other_are_refused(bucket: StoredPath, tmp_path: Path) -> None:
    local = tree(tmp_path / "set", ["ann/v/1.jpg", "bob/v/1.jpg"])
    stored = upload(local, bucket / "set")
    with pytest.raises(
        SourceError, match=f"^{stored}/ann: lies in {stored}, and would be read twice; name one of them"
    ):
        find_files(stored, local, stored / "ann")
    files, (warning,) = find_files(stored, local, as_location(f"{stored}/"))
    assert [file.path for file in files] == [str(stored), str(local)]
    assert warning == f"{stored}: is {stored} once more, left aside"
    for out in (stored / "sets" / "mine", stored):
        with pytest.raises(BuildError, match=f"^{out}: lies in the source {stored}, and would be read as a part of it"):
            build_at("x", files, out, CONFIG, by_shared_worker(), work=tmp_path / "work")
    assert not (tmp_path / "work").exists()


# --- pictures


@pytest.fixture
def proxy(bucket: StoredPath, object_store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """Between this process and the store."""
    monkeypatch.setattr(stores, "PAUSES", (0.001, 0.01))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    with FaultProxy(object_store) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        yield between


def reasons(part: Partition) -> list[tuple[str | None, str | None]]:
    """Returns key and detail of the rows that are dropped."""
    rows = scan(part)
    return [(key, detail) for key, detail in zip(rows.key, rows.detail, strict=True) if detail]


def test_a_picture_that_cannot_be_read_is_a_row(
    bucket: StoredPath, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is gone since it was listed, one that may not be read, one that is too large: in the words of a disk."""
    local = tree(tmp_path / "set", ["ann/0.jpg", "ann/1.jpg", "bob/2.jpg", "bob/3.jpg"])
    stored = upload(local, bucket / "set")
    monkeypatch.setattr(folder, "MAX_ENCODED", len(IMAGE) + 2)
    monkeypatch.setattr(base, "MAX_ENCODED", len(IMAGE) + 2)
    parts = {}
    for name, root in (("local", local), ("stored", stored)):
        (tmp_path / name).mkdir()
        (parts[name],), _ = cut(find_files(root)[0], tmp_path / name, 0)
        (root / "ann" / "1.jpg").unlink()
    proxy.add(faults.says(403, "AccessDenied"), path="bob/2.jpg$", times=-1)
    assert reasons(parts["local"]) == [
        ("ann/1.jpg", "cannot be read: No such file or directory"),
        ("bob/3.jpg", f"the file is larger than {len(IMAGE) + 2} bytes"),
    ]
    assert reasons(parts["stored"]) == [
        *reasons(parts["local"])[:1],
        ("bob/2.jpg", "cannot be read: Permission denied"),
        *reasons(parts["local"])[1:],
    ]


@pytest.mark.parametrize(
    ("after", "fault", "line"),
    [
        (0, faults.says(403, "AccessDenied"), "access denied by "),
        (1, faults.says(403, "AccessDenied"), "access denied by "),
        (1, faults.says(403, "ExpiredToken"), "access denied by "),
        (2, faults.refused, "does not answer: the connection was lost"),
        (2, faults.says(503, "SlowDown"), "says 503 SlowDown"),
        (2, faults.says(404, "NoSuchBucket"), "no such bucket"),
        (2, faults.html, "answers unlike an object store"),
    ],
)
def test_a_store_that_fails_is_no_picture(
    after: int, fault: Fault, line: str, bucket: StoredPath, proxy: FaultProxy, tmp_path: Path
) -> None:
    stored = upload(tree(tmp_path / "set", [f"ann/{n}.jpg" for n in range(12)]), bucket / "set")
    (part,), _ = cut(find_files(stored)[0], tmp_path, 0)
    proxy.add(fault, path="jpg$", after=after, times=-1)
    with pytest.raises(StorageError) as caught:
        scan(part)
    assert str(caught.value).startswith(f"{stored}/ann/")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_passes_changes_no_picture(bucket: StoredPath, proxy: FaultProxy, tmp_path: Path) -> None:
    local = tree(tmp_path / "set", [f"ann/{n}.jpg" for n in range(12)])
    (part,), _ = cut(find_files(upload(local, bucket / "set"))[0], tmp_path, 0)
    passing = (faults.reset, faults.cut, faults.short, faults.refused, faults.html, faults.says(503, "SlowDown"))
    rules = [proxy.add(fault, path=f"/{n}.jpg$") for n, fault in enumerate(passing)]
    rows = scan(part)
    assert [bytes(image) for image in rows.images if image is not None] == [
        (local / key).read_bytes() for key in rows.key
    ]
    assert [rule.seen for rule in rules] == [2] * len(passing)


def test_a_picture_that_came_changed_is_read_again(
    bucket: StoredPath, object_store: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    """Its ETag tells; where that is no MD5, as of objects that were put in parts, two answers do."""
    local = tree(tmp_path / "set", ["ann/0.jpg", "ann/1.jpg"])
    stored = upload(local, bucket / "set")
    with arrow(object_store).open_output_stream(f"{bucket.bucket}/{bucket.key}/set/ann/1.jpg") as file:
        file.write((local / "ann" / "1.jpg").read_bytes())
    (part,), _ = cut(find_files(stored)[0], tmp_path, 0)
    proxy.add(faults.flip, path="0.jpg$")
    proxy.asked.clear()
    images = scan(part).images
    assert list(map(bytes, images)) == [path.read_bytes() for path in sorted(local.rglob("*.jpg"))]
    assert [rule.seen for rule in proxy.rules] == [2]
    assert sum(asked.path.endswith("1.jpg") for asked in proxy.asked) == 2
    proxy.add(faults.flip, path="1.jpg$")
    with pytest.raises(StorageError, match=f"^{stored}/ann/1.jpg: comes with other bytes each time$"):
        scan(part)


def build_changed(stored: StoredPath, out: Path, form: str, stage: str, change: Callable[[StoredPath], object]) -> Any:
    """Builds from a prefix; a picture is changed before a stage begins."""
    changes = [change]

    @contextmanager
    def around(name: str) -> Iterator[None]:
        if name == stage and changes:
            changes.pop()(stored / "p1" / "4.jpg")
        yield

    config = BuildConfig(image_size=(8, 8), near_within=-1, near_across=-1)
    execution = InProcess(1, None, 0, quiet=True, shuffle=form, around=around)
    return build_at("x", find_files(stored)[0], out, config, execution)


def test_a_picture_that_was_replaced_or_removed_is_said(bucket: StoredPath, tmp_path: Path) -> None:
    stored, out = (
        upload(tree(tmp_path / "set", [f"p{n % 3}/{n}.jpg" for n in range(12)]), bucket / "set"),
        tmp_path / "out",
    )
    with pytest.raises(SourceError, match=rf"^{stored}: record p1/4\.jpg changed since it was scanned: .* --restart"):
        build_changed(stored, out, "direct", "write", lambda path: path.write_bytes(IMAGE + b"another"))
    (stored / "p1" / "4.jpg").upload(tmp_path / "set" / "p1" / "4.jpg", "")
    shutil.rmtree(tmp_path / ".out.building")
    with pytest.raises(FaceshardsError, match=rf"^{stored}/p1/4\.jpg: no such object$"):
        build_changed(stored, out, "direct", "write", StoredPath.unlink)
    assert not out.exists()


def test_a_spill_needs_each_picture_once(
    bucket: StoredPath, proxy: FaultProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What was scanned is kept in the work folder; where that is gone, a picture is asked for again."""
    local = tree(tmp_path / "set", [f"p{n % 3}/{n}.jpg" for n in range(12)])
    stored, out, work = upload(local, bucket / "set"), tmp_path / "out", tmp_path / ".out.building"
    expected = build_changed(local, tmp_path / "local", "spill", "", print).fingerprint
    found = build_changed(stored, out, "spill", "route", StoredPath.unlink)
    assert (found.fingerprint, list(verify(found))) == (expected, [])
    shutil.rmtree(out)
    (stored / "p1" / "4.jpg").upload(local / "p1" / "4.jpg", "")

    def stop(change: Callable[[Path], object] = lambda path: None, form: str = "spill") -> int:
        """Stops a build before it routes; returns how many pictures are asked for when it goes on."""

        def stopped(_: StoredPath) -> None:
            raise BuildError("stopped")

        with pytest.raises(BuildError, match=r"^stopped$"):
            build_changed(stored, out, "spill", "route", stopped)
        (kept,) = (work / "records").glob("*.images")
        assert kept.read_bytes() == b"".join(path.read_bytes() for path in sorted(local.rglob("*.jpg")))
        change(kept)
        proxy.asked.clear()
        assert build_changed(stored, out, form, "", print).fingerprint == expected
        shutil.rmtree(out)
        return sum(asked.path.endswith(".jpg") for asked in proxy.asked)

    assert stop() == 0
    assert stop(Path.unlink) == 12
    assert stop(form="direct") == 12
    assert "the images of 1 partitions were carried here; they are removed" in caplog.text
    with pytest.raises(BuildError, match=r"part-000000\.images: damaged: the image of record p0/0\.jpg is not the one"):
        stop(lambda path: flip_bit(path, 77))


def test_a_record_is_read_back_by_its_key(bucket: StoredPath) -> None:
    (bucket / "set" / "ann" / "1.jpg").write_bytes(IMAGE)
    (file,), _ = find_files(bucket / "set")
    entry = dataclasses.asdict(file)
    assert read_record(entry, "ann/1.jpg") == IMAGE
    with pytest.raises(SourceError, match=f"^{bucket}/set/ann/1.jpg: changed since it was scanned"):
        read_record({**entry, "mtime_ns": entry["mtime_ns"] - 1}, "ann/1.jpg")
    (bucket / "set" / "ann" / "1.jpg").unlink()
    with pytest.raises(SourceError, match=f"^{bucket}/set/ann/1.jpg: no such object"):
        read_record(entry, "ann/1.jpg")


# --- builds


@pytest.fixture(scope="module")
def faces(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny set in two folders with a folder for each identity."""
    out = tmp_path_factory.mktemp("faces")
    for key, (label, image) in read_rec(tiny_source / "train.rec").items():
        path = out / "ab"[label % 2] / f"p{label}" / f"{key}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    return out


@pytest.fixture(scope="module")
def built(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """What is published of them on a disk."""
    out = tmp_path_factory.mktemp("built") / "set"
    return build_at("tiny", find_files(faces / "a", faces / "b")[0], out, CONFIG, by_shared_worker(60_000))


@pytest.mark.parametrize(("form", "there"), [("direct", False), ("spill", False), ("spill", True)])
def test_the_dataset_is_that_of_the_disk(
    form: str, there: bool, faces: Path, built: Manifest, bucket: StoredPath, tmp_path: Path, proxy: FaultProxy
) -> None:
    """One of its folders is in the bucket, the other on the disk; requests are few, and each picture's its own."""
    stored = upload(faces / "a", bucket / "raw" / "a")
    proxy.asked.clear()
    files, _ = find_files(stored, faces / "b")
    execution = InProcess(1, None, 60_000, quiet=True, shuffle=form)
    out = bucket / "set" if there else tmp_path / "set"
    dataset = build_at("tiny", files, out, CONFIG, execution, work=bucket / "work" if there else None)
    found = digests(downloaded(out, tmp_path / "copy") if there else out)
    assert dataset.fingerprint == built.fingerprint
    assert {**found, "dataset.json": ""} == {**digests(built.path), "dataset.json": ""}
    asked = [asked for asked in proxy.asked if asked.method != "PUT" and "raw" in f"{asked.path}?{asked.query}"]
    pictures = len(list((faces / "a").rglob("*.jpg")))
    kept = len([key for key in dataset.table("images", ["source"])["source"].to_pylist() if key == "a"])
    again = kept * (form == "direct")
    assert len([one for one in asked if one.path.endswith(".jpg")]) == pictures + again
    assert len(asked) - pictures - again < 12

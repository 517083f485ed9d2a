"""Datasets built from and into buckets: the same bytes as on a disk, whole or absent, resumed and never mixed."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from faceshards.cli.main import main
from faceshards.dataset.manifest import Manifest, ManifestError
from faceshards.dataset.verify import verify
from faceshards.errors import BuildError
from faceshards.reading import content, fetch
from faceshards.storage.lease import Lease
from faceshards.storage.location import StoredPath
from pipelines import prefix, publication, upload
from pipelines.config import BuildConfig
from pipelines.derived import export_at
from pipelines.exports.base import Request
from pipelines.exports.export import export
from pipelines.runner import Execution
from pipelines.sources.find import find_files
from tests.faceshards.test_stored_dataset import upload as put
from tests.pipelines.build_fixtures import CONFIG, PARTITION_BYTES, digests


def build(source: Path | StoredPath, out: Path | StoredPath, worker: str, **options: Any) -> Manifest:
    files, _ = find_files(source)
    execution = Execution(1, worker, PARTITION_BYTES, quiet=True)
    return upload.build_at("tiny", files, out, CONFIG, execution, **options)


def send(manifest: Manifest, out: StoredPath, lease: Lease) -> None:
    """Uploads a dataset of the disk."""
    assert isinstance(manifest.path, Path)
    files = prefix.files_of(manifest.info, manifest.table("shards").to_pylist())
    publication.Publication(out, "dataset.json", {}).upload(manifest.path, files, True, lease)


def downloaded(place: StoredPath, folder: Path) -> Path:
    """Returns a folder with what is below a place."""
    for entry, _ in place.tree():
        path = folder / str(entry).removeprefix(f"{place}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        fetch(entry, path)
    return folder


def test_from_bucket_to_bucket_it_is_the_dataset_of_the_disk(
    tiny_source: Path, tiny_digests: dict[str, str], bucket: StoredPath, worker: str, tmp_path: Path
) -> None:
    source, out = put(tiny_source, bucket / "raw"), bucket / "sets" / "tiny ü"
    found = build(source, out, worker, work=tmp_path / "work")
    assert found.path == out
    assert list(verify(found)) == []
    # dataset.json says where the source lies.
    told = digests(downloaded(out, tmp_path / "copy"))
    assert told.pop("dataset.json") != tiny_digests["dataset.json"]
    assert told == {name: digest for name, digest in tiny_digests.items() if name != "dataset.json"}
    (entry,) = found.info["sources"]
    assert (entry["path"], entry["index"]) == (f"{source}/train.rec", f"{source}/train.idx")
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["lock"]
    secrets = (os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
    assert not any(secret in json.dumps(found.info) for secret in secrets[1:])


def test_a_dataset_in_a_bucket_is_exported_as_one_on_a_disk(
    tiny_dataset: Manifest, bucket: StoredPath, worker: str, tmp_path: Path
) -> None:
    stored, execution = put(tiny_dataset.path, bucket / "set"), Execution(1, worker, quiet=True)
    for name, path in (("local", tiny_dataset.path), ("stored", stored)):
        export(path, tmp_path / name / "tars", Request("webdataset"), execution)
    made = [digests(tmp_path / name) for name in ("local", "stored")]
    for files in made:
        del files["tars/export.json"]  # which says where the dataset lies
    assert made[0] == made[1]


@pytest.fixture
def whole(tiny_source: Path, tiny_dataset: Manifest, tmp_path: Path) -> Path:
    """A work folder in which the tiny dataset waits to be uploaded."""
    work = tmp_path / "work"
    shutil.copytree(tiny_dataset.path, upload.made_in(work))
    (work / "lock").touch()
    return work


class KilledError(Exception):
    """In place of a kill."""


@pytest.mark.parametrize("after", [0, 1, 5, 10])
def test_a_killed_upload_is_no_dataset_and_goes_on(
    after: int,
    tiny_source: Path,
    tiny_dataset: Manifest,
    whole: Path,
    bucket: StoredPath,
    worker: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, plain, sent = bucket / "set", StoredPath.upload, []

    def killed(self: StoredPath, path: Path, sha256: str) -> None:
        if len(sent) == after:
            raise KilledError
        plain(self, path, sha256)
        sent.append(self)

    def counted(self: StoredPath, path: Path, sha256: str) -> None:
        plain(self, path, sha256)
        sent.append(self)

    monkeypatch.setattr(publication, "_AT_ONCE", 1)
    monkeypatch.setattr(StoredPath, "upload", killed)
    with pytest.raises(KilledError):
        build(tiny_source, out, worker, work=whole)
    with pytest.raises(ManifestError, match="no dataset published there"):
        Manifest(out)
    monkeypatch.setattr(StoredPath, "upload", counted)
    assert build(tiny_source, out, worker, work=whole).info == tiny_dataset.info
    assert len(sent) == len(set(sent)) == len(list(out.tree())) - 1
    assert not (out / prefix.MARK).exists()


def test_what_is_published_is_not_built_again_and_not_replaced(
    tiny_source: Path, tiny_dataset: Manifest, bucket: StoredPath, worker: str, tmp_path: Path
) -> None:
    out = put(tiny_dataset.path, bucket / "set")
    work = tmp_path / "work"
    assert build(tiny_source, out, worker, work=work).fingerprint == tiny_dataset.fingerprint
    assert not work.exists()
    (out / "dataset.json").write_bytes(b"{}")
    with pytest.raises(ManifestError, match="damaged"):
        build(tiny_source, out, worker, work=work)
    with pytest.raises(BuildError, match="in a bucket no dataset is replaced"):
        build(tiny_source, out, worker, work=work, overwrite=True)


def test_a_place_of_others_is_refused(tiny_source: Path, whole: Path, bucket: StoredPath, worker: str) -> None:
    (bucket / "set" / "notes.txt").write_bytes(b"mine")
    with pytest.raises(BuildError, match=f"^{bucket}/set: objects lie there, and no dataset of ours; they are not"):
        build(tiny_source, bucket / "set", worker, work=whole)
    (bucket / "other" / prefix.MARK).write_bytes(b"another request")
    with pytest.raises(BuildError, match="an interrupted upload of another request lies there"):
        build(tiny_source, bucket / "other", worker, work=whole)
    assert [place.name for place, _ in bucket.tree()] == [prefix.MARK, "notes.txt"]


def test_a_plan_says_what_would_be_refused(
    tiny_source: Path, tiny_dataset: Manifest, bucket: StoredPath, tmp_path: Path
) -> None:
    out, files = put(tiny_dataset.path, bucket / "set"), find_files(tiny_source)[0]
    options = {"exclude": (), "strict": False, "overwrite": False, "restart": False}

    def said(place: StoredPath, config: BuildConfig = CONFIG, **more: bool) -> list[str]:
        return upload.in_the_way("tiny", files, place, tmp_path, config, {**options, **more})

    assert said(out) == said(bucket / "free") == []
    assert "from another request; choose another prefix" in said(out, BuildConfig(shards=5))[0]
    assert "in a bucket no dataset is replaced" in said(out, overwrite=True)[0]
    (bucket / "other" / prefix.MARK).write_bytes(b"another request")
    assert "an interrupted upload of another request" in said(bucket / "other")[0]
    assert said(bucket / "other", restart=True) == []
    assert sorted(place.name for place, _ in (bucket / "other").tree()) == [prefix.MARK]


@pytest.mark.parametrize("last", ["dataset.json", "export.json"])
def test_what_another_has_just_published_stays(last: str, bucket: StoredPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "_check_free", lambda out, what: (out / last).write_bytes(b"{}"))
    claimed = prefix.claimed(bucket / "set", last, {}, restart=True, what="export")
    with pytest.raises(BuildError, match="another export published there just now"), claimed:
        pass
    assert (bucket / "set" / last).exists()


def test_restart_removes_what_an_upload_left_and_nothing_else(bucket: StoredPath) -> None:
    for name in ("set/x", "set/shards/y", f"set/{prefix.MARK}", "kept/x", "set2"):
        (bucket / name).write_bytes(b"")
    with (
        pytest.raises(BuildError, match="no dataset of ours"),
        prefix.claimed(bucket / "kept", "dataset.json", {}, restart=True),
    ):
        pass
    with prefix.claimed(bucket / "set", "dataset.json", {}, restart=True):
        assert [place.name for place, _ in (bucket / "set").tree()] == [prefix.MARK]
    assert sorted(str(place) for place, _ in bucket.tree()) == [f"{bucket}/kept/x", f"{bucket}/set2"]


def test_a_damaged_file_is_not_uploaded(
    tiny_source: Path, tiny_dataset: Manifest, bucket: StoredPath, tmp_path: Path
) -> None:
    copy = tmp_path / "set"
    shutil.copytree(tiny_dataset.path, copy)
    shard = copy / "shards" / "shard-00002.mindrecord"
    data = bytearray(shard.read_bytes())
    data[-1000] ^= 1
    shard.write_bytes(data)
    changed = pytest.raises(BuildError, match=rf"^{shard}: changed since it was published")
    with changed, prefix.claimed(bucket / "set", "dataset.json", {}, restart=False) as lease:
        send(Manifest(copy), bucket / "set", lease)
    assert not (bucket / "set" / "dataset.json").exists()


def test_two_who_publish_the_same_agree_and_another_is_refused(
    tiny_dataset: Manifest, bucket: StoredPath, tmp_path: Path
) -> None:
    out = put(tiny_dataset.path, bucket / "set")
    (out / "dataset.json").unlink()
    with prefix.claimed(bucket / "free", "dataset.json", {}, restart=False):
        mark = content(bucket / "free" / prefix.MARK)
    mark = json.dumps({"request": json.loads(mark)["request"]}).encode()  # an interrupted build's
    plain = StoredPath.tree
    other = json.dumps({**tiny_dataset.info, "name": "other"}).encode()
    for published, refused in (((tiny_dataset.path / "dataset.json").read_bytes(), False), (other, True)):

        def first(self: StoredPath, published: bytes = published) -> Iterator[tuple[StoredPath, int]]:
            yield from [*plain(self)]
            (out / "dataset.json").write_bytes(published)  # by someone else, at the last moment

        (out / prefix.MARK).write_bytes(mark)
        with prefix.claimed(out, "dataset.json", {}, restart=False) as lease, pytest.MonkeyPatch.context() as patch:
            patch.setattr(StoredPath, "tree", first)
            with pytest.raises((BuildError, ManifestError)) if refused else nullcontext():
                send(tiny_dataset, out, lease)
        (out / "dataset.json").unlink()


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["--out", "s3://faces/set"], "needs --work, a folder on a disk or a prefix in a bucket, to be made in"),
        (["--out", "set", "--work", "w"], "--work belongs to a place in a bucket"),
        (["--out", "set", "--work", "s3://faces/w"], "--work belongs to a place in a bucket"),
    ],
)
def test_options_that_do_not_go_together(arguments: list[str], cause: str) -> None:
    said = CliRunner().invoke(main, ["build", "--source", "x.rec", *arguments])
    assert said.exit_code == 2
    assert cause in said.output


def test_a_place_in_a_dataset_or_where_one_is_made_is_refused(
    tiny_source: Path, tiny_dataset: Manifest, bucket: StoredPath, worker: str, tmp_path: Path
) -> None:
    shutil.copytree(tiny_dataset.path, tmp_path / "set")
    put(tmp_path / "set", bucket / "set")
    (bucket / "begun" / prefix.MARK).write_bytes(b"{}")
    (bucket / "dataset.json").write_bytes(b"[]")  # somebody's
    for place, cause in (
        (bucket / "set" / "more", f"{bucket}/set/more: lies in the dataset {bucket}/set, and would be"),
        (bucket / "begun" / "a" / "b", f"lies in {bucket}/begun, where another dataset is being made"),
    ):
        for options in ({"work": tmp_path / "work"}, {"work": bucket / "work"}):
            with pytest.raises(BuildError, match=re.escape(cause)):
                build(tiny_source, place, worker, **options)
    with pytest.raises(BuildError, match="lies in the dataset"):
        build(tiny_source, tmp_path / "set" / "more", worker)
    assert not (tmp_path / "work").exists() or [path.name for path in (tmp_path / "work").iterdir()] == ["lock"]
    assert build(tiny_source, bucket / "apart", worker, work=tmp_path / "work").fingerprint == tiny_dataset.fingerprint


def test_a_work_folder_with_a_dataset_of_somebody_else_is_left_as_it_is(
    tiny_source: Path, tiny_dataset: Manifest, bucket: StoredPath, worker: str, tmp_path: Path
) -> None:
    """What is made there is removed in the end: it has to have been made there."""
    shutil.copytree(tiny_dataset.path, tmp_path / "dataset")
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "notes.txt").write_text("mine")
    before = digests(tmp_path)
    for restart in (False, True):
        with pytest.raises(BuildError, match="dataset: is in the way, and was not left by us"):
            build(tiny_source, bucket / "set", worker, work=tmp_path, restart=restart)
        with pytest.raises(BuildError, match="export: is in the way, and was not left by us"):
            export_at(
                *(tiny_dataset.path, bucket / "tars", Request("webdataset"), Execution(1, worker, quiet=True)),
                work=tmp_path,
                restart=restart,
            )
    assert digests(tmp_path) == before

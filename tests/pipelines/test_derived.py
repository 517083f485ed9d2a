"""Exports and splits in buckets: the files of the disk, whole or absent, resumed and never mixed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from faceshards.cli.main import main
from faceshards.dataset.manifest import Manifest
from faceshards.errors import BuildError, FaceshardsError
from faceshards.storage.location import StoredPath
from faceshards.storage.stores import store
from pipelines import publication
from pipelines.derived import export_at, split_at
from pipelines.exports.base import ExportError, Request
from pipelines.prefix import MARK
from pipelines.runner import Execution
from pipelines.synthetic.write import SyntheticSpec
from tests.faceshards.test_stored_dataset import upload as put
from tests.pipelines.build_fixtures import digests, synthetic_set
from tests.pipelines.exports.readers import Found, by_mxnet, expected, exported
from tests.pipelines.split.conftest import REQUEST
from tests.pipelines.test_upload import KilledError, build, downloaded

TARS = Request("webdataset")


def export(dataset: Manifest, out: StoredPath, worker: str, work: Path, request: Request = TARS, **more: Any) -> Any:
    return export_at(dataset.path, out, request, Execution(1, worker, quiet=True), work=work, **more)


def names(place: StoredPath) -> list[str]:
    return sorted(str(entry).removeprefix(f"{place}/") for entry, _ in place.tree())


def signed(place: StoredPath) -> str:
    """Returns an address by which anybody may read an object for a while."""
    import obstore

    return str(obstore.sign(store(place.scheme, place.bucket), "GET", place.key, timedelta(minutes=5)))


def test_webdataset_reads_the_tars_from_the_server(
    tiny_dataset: Manifest, bucket: StoredPath, worker: str, tmp_path: Path
) -> None:
    wds = pytest.importorskip("webdataset")
    if shutil.which("curl") is None:
        pytest.skip("webdataset reads addresses by curl, which is not installed")
    stored, out = put(tiny_dataset.path, bucket / "set"), bucket / "tars ü"
    arguments = ["export-data", str(stored), str(out), "--to", "webdataset", "--work", str(tmp_path / "work")]
    said = CliRunner().invoke(main, [*arguments, "--scheduler", worker, "--json", "--quiet"], catch_exceptions=False)
    assert said.exit_code == 0, said.output
    about = json.loads(said.stdout)
    assert [*about["files"], "export.json"] == sorted(names(out), key="export.json".__eq__)
    tars = [f"pipe:curl -sf '{signed(out / name)}'" for name in about["files"] if name.endswith(".tar")]
    assert len(tars) == len(tiny_dataset.table("shards"))
    found = [
        Found(int(sample["cls"]), hashlib.sha256(sample.get("jpg") or sample["png"]).hexdigest())
        for sample in wds.WebDataset(tars, shardshuffle=False)
    ]
    assert len(found) == tiny_dataset.totals["kept"]
    assert set(found) == expected(tiny_dataset)
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["lock"]


@pytest.mark.parametrize("to", ["recordio", "im2rec", "webdataset"])
def test_it_is_the_export_of_the_disk(
    to: str, tiny_dataset: Manifest, bucket: StoredPath, worker: str, tmp_path: Path
) -> None:
    about = export(tiny_dataset, bucket / to, worker, tmp_path / "work", Request(to))
    copy = downloaded(bucket / to, tmp_path / "copy")
    assert json.loads((copy / "export.json").read_text()) == about
    # im2rec and webdataset are cut alike whatever the pieces are.
    assert digests(copy) == digests(exported(tiny_dataset, tmp_path / "disk", to))
    if to != "webdataset":
        assert {
            Found(int(found.label), found.sha256) for found in by_mxnet(copy / "train.rec")[0].values()
        } == expected(tiny_dataset)


@pytest.mark.parametrize("moment", ["claimed", "sent", "all but the last", "last", "tidied"])
def test_killed_it_is_no_export_and_goes_on(
    moment: str, tiny_dataset: Manifest, bucket: StoredPath, worker: str, tmp_path: Path, monkeypatch: Any
) -> None:
    out, work, sent = bucket / "tars", tmp_path / "work", []
    whole = digests(exported(tiny_dataset, tmp_path / "whole", "webdataset"))
    put_file, put_last, remove = StoredPath.upload, StoredPath.write_bytes, shutil.rmtree

    def upload(self: StoredPath, path: Path, sha256: str) -> None:
        if moment == "claimed" or (moment == "sent" and len(sent) == 2):
            raise KilledError
        put_file(self, path, sha256)
        sent.append(self)

    def write_bytes(self: StoredPath, data: bytes, **options: Any) -> Any:
        if self.name == "export.json" and moment == "all but the last":
            raise KilledError
        found = put_last(self, data, **options)
        if self.name == "export.json" and moment == "last":
            raise KilledError
        return found

    def rmtree(path: Path, *rest: Any, **more: Any) -> None:
        if path == work / ".export.removed" and path.exists():
            raise KilledError
        remove(path, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(publication, "_AT_ONCE", 1)
        patch.setattr(StoredPath, "upload", upload)
        patch.setattr(StoredPath, "write_bytes", write_bytes)
        if moment == "tidied":
            patch.setattr(shutil, "rmtree", rmtree)
        with pytest.raises(KilledError):
            export(tiny_dataset, out, worker, work)
    is_whole = moment in ("last", "tidied")
    assert (out / "export.json").exists() == is_whole
    assert (out / MARK).exists() == (moment != "claimed")  # where nothing was sent, nothing is left
    first = list(sent)
    with monkeypatch.context() as patch:
        patch.setattr(StoredPath, "upload", lambda self, *file: (put_file(self, *file), sent.append(self)))
        export(tiny_dataset, out, worker, work)
    assert len(sent) == len(set(sent)) == len(whole) - 1
    assert digests(downloaded(out, tmp_path / "copy")) == whole  # so the mark is gone
    assert [path.name for path in work.iterdir()] == ["lock"]
    assert not is_whole or sent == first


def test_what_is_there_is_not_made_again_and_not_replaced(
    tiny_dataset: Manifest, bucket: StoredPath, worker: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, work = bucket / "tars", tmp_path / "work"
    made, before = export(tiny_dataset, out, worker, work), names(out)
    shutil.rmtree(work)
    caplog.clear()
    assert export(tiny_dataset, out, worker, work) == made
    assert caplog.messages == [f"{out}: already exported from the same dataset; nothing to do"]
    assert not work.exists()
    with pytest.raises(
        ExportError, match=r"another export is there \(labels: 'new' there, 'old' now\); choose another pre"
    ):
        export(tiny_dataset, out, worker, work, Request("webdataset", "old"))
    (out / "export.json").write_bytes(b"{}")
    with pytest.raises(ExportError, match=r"export\.json: damaged"):
        export(tiny_dataset, out, worker, work)
    assert (names(out), work.exists()) == (before, False)


def test_what_cannot_be_leaves_nothing(tiny_dataset: Manifest, bucket: StoredPath, worker: str, tmp_path: Path) -> None:
    stored, work = Manifest(put(tiny_dataset.path, bucket / "set")), tmp_path / "work"
    (bucket / "notes" / "notes.txt").write_bytes(b"mine")
    (bucket / "other" / MARK).write_bytes(b"another request")
    before = names(bucket)
    refusals: list[tuple[str, Callable[[], Any]]] = [
        ("/notes: objects lie there, and no export of ours", lambda: export(stored, bucket / "notes", worker, work)),
        ("an interrupted upload of another request", lambda: export(stored, bucket / "other", worker, work)),
        ("/set/tars: lies in the dataset", lambda: export(stored, bucket / "set" / "tars", worker, work)),
        (
            "too many for a bucket; choose another format: recordio, im2rec, web",
            lambda: export(stored, bucket / "f", worker, work, Request("folder")),
        ),
        ("needs a work folder", lambda: export_at(stored.path, bucket / "f", TARS, Execution(1, worker))),
        (
            "a work folder is for buckets",
            lambda: export_at(stored.path, tmp_path / "f", TARS, Execution(1, worker), work=work),
        ),
        (
            "the 3 identities held out make at most",
            lambda: split_at(stored.path, bucket / "f", REQUEST, Execution(1, worker), work=work),
        ),
    ]
    for cause, refused in refusals:
        with pytest.raises(FaceshardsError, match=cause.replace("(", r"\(")):
            refused()
    assert names(bucket) == before
    assert [path.name for path in tmp_path.iterdir() if path.name != "work"] == []
    with pytest.raises(BuildError, match="an interrupted upload of another request"):
        export(stored, bucket / "other", worker, work)
    export(stored, bucket / "other", worker, work, restart=True)
    assert MARK not in names(bucket / "other")


def test_a_place_in_a_source_is_refused(bucket: StoredPath, worker: str, tmp_path: Path) -> None:
    source = put(synthetic_set(tmp_path / "raw", SyntheticSpec(identities=4, images=16, defects=0)), bucket / "raw")
    dataset = build(source, bucket / "sets" / "four", worker, work=tmp_path / "work")
    with pytest.raises(BuildError, match=r"/raw/tars: lies in the source .*/raw, and would be taken for a part of it"):
        export(dataset, bucket / "raw" / "tars", worker, tmp_path / "work")

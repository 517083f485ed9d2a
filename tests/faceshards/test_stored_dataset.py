"""A dataset in a bucket is read as one on a disk: the same answers, the same refusals."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner

import faceshards
from faceshards.checksums import file_digest, sealed
from faceshards.cli.main import main
from faceshards.dataset.manifest import Manifest
from faceshards.storage.location import StoredPath


def upload(folder: Path, place: StoredPath) -> StoredPath:
    """Returns a place after a folder's files were put there."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            (place / path.relative_to(folder)).upload(path, file_digest(path)[1])
    return place


def run(*arguments: object) -> str:
    """Returns what a command prints on stdout."""
    found = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.stdout


@pytest.fixture
def stored(tiny_dataset: Manifest, bucket: StoredPath) -> StoredPath:
    """The tiny dataset in a bucket, under a name that has to be quoted in requests."""
    return upload(tiny_dataset.path, bucket / "tiny set ü")


def test_each_command_says_the_same(tiny_dataset: Manifest, stored: StoredPath, tiny_source: Path) -> None:
    local = tiny_dataset.path
    row = tiny_dataset.table("dropped", ["sid"])["sid"][0].as_py()
    for arguments in (
        ["summary"],
        ["identities"],
        ["drops"],
        ["links"],
        ["conflicts"],
        ["conflicts", "--pairs"],
        ["shards"],
        ["image", 0],
        ["image", row],
        ["query", "SELECT reason, count(*) FROM dropped GROUP BY reason ORDER BY ALL"],
        ["query", "SELECT shard, sum(bytes), min(sid) FROM images GROUP BY shard ORDER BY shard"],
        ["verify", "--quiet"],
        ["verify", "--quiet", "--sample", "10%"],
        ["upgrade"],
    ):
        command, *more = arguments
        said = [run("manifest", command, path, *more, "--json") for path in (local, stored)]
        assert said[1].replace(json.dumps(str(stored)), json.dumps(str(local))) == said[0], command
    assert not json.loads(run("manifest", "diff", local, stored, "--json"))["differs"]


def test_images_and_reports_are_the_same(tiny_dataset: Manifest, stored: StoredPath, tmp_path: Path) -> None:
    for name, path in (("local", tiny_dataset.path), ("stored", stored)):
        run("manifest", "image", path, 5, "--out", tmp_path / f"{name}.jpg")
    assert (tmp_path / "local.jpg").read_bytes() == (tmp_path / "stored.jpg").read_bytes()
    written = json.loads(run("manifest", "report", stored, "--out", tmp_path / "page.html", "--json"))
    assert (written["pictures"] > 0, written["unread"]) == (True, 0)


def test_python_opens_it(tiny_dataset: Manifest, stored: StoredPath) -> None:
    found = faceshards.open(str(stored))
    assert (found.fingerprint, len(found)) == (tiny_dataset.fingerprint, tiny_dataset.totals["kept"])
    assert found.images.to_table().equals(tiny_dataset.table("images"))
    assert found.image(5).encoded == faceshards.open(tiny_dataset.path).image(5).encoded
    assert faceshards.open(f"{stored}/dataset.json").path == stored
    with pytest.raises(faceshards.FaceshardsError, match=r"in a bucket: .*: name it by --cache \(in Python cache=\)"):
        faceshards.Stream(str(stored), 8)


def test_damage_is_found(tiny_dataset: Manifest, stored: StoredPath) -> None:
    table, shard = stored / "manifest" / "dropped.parquet", stored / "shards" / "shard-00001.mindrecord"
    whole = (tiny_dataset.path / "shards" / shard.name).read_bytes()
    shard.write_bytes(whole[:-1000] + bytes([whole[-1000] ^ 1]) + whole[-999:])
    table.write_bytes(b"x" * table.stat().st_size)
    (stored / "shards" / "stray.mindrecord").write_bytes(b"")
    (stored / "shards" / "shard-00002.mindrecord.db").unlink()
    said = CliRunner().invoke(main, ["manifest", "verify", str(stored), "--quiet"])
    assert said.exit_code == 1
    assert f"{table}: changed since it was published" in said.output
    assert f"{shard}: changed since it was published" in said.output
    assert f"{shard}: row " in said.output
    assert f"{stored}/shards/shard-00002.mindrecord.db: missing; the manifest lists it" in said.output
    assert f"{stored}/shards/stray.mindrecord: was not published with the dataset" in said.output
    refused = CliRunner().invoke(main, ["manifest", "drops", str(stored)])
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr.strip().endswith(
        f"{table}: changed since it was published: its SHA-256 is not dataset.json's"
    )


def test_nothing_there_is_said(bucket: StoredPath) -> None:
    for place, cause in (
        (bucket / "none", "no dataset published there (no dataset.json)"),
        (StoredPath("s3", "no-such-bucket", "x"), "no such bucket"),
    ):
        said = CliRunner().invoke(main, ["manifest", "summary", str(place)])
        assert said.exit_code == 1
        assert said.stderr.count("\n") == 1
        assert cause in said.stderr


def test_of_a_place_that_holds_several_it_is_said_which(bucket: StoredPath, tmp_path: Path) -> None:
    for place in (bucket, tmp_path):
        for name in ("b", "a/b", "c", "d"):
            (place / name).mkdir(parents=True)
            (place / name / "dataset.json").write_bytes(b"{}")
        said = CliRunner().invoke(main, ["manifest", "summary", str(place)])
        inner = ", ".join(str(place / name) for name in "bcd")
        assert said.output == (
            f"Error: {place}: no dataset published there (no dataset.json; datasets lie in it: {inner})\n"
        )


def test_an_older_one_is_upgraded(tiny_dataset: Manifest, stored: StoredPath) -> None:
    info = {name: value for name, value in tiny_dataset.info.items() if name != "sha256"}
    (stored / "dataset.json").write_bytes(json.dumps({**info, "schema_version": 1}).encode())
    run("manifest", "upgrade", stored)
    assert Manifest(stored).info == sealed(tiny_dataset.info)


def test_without_obstore_it_is_said_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(
        faceshards.FaceshardsError, match=r"needs obstore, which is not installed: pip install '.*\[s3\]'"
    ):
        faceshards.open("s3://faces/x")


def test_verification_sets_are_fetched(
    tiny_dataset: Manifest, bucket: StoredPath, face_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (bucket / "orl.bin").upload(face_data / "orl" / "orl.bin", "")
    asked = ["manifest", "overlap", str(tiny_dataset.path), "--quiet", "--json", "--set"]
    assert run(*asked, bucket / "orl.bin") == run(*asked, face_data / "orl" / "orl.bin")
    said = CliRunner().invoke(main, [*asked, str(bucket)])
    assert said.exit_code == 1
    assert f"{bucket}: no such object; of buckets one file is taken, not a folder of them" in said.output
    assert list(tmp_path.glob("faceshards-fetched-*")) == []

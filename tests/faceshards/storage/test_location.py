"""Addresses: what they mean, which are refused, and that no secret is repeated."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import pytest
from click.testing import CliRunner

from faceshards.cli.main import main
from faceshards.cli.options import BYTES
from faceshards.cli.terminal import LogFormatter
from faceshards.storage.faults import StorageError
from faceshards.storage.location import StoredPath, as_location


@pytest.mark.parametrize(
    ("text", "bucket", "key"),
    [
        ("s3://faces", "faces", ""),
        ("s3://faces/", "faces", ""),
        ("S3://faces/a/b.rec", "faces", "a/b.rec"),
        ("s3://faces/a/", "faces", "a"),
        ("s3://faces/with spaces/and ünïcode/日本", "faces", "with spaces/and ünïcode/日本"),
        ("s3://faces/100%/a+b#c?d", "faces", "100%/a+b#c?d"),
        ("gs://my.bucket-1/x..y", "my.bucket-1", "x..y"),
        ("az://container/x@y", "container", "x@y"),
    ],
)
def test_an_address_is_a_bucket_and_a_key(text: str, bucket: str, key: str) -> None:
    assert as_location(text) == StoredPath(text[:2].lower(), bucket, key)


@pytest.mark.parametrize("text", ["a/b", "/a/b", "a:b", "C:/x", "s3", "s3:x", "./s3:/x"])
def test_anything_else_is_a_path(text: str) -> None:
    assert as_location(text) == Path(text)


def test_an_address_of_a_file_is_its_path() -> None:
    assert as_location("file:///data/with%20space") == Path("/data/with space")
    assert as_location("file:/data/x") == Path("/data/x")


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("s3://", "no bucket in it: an address is s3://BUCKET/PREFIX"),
        ("s3:///key", "no bucket in it"),
        ("s3:/faces/x", "no bucket in it"),
        ("s3://b/x", "no name of a bucket"),
        ("s3://two words/x", "no name of a bucket"),
        ("s3://faces/../x", "'..' is no name in a bucket"),
        ("s3://faces/a/..", "'..' is no name in a bucket"),
        ("s3://faces/./x", "'.' is no name in a bucket"),
        ("s3://faces/a//b", "an empty name, between two slashes"),
        ("s3://faces//a", "an empty name, between two slashes"),
        ("s3://faces/a\nb", r"'a\\nb' is no name in a bucket"),
        ("s3://faces/a\nb", r"s3://faces/a\\nb: "),
        (" s3://faces/x", "no address begins with a blank"),
        ("hdfs://host/x", "addresses of hdfs are not known; there are s3://, gs://, az://, file://"),
        ("https://host/x", "addresses of https are not known"),
        ("file://host/x", "there are .*file:///"),
    ],
)
def test_what_is_no_address_is_refused_and_said(text: str, cause: str) -> None:
    with pytest.raises(StorageError, match=cause):
        as_location(text)


@pytest.mark.parametrize(
    "text",
    [
        "s3://AKIAKEY:sEcReT@faces/x",
        "s3://AKIAKEY:sEc/ReT@faces/x",
        "s3://sEcReT@faces",
        "s3://faces/x?access_key=AKIAKEY&secret_key=sEcReT",
        "s3://faces?secret_key=sEcReT",
        "https://AKIAKEY:sEcReT@host/faces",
    ],
)
def test_credentials_in_an_address_are_refused_and_not_repeated(text: str) -> None:
    said = CliRunner().invoke(main, ["manifest", "summary", text])
    assert said.exit_code == 2
    assert "sEc" not in said.output
    assert "AKIA" not in said.output
    assert text.partition(":")[0] in said.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "s3://AKIAKEY:sEcReT@faces/mine.yaml", "--data", "x", "--out", "y"],
        ["train", "s3:/AKIAKEY:sEc/ReT@faces/mine.yaml", "--data", "x", "--out", "y"],
        ["build", "s3://AKIAKEY:sEcReT@faces/x", "--out", "y"],
        ["build", "--source", "x", "--out", "y", "--set", "image_size=s3://AKIAKEY:sEcReT@faces/x"],
        ["build", "--source", "x", "--out", "y", "--set", "s3://faces/x?key=AKIAKEY&secret_key=sEcReT"],
        ["manifest", "summary", "--s3://AKIAKEY:sEcReT@faces", "x"],
        ["manifest", "summary", "x", "s3://AKIAKEY:sEcReT@faces"],
        ["build", "--source", "x", "--out", "y", "--scheduler", "tcp://AKIAKEY:sEcReT@host:8786"],
        ["manifest", "summary", " s3://AKIAKEY:sEcReT@faces"],
    ],
)
def test_wherever_an_address_with_credentials_is_typed_they_are_not_repeated(arguments: list[str]) -> None:
    said = CliRunner().invoke(main, arguments)
    assert said.exit_code == 2
    assert "sEc" not in said.output
    assert "AKIA" not in said.output


def test_an_address_in_a_log_has_no_credentials(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("faceshards").warning("%s: gone; s3://faces/é@x is not", "s3://AKIAKEY:sEcReT@faces/x")
    said = LogFormatter("%(levelname)s %(message)s").format(caplog.records[-1])
    assert said == "WARNING s3://...@faces/x: gone; s3://faces/é@x is not"


def test_a_path_made_of_an_address_is_refused_unless_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match="an address is s3://BUCKET/PREFIX"):
        as_location(Path("s3://faces/x"))
    (tmp_path / "s3:" / "faces").mkdir(parents=True)
    assert as_location(Path("s3:/faces")) == Path("s3:/faces")


def test_places_have_pathlibs_names() -> None:
    place = as_location("s3://faces/a/b.rec")
    assert isinstance(place, StoredPath)
    assert (place.name, place.stem, place.suffix) == ("b.rec", "b", ".rec")
    assert str(place.parent / "c") == "s3://faces/a/c"
    assert str(place.with_suffix(".idx")) == "s3://faces/a/b.idx"
    assert str(place.parent.parent) == "s3://faces"
    assert str(place.parent.parent.parent) == "s3://faces"
    assert pickle.loads(pickle.dumps(place)) == place


def test_an_option_of_files_refuses_an_address(tmp_path: Path) -> None:
    said = CliRunner().invoke(main, ["train", "ms1mv3", "--data", str(tmp_path), "--out", "s3://faces/run"])
    assert said.exit_code == 2
    assert "s3://faces/run is in a bucket, and has to be on a disk here: files of a run are appended" in said.output


def test_training_from_a_bucket_wants_a_folder_for_its_shards(tmp_path: Path) -> None:
    for options, line in (
        (["--data", "s3://faces/x"], "--data s3://faces/x: in a bucket: training keeps copies of shards on a disk"),
        (["--data", str(tmp_path), "--cache-bytes", "9G"], "--cache-bytes belongs to --cache"),
        (["--data", "s3://faces/x", "--cache", "s3://faces/y"], "s3://faces/y is in a bucket, and has to be on a disk"),
        (["--data", "s3://faces/x", "--cache", "c", "--cache-bytes", "much"], "much: no number of bytes, such as 200G"),
        (["--data", "s3://", "--cache", "c"], "no bucket in it"),
    ):
        said = CliRunner().invoke(main, ["train", "ms1mv3", *options, "--out", str(tmp_path / "run")])
        assert said.exit_code == 2
        assert line in said.output


@pytest.mark.parametrize(
    ("text", "count"),
    [("200G", 200 * 10**9), ("1.5t", 15 * 10**11), ("512MiB", 1 << 29), ("7", 7), ("64 kB", 64_000), ("1Gi", 1 << 30)],
)
def test_numbers_of_bytes(text: str, count: int) -> None:
    assert BYTES.convert(text, None, None) == count

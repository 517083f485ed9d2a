"""Objects of a real store: what is written is read, and what goes wrong is one line."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.fs
import pytest

from faceshards.checksums import file_digest
from faceshards.errors import FaceshardsError
from faceshards.reading import fetch
from faceshards.storage.faults import MissingError, StorageError, TakenError
from faceshards.storage.location import StoredPath
from faceshards.storage.ranges import PIECE, StoredFile
from tests.object_store import KEY, SECRET


@pytest.mark.parametrize("name", ["a b/ü", "日本.rec", "100%/%20", "a+b&c=d#e", "it's", "~/*"])
def test_what_is_written_is_read_under_any_name(bucket: StoredPath, name: str) -> None:
    place = bucket / name
    place.write_bytes(b"content")
    with StoredFile(place) as file:
        assert file.read_at(0, 100) == b"content"
    assert place.is_file()
    assert not place.is_dir()
    assert [entry for entry, _ in bucket.tree()] == [place]
    place.unlink()
    assert not place.exists()
    place.unlink()


def test_a_prefix_is_a_folder(bucket: StoredPath) -> None:
    for name in ("x/a", "x/b/c", "xy"):
        (bucket / name).write_bytes(b"")
    assert sorted((bucket / "x").entries()) == [(bucket / "x" / "a", False), (bucket / "x" / "b", True)]
    assert (bucket / "x").is_dir()
    assert not (bucket / "x").is_file()
    assert not (bucket / "nothing").is_dir()


@pytest.fixture(scope="module")
def content() -> bytes:
    return random.Random(0).randbytes(3 * PIECE + 12345)


@pytest.fixture
def stored(bucket: StoredPath, content: bytes, tmp_path: Path) -> StoredPath:
    """An object in several pieces."""
    (tmp_path / "content").write_bytes(content)
    (bucket / "content").upload(tmp_path / "content", hashlib.sha256(content).hexdigest())
    return bucket / "content"


def test_ranges_are_those_of_the_file(stored: StoredPath, content: bytes, tmp_path: Path) -> None:
    chosen = random.Random(1)
    places = [
        (chosen.randrange(len(content)), chosen.choice([1, 8, 7000, 1 << 20, PIECE, 2 * PIECE])) for _ in range(60)
    ]
    places += [(0, len(content)), (len(content) - 3, 100), (len(content), 1), (len(content) + 9, 1), (5, 0)]
    with StoredFile(stored) as file:
        assert file.size == len(content)
        for offset, count in places:
            assert file.read_at(offset, count) == content[offset : offset + count]
        some = sorted(place for place in places if place[1] <= 1 << 20)
        file.read_ahead(some)
        for offset, count in some:
            assert file.read_at(offset, count) == content[offset : offset + count]
        file.seek(-10, os.SEEK_END)
        assert file.read() == content[-10:]
    assert file_digest(stored) == (len(content), hashlib.sha256(content).hexdigest())
    assert stored.sha256() == (len(content), hashlib.sha256(content).hexdigest())
    fetch(stored, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content


def test_threads_may_share_an_object(stored: StoredPath, content: bytes) -> None:
    with StoredFile(stored) as file, ThreadPoolExecutor(8) as threads:
        offsets = [random.Random(i).randrange(len(content)) for i in range(200)]
        for offset, data in zip(offsets, threads.map(lambda at: file.read_at(at, 5000), offsets), strict=True):
            assert data == content[offset : offset + 5000]


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """The ranges that are asked for, as they are."""
    asked: list[tuple[int, int]] = []
    plain = StoredFile._range

    def counted(self: StoredFile, start: int, stop: int) -> bytes:
        asked.append((start, stop))
        return plain(self, start, stop)

    monkeypatch.setattr(StoredFile, "_range", counted)
    return asked


def test_reads_in_a_row_take_few_requests(stored: StoredPath, content: bytes, requests: list[tuple[int, int]]) -> None:
    with StoredFile(stored) as file:
        for offset in range(0, len(content), 4096):
            file.read_at(offset, 4096)
    assert sum(stop - start for start, stop in requests) < 1.1 * len(content)
    assert len(requests) <= 4 + len(content) // PIECE


def test_neighbours_are_fetched_together_and_strangers_apart(
    stored: StoredPath, requests: list[tuple[int, int]]
) -> None:
    with StoredFile(stored) as file:
        file.read_ahead([(0, 7000), (8000, 7000), (50_000, 7000), (PIECE, 7000)])
        assert sorted(requests) == [(0, 57_000), (PIECE, PIECE + 7000)]
        file.read_at(9000, 100)
        assert len(requests) == 2


def test_an_object_that_is_replaced_while_it_is_read_is_noticed(stored: StoredPath, content: bytes) -> None:
    with StoredFile(stored) as file:
        assert file.read_at(0, 10) == content[:10]
        stored.write_bytes(bytes(len(content)))
        with pytest.raises(StorageError, match=rf"^{stored}: was replaced while it was read$"):
            file.read_at(2 * PIECE, 10)


def test_of_many_who_make_one_object_one_does(bucket: StoredPath) -> None:
    racers, start = 16, threading.Barrier(16)

    def make(number: int) -> bool:
        start.wait()
        try:
            (bucket / "one").write_bytes(b"%d" % number, exclusive=True)
        except TakenError:
            return False
        return True

    with ThreadPoolExecutor(racers) as threads:
        won = list(threads.map(make, range(racers)))
    assert won.count(True) == 1
    with StoredFile(bucket / "one") as file:
        assert file.read_at(0, 9) == b"%d" % won.index(True)


def test_an_object_that_is_not_there_is_one_line(bucket: StoredPath) -> None:
    for ask in (StoredPath.stat, StoredFile, StoredPath.sha256):
        with pytest.raises(MissingError) as caught:
            ask(bucket / "none")
        assert str(caught.value) == f"{bucket / 'none'}: no such object"
        assert isinstance(caught.value, FaceshardsError)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_bucket_that_is_not_there_is_no_missing_object(bucket: StoredPath) -> None:
    none = StoredPath("s3", "no-such-bucket", "x")
    for ask in (StoredPath.stat, StoredPath.exists, StoredPath.is_dir, lambda place: list(place.iterdir())):
        with pytest.raises(StorageError, match=r"^s3://no-such-bucket/x: no such bucket$") as caught:
            ask(none)
        assert not isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_said_and_not_shown(
    bucket: StoredPath, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "wRoNg")
    for ask in (StoredPath.stat, StoredPath.is_dir, lambda place: place.write_bytes(b"")):
        with pytest.raises(StorageError, match=r"access denied.*check the credentials") as caught:
            ask(bucket / "x")
        assert "wRoNg" not in str(caught.value)
        assert SECRET not in str(caught.value)


def test_without_credentials_it_is_said_which_to_set(bucket: StoredPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(StorageError, match="no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        (bucket / "x").stat()


def test_without_credentials_other_stores_say_so_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("GOOGLE_", "AZURE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for scheme, variable in (("gs", "GOOGLE_SERVICE_ACCOUNT"), ("az", "AZURE_STORAGE_ACCOUNT_NAME")):
        with pytest.raises(StorageError, match=rf"^{scheme}://faces.*: no credentials: set {variable}"):
            StoredPath(scheme, "faces", "x").stat()


def test_a_server_that_is_not_there_is_asked_again_and_then_said(
    bucket: StoredPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    with pytest.raises(StorageError, match=r"http://127\.0\.0\.1:1 does not answer: .*\(tried 3 times in .* m?s\)"):
        (bucket / "x").stat()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "127.0.0.1:1")
    with pytest.raises(StorageError, match=r"AWS_ENDPOINT_URL.* is no http:// or https:// address"):
        (bucket / "x").stat()


def test_a_profile_of_awss_files_is_read(
    bucket: StoredPath, object_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bucket / "x").write_bytes(b"1")
    (tmp_path / "config").write_text(f"[profile lab]\nregion = eu-west-1\nendpoint_url = {object_store}\n")
    (tmp_path / "credentials").write_text(f"[lab]\naws_access_key_id={KEY}\naws_secret_access_key = {SECRET}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert (bucket / "x").stat().st_size == 1
    monkeypatch.setenv("AWS_PROFILE", "other")
    with pytest.raises(StorageError, match=r"AWS_PROFILE=other: ~/\.aws has no such profile"):
        (bucket / "x").stat()
    (tmp_path / "credentials").write_text(f"aws_secret_access_key = {SECRET}\n")
    with pytest.raises(StorageError, match="cannot be read as AWS writes it") as caught:
        (bucket / "x").stat()
    assert SECRET not in str(caught.value)
    (tmp_path / "credentials").write_text("")
    (tmp_path / "config").write_text("[profile other]\nsso_session = x\n")
    with pytest.raises(StorageError, match=r"by sso_session, which is not read here; .*export-credentials"):
        (bucket / "x").stat()


def test_marks_of_folders_that_consoles_make_are_no_objects(bucket: StoredPath) -> None:
    files = pyarrow.fs.S3FileSystem(
        access_key=KEY, secret_key=SECRET, endpoint_override=os.environ["AWS_ENDPOINT_URL"], region="us-east-1"
    )
    for name in ("set", "set/tables", "bare"):
        files.create_dir(f"{bucket.bucket}/{bucket.key}/{name}", recursive=False)
    assert [(str(place), size) for place, size in bucket.tree()] == [(f"{bucket}/bare", 0), (f"{bucket}/set/tables", 0)]
    assert not (bucket / "bare").is_dir()
    for name in ("set/tables/x", "set/empty", "set/tables.txt"):
        (bucket / name).write_bytes(b"" if name == "set/empty" else b"1")
    found = {str(place).removeprefix(f"{bucket}/"): size for place, size in bucket.tree()}
    assert found == {"bare": 0, "set/empty": 0, "set/tables.txt": 1, "set/tables/x": 1}
    assert list((bucket / "set" / "tables").entries()) == [(bucket / "set" / "tables" / "x", False)]

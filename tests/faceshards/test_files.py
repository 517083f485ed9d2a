"""Requests compared, and files that are what is written of them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from faceshards.checksums import difference, file_digest
from faceshards.errors import FaceshardsError
from faceshards.files import Difference, bytes_text, differences, fsync_tree, replacing, told, writable_at


@pytest.mark.parametrize("name", ["link", "/dev/null"])
def test_links_and_devices_are_written_through_not_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("before, and longer")
    (tmp_path / "link").symlink_to("file")
    with replacing(tmp_path / name) as temporary:
        temporary.write_text("after")
    assert (tmp_path / "link").is_symlink()
    assert Path("/dev/null").is_char_device()
    assert (tmp_path / "file").read_text() == ("after" if name == "link" else "before, and longer")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_requests_differ_where_json_does() -> None:
    now = {"size": (112, 112), "seed": 1, "new": None, "mine": True}
    assert differences({"size": [112, 112], "seed": 1, "mine": True}, now) == []
    assert differences({"gone": 5, "seed": 2, "size": [112, 96]}, now) == [
        Difference("size", [112, 96], [112, 112]),
        Difference("seed", 2, 1),
        Difference("mine", None, True),
        Difference("gone", 5, None),
    ]


def test_every_file_and_folder_of_a_tree_is_forced_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").touch()
    (tmp_path / "d").touch()
    forced: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda handle: forced.append(Path(os.readlink(f"/proc/self/fd/{handle}"))))
    fsync_tree(tmp_path)
    assert sorted(forced) == sorted((tmp_path, *tmp_path.rglob("*")))
    assert forced[-1] == tmp_path


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (5 << 20) + 3])
def test_a_digest_is_that_of_the_whole_file(size: int, tmp_path: Path) -> None:
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    blocks: list[None] = []
    assert file_digest(tmp_path / "file", lambda: blocks.append(None)) == (size, hashlib.sha256(data).hexdigest())
    assert len(blocks) == 1 + -(-size // (1 << 20))  # the last one finds the end


def test_a_file_differs_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "file"
    written = (3, hashlib.sha256(b"abc").hexdigest(), "the list")
    assert difference(path, *written) == f"{path}: missing; the list lists it"
    path.write_bytes(b"abcd")
    assert difference(path, *written) == f"{path}: 4 bytes, the list says 3"
    path.write_bytes(b"abd")
    assert difference(path, *written) == f"{path}: changed since it was published: its SHA-256 is not the list's"
    path.write_bytes(b"abc")
    assert difference(path, *written) is None
    path.unlink()
    os.mkfifo(path)  # reading it would wait for ever
    assert difference(path, 0, *written[1:]) == f"{path}: no regular file; the list lists one"


def test_a_folder_that_can_be_written_is_found_without_a_trace(tmp_path: Path) -> None:
    assert writable_at(tmp_path / "deep" / "er") == tmp_path
    assert writable_at(tmp_path) == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_says_where_and_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path, cause in {
        tmp_path / "file" / "run": f"{tmp_path / 'file'}: Not a directory",
        tmp_path / "link" / "run": f"{tmp_path / 'link'}: No such file or directory",
        tmp_path / ("x" * 300): "File name too long",
        Path("/proc/run"): "/proc: ",
    }.items():
        with pytest.raises(FaceshardsError) as caught:
            writable_at(path)
        assert str(caught.value).startswith(f"{path}: cannot be written: ")
        assert cause in str(caught.value)


def test_sizes_for_people() -> None:
    assert [bytes_text(count) for count in (12_345, 4.56e7, 999e6, 1.234e12)] == [
        *("0.012 MB", "45.6 MB", "999.0 MB", "1,234.00 GB"),
    ]


def test_of_requests_that_differ_the_innermost_is_said():
    then = {"name": "a", "config": {"seed": 0, "size": [1, 1]}, "sources": [{"path": "x", "bytes": 1}, {"path": "y"}]}
    now = {"name": "a", "config": {"seed": 1, "size": [1, 1]}, "sources": [{"path": "x", "bytes": 2}, {"path": "y"}]}
    assert told(differences(then, now), "then", "now") == "seed: 0 then, 1 now; x: bytes: 1 then, 2 now"
    fewer = {**then, "sources": []}
    assert told(differences(fewer, {**then, "sources": [1]}), "there", "now") == "sources: [] there, [1] now"
    assert told([Difference("config", None, {"seed": 1})], "then", "now") == "config: None then, {'seed': 1} now"
    many = told(differences(dict.fromkeys("abcdef", 0), {}), "then", "now")
    assert many.endswith("d: 0 then, None now; and 2 more")

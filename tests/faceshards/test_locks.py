"""Folders that one process has to itself."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from faceshards import locks
from faceshards.errors import FaceshardsError
from faceshards.locks import BusyError, exclusive_folder
from tests.open_files import opened_below


def test_a_folder_is_had_by_one_process_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "er"
    with exclusive_folder(folder):
        assert (folder / ".lock").read_text() == str(os.getpid())
        with pytest.raises(BusyError) as caught, exclusive_folder(folder):
            pass
        assert str(caught.value) == f"{folder}: another process ({os.getpid()}) is at work there"
        assert caught.value.holder == str(os.getpid())
    with exclusive_folder(folder):
        pass


def test_a_folder_is_free_when_its_process_was_killed(tmp_path: Path) -> None:
    code = "import os, sys; from pathlib import Path; from faceshards.locks import exclusive_folder\n"
    code += "with exclusive_folder(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -9
    with exclusive_folder(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_a_folder_that_its_last_holder_removed_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, real, removed = tmp_path / "work", fcntl.flock, []

    def flock(lock: int, how: int) -> None:
        if len(removed) < 3:  # between our opening of the file and our lock on it
            shutil.rmtree(folder)
            removed.append(lock)
        real(lock, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with exclusive_folder(folder):
        assert (folder / ".lock").read_text() == str(os.getpid())
    assert len(removed) == 3


def test_a_folder_that_is_always_removed_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "work"
    monkeypatch.setattr(fcntl, "flock", lambda *_: shutil.rmtree(folder))
    line = "other processes made and removed it 100 times; try again"
    with pytest.raises(FaceshardsError, match=line), exclusive_folder(folder):
        pass
    assert opened_below(folder) == []


@pytest.mark.parametrize(
    ("folder", "line"),
    [
        ("/proc/x/y", "/proc/x: cannot be made: No such file or directory"),
        ("/proc/x", "/proc/x: cannot be made: No such file or directory"),
        ("/proc/self", "/proc/self/.lock: cannot be made: No such file or directory"),
        ("/dev/null", "/dev/null: cannot be made: File exists"),
        ("/dev/null/x", "/dev/null/x: cannot be made: Not a directory"),
    ],
)
def test_a_folder_that_cannot_be_made_is_one_line(folder: str, line: str) -> None:
    with pytest.raises(FaceshardsError) as caught, exclusive_folder(Path(folder)):
        pass
    assert str(caught.value) == line


def test_an_error_of_the_work_inside_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FaceshardsError) as caught, exclusive_folder(tmp_path):
        (tmp_path / "none").read_text()
    assert str(caught.value) == f"{tmp_path / 'none'}: No such file or directory"


def test_a_lock_that_a_full_disk_does_not_take_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(FaceshardsError, match="disk full; free some space"), exclusive_folder(tmp_path):
            pass
    with exclusive_folder(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_not_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(*_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(FaceshardsError) as caught, exclusive_folder(tmp_path):
        pass
    assert not isinstance(caught.value, BusyError)
    assert str(caught.value).startswith(f"{tmp_path}: its file system locks no files ({os.strerror(number)})")
    assert opened_below(tmp_path) == []


def test_a_temporary_folder_is_gone_afterwards_and_those_of_the_dead_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import os; from faceshards.locks import own_folder; a = own_folder(); a.__enter__(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    (killed,) = tmp_path.iterdir()
    with locks.own_folder() as first:
        assert killed.exists()  # too young: it might have been made just now, and not locked yet
        monkeypatch.setattr(locks, "_YOUNG", -1)
        with locks.own_folder() as second:
            assert sorted(tmp_path.iterdir()) == sorted([first.parent, second.parent])
            (second / "file").write_bytes(b"1")
    assert not any(tmp_path.iterdir())

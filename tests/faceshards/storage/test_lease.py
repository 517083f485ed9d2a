"""Leases of prefixes: one holder at a time, none for ever, and who was believed dead notices."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from faceshards.reading import content
from faceshards.storage import lease as module
from faceshards.storage.faults import StorageError
from faceshards.storage.lease import HeldError, Lease, LostError, leased
from faceshards.storage.location import StoredPath


@pytest.fixture
def place(bucket: StoredPath, monkeypatch: pytest.MonkeyPatch) -> StoredPath:
    """Of a lease; whoever watches another one does so for no time."""
    monkeypatch.setattr(module, "_PATIENCE", 0.0)
    monkeypatch.setattr(module, "_LOOK", 0.0)
    return bucket / "work" / "lock"


def elsewhere(place: StoredPath, beat: int = 0) -> None:
    """Has a process of another machine hold a lease."""
    about = {"token": "theirs", "beat": beat, "host": "far", "processes": "of another kernel", "process": 7}
    place.write_bytes(json.dumps(about).encode())


def test_one_holds_it_and_then_it_is_gone(place: StoredPath) -> None:
    with leased(place) as first:
        assert first.fresh
        with pytest.raises(HeldError, match=rf"^{place.parent}: another process \(\d+ on .+\) is at work there$"):
            Lease(place, {})
        first.renew()
    assert not place.exists()


def test_that_of_a_dead_process_of_this_machine_is_taken_over(place: StoredPath) -> None:
    code = f"""
import os, signal
from faceshards.storage.lease import Lease
from faceshards.storage.location import StoredPath
Lease(StoredPath({place.scheme!r}, {place.bucket!r}, {place.key!r}), {{"request": 1}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert json.loads(content(place))["request"] == 1
    with leased(place) as taken:
        assert not taken.fresh
        with pytest.raises(HeldError):
            Lease(place, {})


def test_that_of_another_machine_is_taken_over_once_it_stands_still(
    place: StoredPath, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere(place)
    with leased(place):
        assert caplog.messages == [f"{place.parent}: held by 7 on far; waits up to 0 s to see whether it lives"]
        with pytest.raises(HeldError):
            Lease(place, {})


def test_that_of_another_machine_is_left_as_long_as_it_changes(
    place: StoredPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(place)
    plain, looks = module.read_object, iter(range(1, 9))

    def renewed(path: StoredPath, most: int) -> tuple[bytes, str]:
        found = plain(path, most)
        elsewhere(place, next(looks))
        return found

    monkeypatch.setattr(module, "read_object", renewed)
    monkeypatch.setattr(module, "_PATIENCE", 60.0)
    with pytest.raises(HeldError, match="7 on far"):
        Lease(place, {})


@pytest.mark.parametrize("data", [b"", b"\xff", b"[" * 50_000, b'{"token": ["x"], "process": 1}', b"7"])
def test_what_is_no_lease_is_taken_over(place: StoredPath, data: bytes) -> None:
    place.write_bytes(data)
    with leased(place) as taken:
        assert not taken.fresh


def test_what_is_far_too_large_for_a_lease_is_not_read(place: StoredPath) -> None:
    place.write_bytes(bytes(70_000))
    with pytest.raises(StorageError, match=f"^{place}: 70000 bytes, no file of ours has more than 65536 there$"):
        Lease(place, {})


def test_of_many_one_takes_it_over(place: StoredPath) -> None:
    def take(_: int) -> Lease | None:
        try:
            return Lease(place, {})
        except HeldError:
            return None

    for begin in (place.unlink, lambda: elsewhere(place)):
        begin()
        with ThreadPoolExecutor(8) as pool:
            taken = [lease for lease in pool.map(take, range(8)) if lease]
        assert len(taken) == 1
        taken[0].release()


def test_who_was_believed_dead_notices_and_removes_nothing(place: StoredPath) -> None:
    lost = Lease(place, {})
    elsewhere(place)
    with pytest.raises(LostError, match=rf"^{place.parent}: another process \(7 on far\) took it over"):
        lost.renew()
    lost.release()
    assert json.loads(content(place))["host"] == "far"
    gone = Lease(place, {})
    place.unlink()
    with pytest.raises(LostError, match="someone took it over"):
        gone.renew()
    gone.release()


def test_a_note_stays_that_any_may_take(place: StoredPath) -> None:
    Lease(place, {"request": "a"}).release(keep=True)
    found: list[Any] = []
    Lease(place, {"request": "b"}, found.append).release(keep=True)
    assert [note["request"] for note in (*found, json.loads(content(place)))] == ["a", "b"]

    def refuse(found: Any) -> None:
        raise KeyError(found["request"])

    with pytest.raises(KeyError, match="b"):
        Lease(place, {}, refuse)


def test_an_answer_that_is_lost_is_no_loss(place: StoredPath, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = StoredPath.write_bytes

    def again(self: StoredPath, data: bytes, **condition: Any) -> str:
        plain(self, data, **condition)  # and the store's client tries once more
        return plain(self, data, **condition)

    monkeypatch.setattr(StoredPath, "write_bytes", again)
    with leased(place) as held:
        held.renew()
        held.renew()
    assert not place.exists()


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Has the store ignore a condition, as older servers do."""
    plain = StoredPath.write_bytes

    def forget(name: str) -> None:
        monkeypatch.setattr(
            *(StoredPath, "write_bytes"),
            lambda self, data, **given: plain(self, data, **{k: v for k, v in given.items() if k != name}),
        )

    return forget


@pytest.mark.parametrize(("ignored", "header"), [("exclusive", "If-None-Match"), ("replaces", "If-Match")])
def test_a_store_without_conditions_is_refused(
    ignored: str, header: str, place: StoredPath, forgetful: Callable[[str], None]
) -> None:
    forgetful(ignored)
    with pytest.raises(StorageError, match=rf"^{place.parent}: its store ignores {header}, so that two could"):
        Lease(place, {})
    assert not place.exists()

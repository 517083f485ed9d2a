"""A build that is killed, stopped, starved or repeated loses nothing and publishes nothing by halves."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from faceshards.dataset.manifest import Manifest
from faceshards.dataset.verify import verify
from faceshards.errors import BuildError
from pipelines import workspace
from tests.pipelines.build_fixtures import (
    SPEC,
    command,
    digests,
    finish,
    kill_group,
    read_defects,
    read_rec,
    run,
    run_build,
    start,
    synthetic_set,
    wait_for,
)

pytestmark = pytest.mark.slow

Stage = Callable[[Path], object]
PARTS = 6

STAGES: dict[str, Stage] = {
    "start": lambda work: (work / "lock").exists(),
    "cut": lambda work: (work / "partitions.json").exists(),
    "sign": lambda work: any(work.glob("records/part-*")),
    "signed": lambda work: len(list(work.glob("records/part-*"))) == PARTS,
    "decide": lambda work: any(work.glob(".decisions")) or (work / "decisions").exists(),
    "decided": lambda work: (work / "decisions").exists(),
    "route": lambda work: any(work.glob("routed/part-*")),
    "write": lambda work: any(work.glob("done/shard-*")),
    "written": lambda work: len(list(work.glob("done/shard-*"))) == 4,
    "finish": lambda work: any(work.glob("dataset/manifest/identit*")),
    "publish": lambda work: (work / "dataset/dataset.json").exists(),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_set(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What an uninterrupted build of this command publishes."""
    out = tmp_path_factory.mktemp("expected") / "tiny"
    code, _, err = run(command(source, out))
    assert (code, err) == (0, "")
    assert list(verify(Manifest(out))) == []
    return digests(out)


def times(work: Path) -> dict[str, int]:
    """Returns when each finished piece was written."""
    finished = ("records/part-*", "decisions/*", "routed/part-*", "dropped/part-*", "done/*", "dataset/shards/shard-*")
    found = {}
    with contextlib.suppress(FileNotFoundError):  # the build removes the folder when it has published
        for pattern in finished:
            for path in work.glob(pattern):
                found[str(path.relative_to(work))] = path.stat().st_mtime_ns
    return found


def shards_done(pieces: dict[str, int]) -> dict[str, int]:
    """Returns the pieces a resumed build may not touch; a shard needs its note, a routed part its dropped rows."""
    done = {Path(name).stem for name in pieces if name.startswith("done/")}
    pairs = [{Path(name).stem for name in pieces if name.startswith(kind)} for kind in ("routed/", "dropped/")]
    halves = pairs[0] ^ pairs[1]
    pieces = {name: at for name, at in pieces.items()
              if not (name.startswith(("routed/", "dropped/")) and Path(name).stem in halves)}  # fmt: skip
    return {name: at for name, at in pieces.items()
            if not name.startswith("dataset/") or Path(name).name.split(".")[0] in done}  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_killed_and_run_again_is_as_if_never_killed(
    source: Path, expected: dict[str, str], tmp_path: Path, stage: str
) -> None:
    out, work = tmp_path / "tiny", tmp_path / ".tiny.building"
    first = start(command(source, out))
    caught = wait_for(lambda: STAGES[stage](work), first)
    kill_group(first)
    if out.exists():  # the build was faster than the kill: then all of it is there
        assert stage == "publish" or not caught
        assert digests(out) == expected
        return
    before = shards_done(times(work))
    code, _, err = run(command(source, out))
    assert (code, err) == (0, "")
    assert digests(out) == expected
    assert not work.exists()
    for name, at in before.items():  # finished shards came through as they were
        if name.startswith("dataset/"):
            assert (out / name.removeprefix("dataset/")).stat().st_mtime_ns == at


def test_parts_that_were_finished_are_not_done_again(source: Path, expected: dict[str, str], tmp_path: Path) -> None:
    out, work = tmp_path / "tiny", tmp_path / ".tiny.building"
    first = start(command(source, out))
    assert wait_for(lambda: STAGES["write"](work), first)
    kill_group(first)
    # A time no clock says: a table that was written again would lose it.
    kept = {name for name in shards_done(times(work)) if not name.startswith("dataset/")}
    assert {name.split("/")[0] for name in kept} == {"records", "decisions", "routed", "dropped", "done"}
    assert len([name for name in kept if name.startswith("records/")]) == PARTS
    for name in kept:
        os.utime(work / name, ns=(1, 1))
    second = start(command(source, out))
    seen: dict[str, int] = {}

    def look() -> bool:
        seen.update({name: at for name, at in times(work).items() if name in kept})
        return second.poll() is not None

    wait_for(look, second)
    assert finish(second)[0] == 0
    assert seen == dict.fromkeys(kept, 1)
    assert digests(out) == expected


def test_interrupted_says_so_in_a_line_and_goes_on(source: Path, expected: dict[str, str], tmp_path: Path) -> None:
    for attempt in range(5):  # on a busy machine a build may be faster than the signal
        out, work = tmp_path / str(attempt) / "tiny", tmp_path / str(attempt) / ".tiny.building"
        out.parent.mkdir()
        process = start(command(source, out))
        assert wait_for(lambda work=work: STAGES["sign"](work), process)
        kill_group(process, signal.SIGINT)
        code, _, err = finish(process)
        if code:
            break
    assert code == 1
    assert err.splitlines() == ["Error: interrupted; the same command goes on where it stopped"]
    assert not out.exists()
    assert run(command(source, out))[0] == 0
    assert digests(out) == expected


def test_a_second_build_into_one_place_refuses(source: Path, tmp_path: Path) -> None:
    work = workspace.work_folder(tmp_path / "tiny")
    work.mkdir()
    with open(work / "lock", "w") as lock:
        lock.write("4711")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, out, err = run(command(source, tmp_path / "tiny"))
    assert (code, out) == (1, "")
    assert err.splitlines() == [f"Error: {tmp_path / 'tiny'}: another build (process 4711) is writing it"]
    assert [path.name for path in work.iterdir()] == ["lock"]


def test_going_on_with_another_setting_refuses(source: Path, expected: dict[str, str], tmp_path: Path) -> None:
    out, work = tmp_path / "tiny", tmp_path / ".tiny.building"
    process = start(command(source, out, "--set", "seed=5"))
    assert wait_for(lambda: STAGES["sign"](work), process)
    kill_group(process)
    before = digests(work)
    code, _, err = run(command(source, out))
    assert (code, len(err.splitlines())) == (1, 1)
    assert "'seed': 5" in err
    assert "'seed': 0" in err
    assert "--restart" in err
    assert digests(work).items() >= {name: sha for name, sha in before.items() if name != "lock"}.items()
    assert run(command(source, out, "--restart"))[0] == 0
    assert digests(out) == expected


def test_a_published_dataset_is_replaced_only_on_request(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny"
    run_build(source, out)
    before = {name: (out / name).stat().st_mtime_ns for name in digests(out)}
    first = digests(out)
    code, text, err = run(command(source, out, "--set", "seed=1"))
    assert (code, text) == (1, "")
    assert err.splitlines() == [
        f"Error: {out}: a dataset is published there, from another request; --overwrite replaces it"
    ]
    assert {name: (out / name).stat().st_mtime_ns for name in digests(out)} == before
    assert digests(out) == first
    code, text, err = run(command(source, out, "--set", "seed=1", "--overwrite", "--json"))
    assert code == 0, err
    assert json.loads(text)["fingerprint"] == Manifest(out).fingerprint
    assert Manifest(out).info["config"]["seed"] == 1
    assert list(verify(Manifest(out))) == []
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_the_same_build_again_has_nothing_to_do(source: Path, tmp_path: Path) -> None:
    code, _, err = run(command(source, tmp_path / "tiny"))
    assert (code, err) == (0, "")
    before = {name: (tmp_path / "tiny" / name).stat().st_mtime_ns for name in digests(tmp_path / "tiny")}
    code, text, err = run(command(source, tmp_path / "tiny"))
    assert code == 0
    assert "nothing to do" in err
    assert "scanned" in text
    assert {name: (tmp_path / "tiny" / name).stat().st_mtime_ns for name in before} == before
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"restart": True}])
def test_an_output_that_is_no_dataset_is_not_touched(source: Path, tmp_path: Path, options: dict[str, bool]) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(BuildError, match="exists and is no dataset of ours; it is not touched"):
        run_build(source, tmp_path / "home", **options)
    (tmp_path / "file").write_text("a file")
    with pytest.raises(BuildError, match="exists and is no dataset of ours"):
        run_build(source, tmp_path / "file", **options)
    assert digests(tmp_path).keys() == {"home/letter.txt", "file"}


def test_a_source_that_changed_since_is_said(source: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(source, tmp_path / "copy")
    out, work = tmp_path / "tiny", tmp_path / ".tiny.building"
    process = start(command(copy, out))
    assert wait_for(lambda: STAGES["sign"](work), process)
    kill_group(process)
    os.utime(copy / "train.rec", ns=(1, 1))
    code, _, err = run(command(copy, out))
    assert (code, len(err.splitlines())) == (1, 1)
    assert "'mtime_ns': 1" in err
    assert not out.exists()


# Dask imports this in every worker: a decoder that crashes the process, on the images that the test has chosen.
KILLER = """
import os, signal
from pathlib import Path
from pipelines.stages import signatures

MARK, ONCE = {mark!r}, {once!r}
decode = getattr(signatures, "decode_whole", signatures._decode)  # Dask loads this twice
signatures.decode_whole = decode

def crashing(image):
    if MARK in bytes(image):
        if not ONCE:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            Path(ONCE).touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
        except FileExistsError:
            pass
    return decode(image)

signatures._decode = crashing
"""


def killer(folder: Path, mark: bytes, once: Path | None = None) -> dict[str, str]:
    """Returns the environment in which every worker runs KILLER."""
    path = folder / "killer.py"
    path.write_text(KILLER.format(mark=mark, once=str(once) if once else ""))
    return {"DASK_DISTRIBUTED__WORKER__PRELOAD": json.dumps([str(path)])}


def clean_row(source: Path, out: Path) -> dict:
    """Returns a kept row of the uninterrupted build, from the middle of the set, that no planted defect refers to."""
    named = {row[field] for row in read_defects(source) for field in ("key", "of_key")}
    rows = [row for row in Manifest(out).table("images").to_pylist() if row["key"] not in named]
    return sorted(rows, key=lambda row: row["sid"])[len(rows) // 2]


def test_a_record_that_kills_its_worker_is_quarantined(source: Path, tmp_path: Path) -> None:
    whole = run_build(source, tmp_path / "whole")
    victim = clean_row(source, tmp_path / "whole")
    mark = _bytes_of(source, victim)[-64:]
    out = tmp_path / "tiny"
    code, _, err = run(command(source, out, "--workers", "2"), **killer(tmp_path, mark))
    assert code == 0, err
    found = Manifest(out)
    assert list(verify(found)) == []
    assert found.totals["dropped"] == {**whole.totals["dropped"], "quarantined": 1}
    assert found.totals["kept"] == whole.totals["kept"] - 1
    (gone,) = [row for row in found.table("dropped").to_pylist() if row["reason"] == "quarantined"]
    assert (gone["key"], gone["sid"]) == (victim["key"], victim["sid"])
    assert "killed the worker" in gone["detail"]
    sids = set(whole.table("images")["sid"].to_pylist()) - {victim["sid"]}
    assert set(found.table("images")["sid"].to_pylist()) == sids


def test_a_worker_that_dies_once_is_survived(source: Path, expected: dict[str, str], tmp_path: Path) -> None:
    run_build(source, tmp_path / "whole")
    mark = _bytes_of(source, clean_row(source, tmp_path / "whole"))[-64:]
    once = tmp_path / "died"
    code, _, err = run(command(source, tmp_path / "tiny"), **killer(tmp_path, mark, once))
    assert code == 0, err
    assert once.exists()
    assert "a worker died; its task is run again alone" in err
    assert digests(tmp_path / "tiny") == expected


def _bytes_of(source: Path, row: dict) -> bytes:
    return read_rec(source / "train.rec")[int(row["key"])][1]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, 16 MB, whose size the test may change."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    if os.geteuid() or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small tmpfs can only be mounted by root, where the system lets it")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def test_too_little_room_is_said_before_the_work_starts(source: Path, small_disk: Path) -> None:
    resize(small_disk, "1m")
    code, _, err = run(command(source, small_disk / "tiny"))
    assert (code, len(err.splitlines())) == (1, 1)
    assert "GB free, the build needs about" in err
    assert not (small_disk / "tiny").exists()
    assert not list(small_disk.glob(".tiny.building/records/*"))


@pytest.mark.parametrize("room", [100, 400, 900])
def test_a_full_disk_is_one_line_and_resumable(
    source: Path, expected: dict[str, str], small_disk: Path, room: int
) -> None:
    out, work = small_disk / "tiny", small_disk / ".tiny.building"
    process = start(command(source, out))
    assert wait_for(lambda: (work / "request.json").exists(), process)
    resize(small_disk, f"{room}k")  # after the check of free space, as if others had filled the disk
    code, _, err = finish(process)
    assert code == 1, err
    assert len(err.splitlines()) == 1, err
    assert "disk full; free some space and run the same command to go on" in err
    assert not out.exists()
    resize(small_disk, "16m")
    code, _, err = run(command(source, out))
    assert (code, err) == (0, "")
    assert digests(out) == expected


def test_parts_are_as_many_as_the_stages_assume(source: Path, tmp_path: Path) -> None:
    size = (source / "train.rec").stat().st_size
    assert -(-size // 160_000) == PARTS, f"{SPEC} is {size} bytes"

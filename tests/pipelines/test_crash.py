"""A build that is killed, stopped, starved or repeated loses nothing and publishes nothing by halves."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from faceshards.dataset.manifest import Manifest
from faceshards.dataset.verify import verify
from faceshards.errors import BuildError
from pipelines import workspace
from tests.pipelines.build_fixtures import (
    PLANTED,
    SPEC,
    command,
    digests,
    finish,
    kill_group,
    preload,
    read_defects,
    read_rec,
    run,
    run_build,
    run_here,
    start,
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

    def whole(name: str) -> bool:
        if name.startswith("dataset/"):
            return Path(name).name.split(".")[0] in done
        return not name.startswith(("routed/", "dropped/")) or Path(name).stem not in halves

    return {name: at for name, at in pieces.items() if whole(name)}


def clean_row(source: Path, dataset: Manifest) -> dict:
    """Returns a kept row, from the middle of the set, that no planted defect refers to."""
    named = {row[field] for row in read_defects(source) for field in ("key", "of_key")}
    rows = [row for row in dataset.table("images").to_pylist() if row["key"] not in named]
    return sorted(rows, key=lambda row: row["sid"])[len(rows) // 2]


def bytes_of(tiny_source: Path, row: dict) -> bytes:
    return read_rec(tiny_source / "train.rec")[int(row["key"])][1]


def held_in_sign(source: Path, dataset: Manifest, out: Path, *more: str) -> subprocess.Popen[str]:
    """Returns a build that has signed some partitions and waits in another one until it is stopped."""
    mark = bytes_of(source, clean_row(source, dataset))[-64:]
    held = out.with_name("held")
    held.touch()
    environment = preload(out.parent, "pipelines.stages.signatures:decode", mark, "hold", held)
    process = start(command(source, out, *more), **environment)
    assert wait_for(lambda: STAGES["sign"](workspace.work_folder(out)), process)
    return process


def test_an_uninterrupted_command_says_what_is_broken_and_nothing_else(
    tiny_source: Path, tiny_digests: dict[str, str], tmp_path: Path
) -> None:
    code, _, err = run(command(tiny_source, tmp_path / "tiny"))
    assert (code, err) == (0, PLANTED)
    assert digests(tmp_path / "tiny") == tiny_digests


@pytest.mark.parametrize(("stage", "form"), [*((stage, "direct") for stage in STAGES), ("write", "spill")])
def test_killed_and_run_again_is_as_if_never_killed(
    tiny_source: Path, tiny_digests: dict[str, str], tmp_path: Path, stage: str, form: str
) -> None:
    out, work = tmp_path / "tiny", tmp_path / ".tiny.building"
    asked = command(tiny_source, out, "--shuffle", form)
    first = start(asked)
    caught = wait_for(lambda: STAGES[stage](work), first)
    kill_group(first)
    if out.exists():  # the build was faster than the kill: then all of it is there
        assert stage == "publish" or not caught
        assert digests(out) == tiny_digests
        return
    before = shards_done(times(work))
    code, _, err = run_here(asked)
    assert (code, err) == (0, PLANTED)
    assert digests(out) == tiny_digests
    assert not work.exists()
    for name, at in before.items():  # finished shards came through as they were
        if name.startswith("dataset/"):
            assert (out / name.removeprefix("dataset/")).stat().st_mtime_ns == at


@pytest.mark.parametrize(
    ("again", "said"),
    [
        ("spill", ""),
        ("direct", "WARNING the images of 3 partitions were carried here; they are removed, and read anew\n"),
    ],
)
def test_killed_while_images_are_carried_it_goes_on(
    tiny_source: Path, tiny_digests: dict[str, str], tmp_path: Path, again: str, said: str
) -> None:
    out, routed, held = tmp_path / "tiny", tmp_path / ".tiny.building" / "routed", tmp_path / "held"
    held.touch()
    environment = preload(tmp_path, "pipelines.stages.origins:replacing", b"part-000003.images", "hold", held)
    first = start(command(tiny_source, out, "--shuffle", "spill"), **environment)
    assert wait_for(lambda: len(list(routed.glob("part-*.arrow"))) == 3, first)
    kill_group(first)
    assert len(list(routed.glob("part-*.images"))) == 3
    assert run_here(command(tiny_source, out, "--shuffle", again))[::2] == (0, PLANTED + said)
    assert digests(out) == tiny_digests
    assert [path.name for path in tmp_path.glob(".tiny*")] == []


def test_partitions_that_were_finished_are_not_done_again(
    tiny_source: Path, tiny_digests: dict[str, str], tmp_path: Path
) -> None:
    out, work, held = tmp_path / "tiny", tmp_path / ".tiny.building", tmp_path / "held"
    held.touch()
    environment = preload(tmp_path, "pipelines.stages.write:write_shard", b"shard-00003", "hold", held)
    first = start(command(tiny_source, out), **environment)
    assert wait_for(lambda: STAGES["write"](work), first)
    kill_group(first)
    # A time no clock says: a table that was written again would lose it.
    kept = {name for name in shards_done(times(work)) if not name.startswith("dataset/")}
    assert {name.split("/")[0] for name in kept} == {"records", "decisions", "routed", "dropped", "done"}
    assert len([name for name in kept if name.startswith("records/")]) == PARTS
    for name in kept:
        os.utime(work / name, ns=(1, 1))
    second = start(command(tiny_source, out), **environment)
    assert wait_for(lambda: len(list(work.glob("done/shard-*"))) == 3, second)
    assert {name: at for name, at in times(work).items() if name in kept} == dict.fromkeys(kept, 1)
    held.unlink()
    assert finish(second)[0] == 0
    assert digests(out) == tiny_digests


def test_interrupted_says_so_in_a_line_and_goes_on(
    tiny_source: Path, tiny_dataset: Manifest, tiny_digests: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "tiny"
    process = held_in_sign(tiny_source, tiny_dataset, out)
    kill_group(process, signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130
    assert err.splitlines() == ["Error: interrupted; the same command goes on where it stopped"]
    assert not out.exists()
    assert run_here(command(tiny_source, out))[0] == 0
    assert digests(out) == tiny_digests


def test_a_second_build_into_one_place_refuses(tiny_source: Path, tmp_path: Path) -> None:
    work = workspace.work_folder(tmp_path / "tiny")
    work.mkdir()
    with open(work / "lock", "w") as lock:
        lock.write("4711")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, out, err = run_here(command(tiny_source, tmp_path / "tiny"))
    assert (code, out) == (1, "")
    assert err.splitlines() == [f"Error: {tmp_path / 'tiny'}: another build (process 4711) is writing it"]
    assert [path.name for path in work.iterdir()] == ["lock"]


def test_a_place_that_can_never_be_made_is_one_line(tiny_source: Path) -> None:
    code, out, err = run_here(command(tiny_source, Path("/proc/x/tiny")))
    assert (code, out) == (1, "")
    assert err.splitlines() == ["Error: /proc/x: cannot be made: No such file or directory"]


def test_going_on_with_another_setting_refuses(
    tiny_source: Path, tiny_dataset: Manifest, tiny_digests: dict[str, str], tmp_path: Path
) -> None:
    out, work = tmp_path / "tiny", tmp_path / ".tiny.building"
    kill_group(held_in_sign(tiny_source, tiny_dataset, out, "--set", "seed=5"))
    before = digests(work)
    code, _, err = run_here(command(tiny_source, out))
    assert (code, len(err.splitlines())) == (1, 1)
    assert "(seed: 5 then, 0 now)" in err
    assert "--restart" in err
    assert digests(work).items() >= {name: sha for name, sha in before.items() if name != "lock"}.items()
    # Of a release that cut sources otherwise.
    (work / "partitions.json").write_text(json.dumps([[], [{"number": 0, "index": None}]]))
    code, _, err = run_here(command(tiny_source, out, "--set", "seed=5"))
    assert (code, err) == (
        1,
        f"Error: {work}/partitions.json: damaged, or of another release; pass --restart to begin anew\n",
    )
    assert run_here(command(tiny_source, out, "--restart"))[0] == 0
    assert digests(out) == tiny_digests


def test_a_published_dataset_is_replaced_only_on_request(tiny_source: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny"
    run_build(tiny_source, out)
    before = {name: (out / name).stat().st_mtime_ns for name in digests(out)}
    first = digests(out)
    code, text, err = run_here(command(tiny_source, out, "--set", "seed=1"))
    assert (code, text) == (1, "")
    assert err.splitlines() == [
        f"Error: {out}: a dataset is published there, from another request; --overwrite replaces it"
    ]
    assert {name: (out / name).stat().st_mtime_ns for name in digests(out)} == before
    assert digests(out) == first
    code, text, err = run_here(command(tiny_source, out, "--set", "seed=1", "--overwrite", "--json"))
    assert code == 0, err
    assert json.loads(text)["fingerprint"] == Manifest(out).fingerprint
    assert Manifest(out).info["config"]["seed"] == 1
    assert list(verify(Manifest(out))) == []
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_the_same_build_again_has_nothing_to_do(tiny_source: Path, tmp_path: Path) -> None:
    code, _, err = run_here(command(tiny_source, tmp_path / "tiny"))
    assert (code, err) == (0, PLANTED)
    before = {name: (tmp_path / "tiny" / name).stat().st_mtime_ns for name in digests(tmp_path / "tiny")}
    code, text, err = run_here(command(tiny_source, tmp_path / "tiny"))
    assert code == 0
    assert "nothing to do" in err
    assert "scanned" in text
    assert {name: (tmp_path / "tiny" / name).stat().st_mtime_ns for name in before} == before
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"restart": True}])
def test_an_output_that_is_no_dataset_is_not_touched(
    tiny_source: Path, tmp_path: Path, options: dict[str, bool]
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(BuildError, match="exists and is no dataset of ours; it is not touched"):
        run_build(tiny_source, tmp_path / "home", **options)
    (tmp_path / "file").write_text("a file")
    with pytest.raises(BuildError, match="exists and is no dataset of ours"):
        run_build(tiny_source, tmp_path / "file", **options)
    assert digests(tmp_path).keys() == {"home/letter.txt", "file"}


def test_a_source_that_changed_since_is_said(tiny_source: Path, tiny_dataset: Manifest, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_source, tmp_path / "copy")
    out = tmp_path / "tiny"
    kill_group(held_in_sign(copy, tiny_dataset, out))
    os.utime(copy / "train.rec", ns=(1, 1))
    code, _, err = run_here(command(copy, out))
    assert (code, len(err.splitlines())) == (1, 1)
    assert "train.rec: mtime_ns: " in err
    assert not out.exists()


def test_a_record_that_kills_its_worker_is_quarantined(
    tiny_source: Path, tiny_dataset: Manifest, tmp_path: Path
) -> None:
    victim = clean_row(tiny_source, tiny_dataset)
    mark = bytes_of(tiny_source, victim)[-64:]
    out = tmp_path / "tiny"
    environment = preload(tmp_path, "pipelines.stages.signatures:decode", mark, "kill")
    code, _, err = run(command(tiny_source, out, "--workers", "2"), **environment)
    assert code == 0, err
    found = Manifest(out)
    assert list(verify(found)) == []
    assert found.totals["dropped"] == {**tiny_dataset.totals["dropped"], "quarantined": 1}
    assert found.totals["kept"] == tiny_dataset.totals["kept"] - 1
    (gone,) = [row for row in found.table("dropped").to_pylist() if row["reason"] == "quarantined"]
    assert (gone["key"], gone["sid"]) == (victim["key"], victim["sid"])
    assert "killed the worker" in gone["detail"]
    sids = set(tiny_dataset.table("images")["sid"].to_pylist()) - {victim["sid"]}
    assert set(found.table("images")["sid"].to_pylist()) == sids


def test_a_worker_that_dies_once_is_survived(
    tiny_source: Path, tiny_dataset: Manifest, tiny_digests: dict[str, str], tmp_path: Path
) -> None:
    mark = bytes_of(tiny_source, clean_row(tiny_source, tiny_dataset))[-64:]
    died = tmp_path / "died"
    environment = preload(tmp_path, "pipelines.stages.signatures:decode", mark, "kill_once", died)
    code, _, err = run(command(tiny_source, tmp_path / "tiny"), **environment)
    assert code == 0, err
    assert died.exists()
    assert "a worker died; its task is run again alone" in err
    assert digests(tmp_path / "tiny") == tiny_digests


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def test_too_little_room_is_said_before_the_work_starts(tiny_source: Path, small_disk: Path) -> None:
    resize(small_disk, "1m")
    code, _, err = run_here(command(tiny_source, small_disk / "tiny"))
    assert (code, len(err.splitlines())) == (1, 1)
    assert "MB free, the build needs about" in err
    assert not (small_disk / "tiny").exists()
    assert not list(small_disk.glob(".tiny.building/records/*"))


@pytest.mark.parametrize("room", [100, 400, 900])
def test_a_full_disk_is_one_line_and_resumable(
    tiny_source: Path, tiny_digests: dict[str, str], small_disk: Path, room: int
) -> None:
    out, work = small_disk / "tiny", small_disk / ".tiny.building"
    process = start(command(tiny_source, out))
    assert wait_for(lambda: STAGES["cut"](work), process)
    resize(small_disk, f"{room}k")  # after the check of free space, as if others had filled the disk
    code, _, err = finish(process)
    assert code == 1, err
    assert len(err.removeprefix(PLANTED).splitlines()) == 1, err
    assert "disk full; free some space and run the same command to go on" in err
    assert not out.exists()
    resize(small_disk, "16m")
    code, _, err = run_here(command(tiny_source, out))
    assert (code, err) == (0, PLANTED)
    assert digests(out) == tiny_digests


def test_parts_are_as_many_as_the_stages_assume(tiny_source: Path, tmp_path: Path) -> None:
    size = (tiny_source / "train.rec").stat().st_size
    assert -(-size // 160_000) == PARTS, f"{SPEC} is {size} bytes"

"""Shards from a bucket through a cache: the same batches, no shard fetched twice, and what is refused."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import signal
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from itertools import pairwise
from pathlib import Path
from threading import Event, Timer

import pytest

import faceshards
from faceshards.checksums import file_digest
from faceshards.dataset.manifest import Manifest, ManifestError
from faceshards.files import bytes_text
from faceshards.storage.faults import StorageError
from faceshards.storage.location import StoredPath
from tests.faceshards.test_stored_dataset import upload
from tests.training.runs import start, steps, trace, train, wait_for_step
from training.data.layout import Layout, StreamError
from training.data.shard_cache import CacheError, ShardCache, _alone
from training.data.stream import Stream
from training.run import Request


def opened(data: Manifest, cache: ShardCache | None, rank: int = 0, world: int = 1, **options) -> Stream:
    options = {"order": "window", "window": 1, "threads": 2, **options}
    return Stream(data, Layout(data, world, 16), rank, cache=cache, **options)


def same(some, others) -> bool:
    pairs = zip(some, others, strict=True)
    return all((a[0] == b[0]).all() and (a[1] == b[1]).all() for a, b in pairs)


def kept(folder: Path) -> dict[str, int]:
    """Returns the copies in a cache, by name with their sizes; nothing else may be left there."""
    names = {path.name for path in folder.iterdir()}
    assert {name for name in names if not name.endswith(".mindrecord")} <= {".lock"}
    return {path.name: path.stat().st_size for path in folder.glob("*.mindrecord")}


@pytest.fixture
def stored(many: Manifest, bucket: StoredPath) -> Manifest:
    """A dataset of 40 shards in a bucket."""
    return Manifest(upload(many.path, bucket / "set"))


@pytest.mark.parametrize("order", ["window", "global"])
def test_batches_are_those_of_a_disk(many: Manifest, stored: Manifest, tmp_path: Path, order: str) -> None:
    """With room for half the set in order window; by two ranks that share it, one of which begins in the middle."""
    layout = Layout(many, 2, 16)
    need = layout.bytes_at_once(range(2), 1 if order == "window" else 0)
    whole = sum(layout.bytes)
    assert need == whole if order == "global" else need <= whole // 2
    cache = ShardCache(tmp_path / "cache", max(need, whole // 2))
    for rank in range(2):
        local = opened(many, None, rank, 2, order=order, augment=True)
        remote = opened(stored, cache, rank, 2, order=order, augment=True)
        for epoch, step in ((0, 0), (1, 7)):
            assert same(local.batches(epoch, step), remote.batches(epoch, step))
        local.close()
        remote.close()
        assert sum(kept(cache.folder).values()) <= cache.limit
    for name in kept(cache.folder):
        assert file_digest(cache.folder / name)[1] == name.partition(".")[0]


def test_the_smallest_size_works_and_less_is_refused(many: Manifest, tmp_path: Path) -> None:
    """Of a dataset on a slow disk too, for which a cache does the same."""
    for batch, window in ((16, 0), (16, 1), (128, 2)):
        layout = Layout(many, 2, batch)
        options = {"order": "window" if window else "global", "window": window or 2}
        need = layout.bytes_at_once([0], window)
        line = rf"--cache-bytes {need - 1}: .* takes up to {need} \(.* MB\), the smallest that works"
        with pytest.raises(CacheError, match=line):
            Stream(many, layout, 0, cache=ShardCache(tmp_path / "less", need - 1), **options)
        remote = Stream(many, layout, 0, cache=ShardCache(tmp_path / f"{window}", need), **options)
        local = Stream(many, layout, 0, **options)
        for epoch in range(3):
            assert same(local.batches(epoch), remote.batches(epoch))
        remote.close()
        local.close()
    assert not (tmp_path / "less").exists()


def test_readers_at_once_fetch_a_shard_once(many: Manifest, tmp_path: Path) -> None:
    copy = Manifest(shutil.copytree(many.path, tmp_path / "copy"))
    streams = [opened(copy, ShardCache(tmp_path / "cache"), threads=1) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: list(one.batches(0)), streams))
    assert all(same(found[0], other) for other in found[1:])
    first = {path.name: path.stat().st_ino for path in (tmp_path / "cache").iterdir()}
    assert len(kept(tmp_path / "cache")) == 40
    shutil.rmtree(copy.path / "shards")  # what is in the cache is not asked for again
    for one in streams:
        assert same(found[0], one.batches(0))
        one.close()
    assert {path.name: path.stat().st_ino for path in (tmp_path / "cache").iterdir()} == first


def test_what_is_oldest_goes_and_what_is_in_use_stays(many: Manifest, tmp_path: Path) -> None:
    layout = Layout(many, 1, 16)
    shards = [(many.shard_path(layout.names[i]), layout.bytes[i], layout.sha256[i]) for i in range(5)]
    limit = sum(size for _, size, _ in shards[:4])
    cache, ended = ShardCache(tmp_path, limit), Event()
    held = cache.take(*shards[0], ended)
    for shard in (*shards[1:4], shards[1]):  # the second is read again: the third is the oldest that nobody holds
        os.close(cache.take(*shard, ended))
    os.close(cache.take(*shards[4], ended))
    assert f"{shards[2][2]}.mindrecord" not in kept(tmp_path)
    assert {f"{shards[i][2]}.mindrecord" for i in (0, 1, 4)} <= set(kept(tmp_path))
    # Another run's cache in the same folder sees what is in use.
    other = ShardCache(tmp_path, shards[0][1] + 10)
    with pytest.raises(CacheError, match=r"are in use, which leaves no room for .*; others read from there too"):
        other.take(*shards[2], ended)
    assert set(kept(tmp_path)) == {f"{shards[0][2]}.mindrecord"}
    assert os.pread(held, 8, 0) == shards[0][0].read_bytes()[:8]
    os.close(held)


def test_no_copy_changes_its_name_while_another_counts(
    many: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be seen under neither, and more be kept than may be (it happened: 226 bytes over the limit)."""
    layout = Layout(many, 1, 16)
    shard, counting, seen = layout.names[0], ExitStack(), []

    class Last:
        def __init__(self, source) -> None:
            self.data = source.read_bytes()
            self.size = len(self.data)

        def read_at(self, start: int, count: int) -> bytes:
            counting.enter_context(_alone(tmp_path / ".lock"))
            Timer(0.3, lambda: (seen.append({path.suffix for path in tmp_path.iterdir()}), counting.close())).start()
            return self.data

    monkeypatch.setattr("training.data.shard_cache.open_file", lambda source: nullcontext(Last(source)))
    cache = ShardCache(tmp_path, layout.bytes[0])
    os.close(cache.take(many.shard_path(shard), layout.bytes[0], layout.sha256[0], Event()))
    assert seen == [{".part", ".lock", ""}]
    assert list(kept(tmp_path)) == [f"{layout.sha256[0]}.mindrecord"]


def test_damage_in_the_cache_is_fetched_again_and_said(
    many: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    want = list(opened(many, ShardCache(tmp_path)).batches(0))
    broken, cut = sorted(tmp_path.glob("*.mindrecord"))[:2]
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    cut.write_bytes(cut.read_bytes()[:-5])
    left = tmp_path / f"{cut.stem}.part"  # of a process that was killed
    left.write_bytes(b"half")
    with caplog.at_level(logging.WARNING):
        assert same(want, opened(many, ShardCache(tmp_path)).batches(0))
    said = [record.getMessage() for record in caplog.records]
    assert sorted(line.partition(":")[0] for line in said) == [str(broken), str(cut)]
    assert all(line.endswith("damaged in the cache, it is fetched again") for line in said)
    assert broken.read_bytes() == whole
    assert len(kept(tmp_path)) == 40


def test_a_source_that_is_not_what_was_published_ends_the_epoch(stored: Manifest, tmp_path: Path) -> None:
    layout = Layout(stored, 1, 16)
    shard = stored.shard_path(layout.names[7])
    part = opened(stored, ShardCache(tmp_path / "cache"))
    whole = b"x" * layout.bytes[7]
    shard.write_bytes(whole)
    with pytest.raises(StreamError, match=rf"{shard}: changed since it was published: its SHA-256 is not the manif"):
        list(part.batches(0))
    shard.unlink()
    with pytest.raises(faceshards.FaceshardsError, match=rf"{shard}: no such object"):
        list(part.batches(0))
    assert f"{layout.sha256[7]}.mindrecord" not in kept(tmp_path / "cache")
    part.close()


def test_a_store_is_asked_as_often_as_the_pages_say(
    stored: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each shard its part of the table and its header when the stream opens, once; then the shard: twice."""
    obstore, asked = pytest.importorskip("obstore"), Counter()
    for name in ("get", "head"):
        ask = getattr(obstore, name)

        def noted(store, key, *rest, ask=ask, **options):
            asked[key] += 1
            return ask(store, key, *rest, **options)

        monkeypatch.setattr(obstore, name, noted)
    part = opened(stored, ShardCache(tmp_path))
    layout = Layout(stored, 1, 16)
    once = [f"part-{i:05d}.parquet" for i in range(40)] + layout.names
    names = {key.rpartition("/")[2]: count for key, count in asked.items()}
    assert {name: names.get(name) for name in once} == dict.fromkeys(once, 1)
    before = asked.copy()
    for epoch in range(2):
        assert sum(1 for _ in part.batches(epoch)) == layout.steps_per_epoch
    part.close()
    assert {key.rpartition("/")[2]: count for key, count in (asked - before).items()} == dict.fromkeys(layout.names, 2)


def test_a_part_of_the_table_that_is_damaged_is_refused(stored: Manifest, tmp_path: Path) -> None:
    part = stored.path / "manifest" / "images.parquet" / "part-00003.parquet"
    size = part.stat().st_size
    for data, cause in ((b"x" * size, "changed since it was published"), (b"x", f"1 bytes, dataset.json says {size}")):
        part.write_bytes(data)
        with pytest.raises(ManifestError, match=f"{part}: {cause}"):
            opened(stored, ShardCache(tmp_path))
    part.unlink()
    with pytest.raises(ManifestError, match=f"{part}: missing; dataset.json lists it"):
        opened(stored, ShardCache(tmp_path))


def test_an_epoch_left_in_the_middle_leaves_nothing_in_use(many: Manifest, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    part = opened(many, ShardCache(tmp_path))
    batches = part.batches(0)
    next(batches)
    batches.close()
    assert len(os.listdir("/proc/self/fd")) == before
    later = part.batches(1)
    next(later)
    part.close()
    with pytest.raises(StreamError, match="the stream was closed in mid-epoch"):
        list(later)
    assert len(os.listdir("/proc/self/fd")) == before
    kept(tmp_path)


def test_folders_that_cannot_be_a_cache_are_one_line(many: Manifest, tmp_path: Path) -> None:
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "a.jpg").write_bytes(b"")
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "odd" / f"{'0' * 64}.mindrecord").mkdir(parents=True)
    for folder, line in (
        (tmp_path / "photographs", "holds a.jpg, which is no shard of a cache: choose a folder for shards alone"),
        (tmp_path / "file", "file: cannot be written: .*file: Not a directory"),
        (tmp_path / "file" / "below", "cannot be written"),
        (Path("/proc/cache"), "/proc/cache: cannot be written"),
        (tmp_path / "odd", f"odd: holds {'0' * 64}.mindrecord, which is no file: choose a folder for shards alone"),
    ):
        with pytest.raises(CacheError, match=line) as error:
            opened(many, ShardCache(folder))
        assert "\n" not in str(error.value)
    (tmp_path / "disk" / "lost+found").mkdir(parents=True)  # a disk of its own has it
    opened(many, ShardCache(tmp_path / "disk")).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_copies_of_another_user_are_one_line() -> None:
    """They cannot be locked or given an age: it would be found out in mid-run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        (folder / ".lock").touch()
        os.seteuid(65534)
        try:
            with pytest.raises(CacheError, match=rf"{folder}: holds \.lock, which is another user's: choose a folder"):
                ShardCache(folder).check(1, 1)
        finally:
            os.seteuid(0)
        ShardCache(folder).check(1, 1)


@pytest.mark.parametrize("small_disk", [3], indirect=True)
def test_copies_of_other_sets_make_room_on_a_full_disk(many: Manifest, small_disk: Path) -> None:
    """Without a limit, too: what is there before counts as room when a run begins."""
    layout = Layout(many, 1, 16)
    assert sum(layout.bytes) > (1 << 20)
    old = [small_disk / f"{i:064x}.mindrecord" for i in range(20)]
    for path in old:
        path.write_bytes(bytes(100 << 10))
    os.utime(old[7], ns=(10**18, 10**18))  # the oldest
    part, local = opened(many, ShardCache(small_disk)), opened(many, None)
    assert same(local.batches(0), part.batches(0))
    left = [path for path in old if path.exists()]
    assert 0 < len(left) < len(old)
    assert old[7] not in left
    assert set(kept(small_disk)) >= {f"{sha256}.mindrecord" for sha256 in layout.sha256}
    local.close()
    part.close()


@pytest.mark.parametrize("small_disk", [1], indirect=True)
def test_a_disk_that_is_too_small_or_fills_up_is_one_line(many: Manifest, small_disk: Path) -> None:
    need = Layout(many, 1, 16).bytes_at_once([0], 1)
    line = (
        rf"{small_disk}: its disk has room for .*, .* are read: make room, or choose --cache-bytes from {need} to \d+ "
    )
    for limit in (0, 10**9):
        with pytest.raises(CacheError, match=line):
            opened(many, ShardCache(small_disk, limit))
    filler = small_disk / f"{'0' * 64}.lock"  # is none that can go
    filler.write_bytes(bytes(800 << 10))
    with pytest.raises(CacheError, match=rf"has room for .* of shards, {need} \(.*\) are read at once: make room$"):
        opened(many, ShardCache(small_disk, need))
    filler.unlink()
    part = opened(many, ShardCache(small_disk, need))
    whole = list(part.batches(0))
    for path in small_disk.glob("*.mindrecord"):
        path.unlink()
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "another's").write_bytes(bytes(2 << 20))
    with pytest.raises(CacheError, match=rf"{small_disk}: cannot keep shards: disk full; free some space"):
        list(part.batches(0))
    (small_disk / "another's").unlink()
    assert kept(small_disk) == {}
    assert same(whole, part.batches(0))
    part.close()


def test_a_program_has_a_cache_too(many: Manifest, stored: Manifest, tmp_path: Path) -> None:
    options = {"seed": 3, "order": "window", "threads": 1}
    with pytest.raises(
        faceshards.FaceshardsError, match=f"{stored.path}: in a bucket: .* in a folder: name it by --cache"
    ):
        faceshards.Stream(str(stored.path), 8)
    with (
        faceshards.Stream(str(stored.path), 8, cache=tmp_path / "cache", cache_bytes=10**9, **options) as remote,
        faceshards.Stream(many.path, 8, **options) as local,
    ):
        assert same(local.batches(0), remote.batches(0))


def test_a_programs_cache_is_no_address_and_a_stream_stays_in_its_process(many: Manifest, tmp_path: Path) -> None:
    with pytest.raises(StreamError, match="cache=s3://faces/c: is in a bucket, and has to be on a disk here"):
        faceshards.Stream(many, 16, cache="s3://faces/c")
    with pytest.raises(StorageError, match=r"^s3://\.\.\.: an address holds no credentials"):
        faceshards.Stream(many, 16, cache="s3://key:secret@faces/c")
    with faceshards.Stream(many, 16, cache=tmp_path / "cache", threads=1) as stream:
        with pytest.raises(StreamError, match="do not pass between processes: make one in each"):
            pickle.dumps(stream)
        if not (child := os.fork()):  # here it would wait for threads that there are none of
            try:
                next(iter(stream.batches(0)))
            except StreamError as error:
                os._exit("do not pass between processes" in str(error))
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
        assert len(next(iter(stream.batches(0)))[1]) == 16


def test_a_run_is_planned_for_all_ranks_of_a_host(many: Manifest, tmp_path: Path) -> None:
    need = Layout(many, 2, 16).bytes_at_once(range(2), 1)
    more = ["--devices", "2", "--dry-run", "--cache", str(tmp_path / "cache"), "--cache-bytes"]
    settings = {"order": "window", "window": 1}
    less = train(many.path, tmp_path / "run", *more, str(need - 1), **settings)
    assert less.exit_code == 1
    assert f"--cache-bytes {need - 1}: what the ranks of this host read at once takes up to {need} (" in less.output
    enough = train(many.path, tmp_path / "run", *more, str(need), **settings)
    assert enough.exit_code == 0, enough.output
    assert "shards when they come into the cache" in enough.output
    assert f"cache: this host's ranks read up to {bytes_text(need)} of shards at once" in enough.output
    assert not (tmp_path / "cache").exists()


def test_ranks_are_told_of_the_cache(tmp_path: Path) -> None:
    request = Request("r", {}, StoredPath("s3", "faces", "x"), tmp_path, cache=tmp_path / "c", cache_bytes=9)
    told = request.arguments()
    pairs = dict(pairwise(told))
    assert (pairs["--data"], pairs["--cache"], pairs["--cache-bytes"]) == ("s3://faces/x", str(tmp_path / "c"), "9")


@pytest.mark.slow
def test_a_run_from_a_bucket_has_the_losses_of_one_from_a_disk(
    many: Manifest, stored: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With room for half the set; killed in its second epoch, when shards have gone and come again; gone on with."""
    settings = {"order": "window", "window": 1, "checkpoint_steps": 5}
    local = train(many.path, tmp_path / "local", **settings)
    assert local.exit_code == 0, local.output
    want = trace(tmp_path / "local")
    epoch = Layout(many, 1, 16).steps_per_epoch
    assert len(want) == 2 * epoch

    folder, limit = tmp_path / "cache", sum(Layout(many, 1, 16).bytes) // 2
    options = ["--cache", str(folder), "--cache-bytes", str(limit)]
    job = start(stored.path, tmp_path / "run", *options, **settings)
    wait_for_step(job, tmp_path / "run", epoch + 7)
    job.send_signal(signal.SIGKILL)
    job.communicate()
    assert steps(tmp_path / "run") < len(want)
    with caplog.at_level(logging.INFO):
        again = train(stored.path, tmp_path / "run", "--resume", *options, **settings)
    assert again.exit_code == 0, again.output
    assert "going on from" in caplog.text
    assert trace(tmp_path / "run") == want
    copies = [path.stat().st_size for path in folder.glob("*.mindrecord")]
    assert 0 < sum(copies) <= limit

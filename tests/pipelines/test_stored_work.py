"""Builds whose work lies in a bucket: machines that share no disk make the dataset of the disk, and leave nothing."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster

from faceshards.dataset.manifest import Manifest
from faceshards.dataset.verify import verify
from faceshards.errors import BuildError, EmptyDatasetError, FaceshardsError
from faceshards.reading import content
from faceshards.storage.lease import LostError, leased
from faceshards.storage.location import StoredPath
from pipelines import prefix, upload
from pipelines.config import BuildConfig
from pipelines.plan import plan
from pipelines.runner import Execution
from pipelines.sources.find import find_files
from tests.faceshards.test_stored_dataset import upload as put
from tests.pipelines.build_fixtures import CONFIG, PARTITION_BYTES, digests
from tests.pipelines.test_upload import downloaded


def build(
    source: Path | StoredPath,
    out: StoredPath,
    worker: str,
    work: StoredPath,
    config: BuildConfig = CONFIG,
    shuffle: str = "direct",
    **options: Any,
) -> Manifest:
    execution = Execution(1, worker, PARTITION_BYTES, quiet=True, shuffle=shuffle)
    return upload.build_at("tiny", find_files(source)[0], out, config, execution, work=work, **options)


def names(place: StoredPath) -> list[str]:
    return sorted(str(found).removeprefix(f"{place}/") for found, _ in place.tree())


def check(found: Manifest, work: StoredPath, digests_on_disk: dict[str, str], folder: Path) -> None:
    """Sees that a dataset is that of the disk but for where its source lies, and that nothing else is left."""
    there = digests(downloaded(found.path, folder))
    del there["dataset.json"]
    assert there == {name: digest for name, digest in digests_on_disk.items() if name != "dataset.json"}
    assert names(work) == []


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of two workers, each in folders of its own."""
    home = tmp_path_factory.mktemp("hosts")

    def settle() -> None:
        own = home / str(os.getpid())
        own.mkdir(mode=0o700)
        os.chdir(own)
        tempfile.tempdir = str(own)

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.run(settle)
        yield cluster.scheduler_address


@pytest.mark.parametrize("shuffle", ["direct", "spill"])
def test_two_machines_that_share_only_the_bucket_make_the_dataset_of_the_disk(
    shuffle: str,
    tiny_source: Path,
    tiny_digests: dict[str, str],
    bucket: StoredPath,
    hosts: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "own").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "own"))
    variables = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    source, work = put(tiny_source, bucket / "raw ü"), bucket / "work ü"
    with Client(hosts, set_as_default=False) as client:
        client.run(lambda: os.environ.update(variables))
        found = build(source, bucket / "set", hosts, work, shuffle=shuffle)
        pieces = client.run(lambda: (len(list(Path().glob("faceshards-own-*/*/*"))), os.getcwd()))
    assert list(verify(found)) == []
    check(found, work, tiny_digests, tmp_path / "copy")
    # Each may keep the table that it read last, until its end.
    assert all(count <= 1 for count, _ in pieces.values())
    assert len({folder for _, folder in pieces.values()}) == 2


class KilledError(Exception):
    """In place of a kill."""


@pytest.fixture
def unpublished(
    tiny_source: Path, bucket: StoredPath, worker: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> StoredPath:
    """The pieces of a build that was killed before it published."""

    def killed(*_: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(prefix, "publish", killed)
        with pytest.raises(KilledError):
            build(tiny_source, bucket / "set", worker, bucket / "work", shuffle=getattr(request, "param", "direct"))
    (pieces,) = [place for place, is_prefix in (bucket / "work").entries() if is_prefix]
    return pieces


@pytest.mark.parametrize(
    ("lost", "again"),
    [
        (["work/records/part-000001.parquet", "work/done/shard-00002.json"], {2}),
        (["work/decisions/facts.json", "work/decisions/reason.npy", "work/done/shard-00000.json"], {0}),
        (["work/routed/part-000001.arrow", "work/dropped/part-000002.parquet", "work/done/shard-00001.json"], {1}),
        (["set/shards/shard-00001.mindrecord.db", "set/manifest/images.parquet/part-00003.parquet"], {1, 3}),
        (["set/manifest/dropped.parquet"], set()),
    ],
)
def test_it_goes_on_from_what_is_there(
    lost: list[str],
    again: set[int],
    tiny_source: Path,
    tiny_digests: dict[str, str],
    bucket: StoredPath,
    worker: str,
    unpublished: StoredPath,
    tmp_path: Path,
) -> None:
    assert "dataset.json" not in names(bucket / "set")
    shards = [bucket / "set" / "shards" / f"shard-{i:05d}.mindrecord" for i in range(4)]
    before = [shard.stat() for shard in shards]
    for name in lost:
        place = unpublished / name.removeprefix("work/") if name.startswith("work/") else bucket / name
        assert place.exists()
        place.unlink()
    found = build(tiny_source, bucket / "set", worker, bucket / "work")
    check(found, bucket / "work", tiny_digests, tmp_path / "copy")
    after = [shard.stat() for shard in shards]
    assert all(i in again or before[i] == after[i] for i in range(4))


@pytest.mark.parametrize(("unpublished", "then"), [("direct", "spill"), ("spill", "direct")], indirect=["unpublished"])
def test_it_goes_on_in_the_other_form(
    then: str,
    tiny_source: Path,
    tiny_digests: dict[str, str],
    bucket: StoredPath,
    worker: str,
    unpublished: StoredPath,
    tmp_path: Path,
) -> None:
    (unpublished / "done" / "shard-00001.json").unlink()
    found = build(tiny_source, bucket / "set", worker, bucket / "work", shuffle=then)
    check(found, bucket / "work", tiny_digests, tmp_path / "copy")


def test_one_that_was_killed_just_after_it_published_is_cleared_away(
    tiny_source: Path, bucket: StoredPath, worker: str, unpublished: StoredPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(prefix, "clear_work", killed)
        with pytest.raises(KilledError):
            build(tiny_source, bucket / "set", worker, bucket / "work")
    assert names(bucket / "work")
    assert (bucket / "set" / prefix.MARK).exists()
    build(tiny_source, bucket / "set", worker, bucket / "work")
    assert names(bucket / "work") == []
    assert not (bucket / "set" / prefix.MARK).exists()


def test_a_second_builder_is_refused_and_harms_nothing(tiny_source: Path, bucket: StoredPath, worker: str) -> None:
    with leased(bucket / "work" / "lock"):
        with pytest.raises(BuildError, match=rf"^{bucket}/work: another build \(process {os.getpid()} on .+\) is at"):
            build(tiny_source, bucket / "set", worker, bucket / "work", restart=True)
        assert names(bucket) == ["work/lock"]
    with prefix.claimed(bucket / "set", "dataset.json", {}, restart=False):
        (bucket / "set" / "shards" / "x").write_bytes(b"")
        with pytest.raises(BuildError, match=rf"^{bucket}/set: another build \(process {os.getpid()} on .+\) is writ"):
            build(tiny_source, bucket / "set", worker, bucket / "work", restart=True)
        assert names(bucket) == [f"set/{prefix.MARK}", "set/shards/x"]


def test_what_another_has_just_published_is_not_cleared_away(
    tiny_source: Path, tiny_dataset: Manifest, bucket: StoredPath, worker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, plain = bucket / "set", prefix._check_free

    def first(place: StoredPath, what: str) -> None:
        plain(place, what)
        put(tiny_dataset.path, out)

    monkeypatch.setattr(prefix, "_check_free", first)
    with pytest.raises(BuildError, match=f"^{out}: another build published there just now"):
        build(tiny_source, out, worker, bucket / "work", restart=True)
    assert Manifest(out).info == tiny_dataset.info
    assert names(bucket / "work") == []


def test_who_was_believed_dead_publishes_nothing(bucket: StoredPath) -> None:
    out = bucket / "set"
    with prefix.claimed(out, "dataset.json", {}, restart=False) as lease:
        (out / prefix.MARK).write_bytes(b'{"token": "theirs"}')
        with pytest.raises(LostError, match=f"^{out}: another process"):
            prefix.publish(out, [], "dataset.json", b"{}", lease)
    assert names(out) == [prefix.MARK]
    assert content(out / prefix.MARK) == b'{"token": "theirs"}'


def test_another_request_is_refused_or_begins_anew(
    tiny_source: Path, bucket: StoredPath, worker: str, unpublished: StoredPath
) -> None:
    other = BuildConfig(shards=2)
    with pytest.raises(BuildError, match=rf"^{bucket}/set: an interrupted upload of another request"):
        build(tiny_source, bucket / "set", worker, bucket / "work", other)
    with pytest.raises(BuildError, match=rf"^{bucket}/work: an interrupted build has another request \(shards: 4"):
        build(tiny_source, bucket / "free", worker, bucket / "work", other)
    assert unpublished.is_dir()
    assert names(bucket / "free") == []
    found = build(tiny_source, bucket / "set", worker, bucket / "work", other, restart=True)
    assert list(verify(found)) == []
    assert found.totals["shards"] == 2
    assert names(bucket / "work") == []


def test_what_leaves_nothing_to_go_on_from_leaves_nothing(tiny_source: Path, bucket: StoredPath, worker: str) -> None:
    with pytest.raises(EmptyDatasetError):
        build(tiny_source, bucket / "set", worker, bucket / "work", BuildConfig(min_images=1000))
    assert names(bucket) == []


@pytest.mark.parametrize(
    ("out", "work", "cause"),
    [
        ("set", "set", "/set: the dataset is .+/set; choose a prefix for the work that is apart from it"),
        ("set", "set/work", "/set/work: the dataset is .+/set; choose"),
        ("set/a/b", "set", "/set: the dataset is .+/set/a/b; choose"),
        ("set", "raw", "/raw: the source is .+/raw/train.rec; choose"),
        ("set", "notes", "/notes/mine.txt: is none of a build's; nothing is touched there"),
        ("set", "theirs", "/theirs/request.json: is none of a build's; nothing is touched there"),
        ("set", "locked", "/locked/lock: is none of a build's; nothing is touched there"),
    ],
)
def test_a_place_that_is_none_is_refused(
    out: str, work: str, cause: str, tiny_source: Path, bucket: StoredPath, worker: str
) -> None:
    source = put(tiny_source, bucket / "raw")
    for name, data in (("notes/mine.txt", b""), ("theirs/request.json", b'{"name": "x"}'), ("locked/lock", b"7")):
        (bucket / name).write_bytes(data)
    before = names(bucket)
    with pytest.raises(BuildError, match=f"^{bucket}{cause}"):
        build(source, bucket / out, worker, bucket / work, restart=True)
    assert names(bucket) == before


def test_a_build_goes_on_from_a_plan_in_the_bucket(
    tiny_source: Path, tiny_digests: dict[str, str], bucket: StoredPath, worker: str, tmp_path: Path
) -> None:
    files, work = find_files(tiny_source)[0], bucket / "work"
    execution = Execution(1, worker, PARTITION_BYTES, quiet=True)
    told = plan("tiny", files, bucket / "set", CONFIG, execution, work=work)
    assert (told["work_folder"], told["disk"]["free"], told["refused"]) == (str(work), None, [])
    sampled = plan("tiny", files, bucket / "set", CONFIG, execution, work=work, share=0.5)
    assert 0 < sampled["looked_at"]["identities"] < told["looked_at"]["identities"]
    assert {name.split("/")[0] for name in names(bucket)} == {"work"}
    (pieces,) = [place for place, is_prefix in work.entries() if is_prefix]
    scanned = {str(place): place.stat() for place, _ in (pieces / "records").tree()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix, "clear_work", lambda work: None)
        found = build(tiny_source, bucket / "set", worker, work)
    assert {str(place): place.stat() for place, _ in (pieces / "records").tree()} == scanned
    prefix.clear_work(work)
    check(found, work, tiny_digests, tmp_path / "copy")


def test_a_plan_of_other_decisions_scans_nothing_again(tiny_source: Path, bucket: StoredPath, worker: str) -> None:
    files, work = find_files(tiny_source)[0], bucket / "work"
    execution = Execution(1, worker, PARTITION_BYTES, quiet=True)
    plan("tiny", files, bucket / "set", CONFIG, execution, work=work)
    (pieces,) = [place for place, is_prefix in work.entries() if is_prefix]
    scanned = {str(place): place.stat() for place, _ in (pieces / "records").tree()}
    told = plan("tiny", files, bucket / "set", BuildConfig(shards=2), execution, work=work)
    assert told["shards"] == 2
    assert {str(place): place.stat() for place, _ in (pieces / "records").tree()} == scanned


def test_workers_without_credentials_are_told_of_in_one_line(
    tiny_source: Path, bucket: StoredPath, worker: str, unpublished: StoredPath
) -> None:
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    with Client(worker, set_as_default=False) as client:
        client.run(lambda: os.environ.update(AWS_SECRET_ACCESS_KEY="wrong"))
        with pytest.raises(FaceshardsError) as caught:
            build(tiny_source, bucket / "set", worker, bucket / "work")
        client.run(lambda: os.environ.update(AWS_SECRET_ACCESS_KEY=secret))
    assert str(caught.value).startswith("worker tcp://")
    assert f": {unpublished}: access denied" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert secret not in str(caught.value)
    assert json.loads(content(bucket / "set" / prefix.MARK)).keys() == {"request", "beat"}

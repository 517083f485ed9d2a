"""A store that fails: every fault of the proxy at every operation that asks one, and what the user is told.

What passes changes nothing but the time it takes; what lasts ends in one line that names address, server and cause.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.in_process import InProcess
from faceshards.cli.main import main
from faceshards.dataset.manifest import Manifest
from faceshards.dataset.verify import verify
from faceshards.errors import FaceshardsError
from faceshards.reading import fetch
from faceshards.storage import requests, stores
from faceshards.storage.faults import StorageError, TakenError
from faceshards.storage.location import StoredPath
from faceshards.storage.ranges import StoredFile
from pipelines import prefix, upload
from pipelines.sources.find import find_files
from tests import fault_proxy as faults
from tests.faceshards.test_stored_dataset import upload as put
from tests.fault_proxy import Fault, FaultProxy
from tests.pipelines.build_fixtures import CONFIG, PARTITION_BYTES, digests
from training.data.layout import Layout, StreamError
from training.data.shard_cache import ShardCache
from training.data.stream import Stream

SLOW_DOWN = faults.says(503, "SlowDown", Retry_After="1")

PASSING = {
    "reset in mid-body": faults.reset,
    "cut in mid-body": faults.cut,
    "shorter, and says so": faults.short,
    "500": faults.says(500, "InternalError"),
    "503": SLOW_DOWN,
    "429": faults.says(429, "TooManyRequests", Retry_After="1"),
    "400 RequestTimeout": faults.says(400, "RequestTimeout"),
    "connection lost": faults.refused,
    "answer lost": faults.lost,
    "HTML": faults.html,
    "another range": faults.wrong_range,
    "the whole object": faults.whole,
    "slow": faults.dribble(0.01, 5),
    "stalls in mid-body": faults.stall,
    "silent": faults.silent,
}
"""What may happen to a GET and is over the next time."""

OF_BODIES = {
    "reset in mid-body",
    "cut in mid-body",
    "shorter, and says so",
    "another range",
    "the whole object",
    "slow",
}
"""Those of them that a HEAD does not know."""


@pytest.fixture
def proxy(
    bucket: StoredPath, object_store: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[FaultProxy]:
    """Between this process and the store from now on; who asks loses patience soon, where the fault is silence."""
    fault = getattr(request.node, "callspec", None) and request.node.callspec.params.get("fault")
    if any(word in str(fault) for word in ("silent", "stalls", "longer")):
        monkeypatch.setattr(stores, "READ_SECONDS", 0.4)
    monkeypatch.setattr(stores, "PAUSES", (0.001, 0.01))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    with FaultProxy(object_store) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        yield between


# --- operations


class Stage:
    """What operations work on: what is in the bucket, and where they may write."""

    def __init__(self, bucket: StoredPath, folder: Path, source: Path, dataset: Manifest) -> None:
        self.bucket, self.folder, self.dataset = bucket, folder, dataset
        self.set, self.raw, self.out = bucket / "set", bucket / "raw", bucket / "out"
        put(dataset.path, self.set)
        put(source, self.raw)
        self.source = source


@pytest.fixture
def stage(bucket: StoredPath, tmp_path: Path, tiny_source: Path, tiny_dataset: Manifest) -> Stage:
    return Stage(bucket, tmp_path, tiny_source, tiny_dataset)


def command(*arguments: str) -> Callable[[Stage], object]:
    """Returns the operation that a command is, whose places are named {set} and so on."""

    def run(on: Stage) -> object:
        found = CliRunner().invoke(main, [argument.format(**vars(on)) for argument in arguments])
        if found.exit_code:
            assert (found.exit_code, found.stdout) == (1, "")
            raise FaceshardsError(found.stderr.removeprefix("Error: ").removesuffix("\n"))
        return found.stdout

    return run


def build(form: str) -> Callable[[Stage], object]:
    """Returns the operation of building from the bucket, in a form of the shuffle."""

    def run(on: Stage) -> object:
        files, _ = find_files(on.raw)
        execution = InProcess(1, None, PARTITION_BYTES, quiet=True, shuffle=form)
        return upload.build_at("tiny", files, on.folder / "built", CONFIG, execution).fingerprint

    return run


def publish(on: Stage) -> object:
    """Uploads what was built."""
    work = on.folder / "work"
    if not work.exists():
        shutil.copytree(on.dataset.path, upload.made_in(work))
        (work / "lock").touch()
    files, _ = find_files(on.source)
    execution = InProcess(1, None, PARTITION_BYTES, quiet=True)
    found = upload.build_at("tiny", files, on.out, CONFIG, execution, work=work)
    there = {str(place).removeprefix(f"{on.out}/"): size for place, size in on.out.tree()}
    assert there == {name: (on.dataset.path / name).stat().st_size for name in digests(on.dataset.path)}
    return found.fingerprint


def train(on: Stage) -> object:
    """Reads an epoch through a cache."""
    data = Manifest(on.set)
    cache = ShardCache(on.folder / "cache")
    stream = Stream(data, Layout(data, 1, 16), 0, cache=cache, order="window", window=1, threads=1)
    try:
        return [(images.tobytes(), labels.tobytes()) for images, labels in stream.batches(0)]
    finally:
        stream.close()


OPERATIONS: dict[str, Callable[[Stage], object]] = {
    "summary": command("manifest", "summary", "{set}", "--json"),
    "verify": command("manifest", "verify", "{set}", "--quiet"),
    "image": command("manifest", "image", "{set}", "5", "--json"),
    "query": command("manifest", "query", "{set}", "SELECT count(*), min(sid) FROM images", "--json"),
    "build, spill": build("spill"),
    "build, direct": build("direct"),
    "build --out": publish,
    "train --cache": train,
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_passes_changes_nothing(
    operation: str, stage: Stage, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second GET, and HEAD, has the next of all faults."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "20")
    monkeypatch.setattr(stores, "READ_SECONDS", 0.2)
    whole = OPERATIONS[operation](stage)
    for path in (stage.folder / "built", stage.folder / "cache"):
        shutil.rmtree(path, ignore_errors=True)
    for place, _ in stage.out.tree():
        place.unlink()
    seen: set[str] = set()

    def every_second(method: str, names: list[str]) -> None:
        turns = cycle([name for pair in zip(names, [""] * len(names), strict=True) for name in pair])

        def fault(to: Any) -> None:
            name = next(turns)
            seen.add(name)
            PASSING.get(name, type(to).well)(to)

        proxy.add(fault, method=method, times=-1)

    every_second("GET", sorted(PASSING))
    every_second("HEAD", sorted(PASSING.keys() - OF_BODIES))
    assert OPERATIONS[operation](stage) == whole
    if len(seen) <= 4:  # of few requests
        assert OPERATIONS[operation](stage) == whole
    assert len(seen) > 4


def check_line(error: FaceshardsError, stage: Stage, line: str) -> None:
    """Sees that an operation failed with one line about one address, and published nothing."""
    said = str(error)
    address, _, cause = said.partition(": ")
    # Of a place that is made it is asked, too, whether it lies in a dataset.
    assert address.startswith(f"{stage.bucket}/") or address == f"{stage.bucket.parent}/dataset.json"
    assert line in cause
    assert said.count("s3://") == 1
    assert "\n" not in said
    assert not (stage.folder / "built").exists()


LASTING: dict[str, tuple[Fault, str]] = {
    "403": (faults.says(403, "AccessDenied"), "access denied by {server}"),
    "silent": (faults.silent, "{server} does not answer: timed out (tried 2 times in "),
    "HTML": (faults.html, "{server} answers unlike an object store: "),
}
"""What may be so from some moment on, for every request, and what is said of it."""


@pytest.mark.parametrize("fault", LASTING)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_lasts_is_one_line(operation: str, fault: str, stage: Stage, proxy: FaultProxy) -> None:
    made, line = LASTING[fault]
    proxy.add(made, method=".*", after=1, times=-1)
    with pytest.raises(FaceshardsError) as caught:
        OPERATIONS[operation](stage)
    check_line(caught.value, stage, line.format(server=proxy.endpoint))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_store_may_die_at_any_moment(
    operation: str, stage: Stage, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was done stays: in the end the same command goes on."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    line = f"{proxy.endpoint} does not answer: the connection was lost (tried once)"
    found, died = None, 0
    while found is None:
        proxy.rules = [faults.Rule(faults.refused, ".*", after=died * (died + 1) // 2, times=-1)]
        try:
            found = OPERATIONS[operation](stage)
        except FaceshardsError as error:
            check_line(error, stage, line)
            died += 1
        proxy.rules = []
        if (stage.out / "dataset.json").exists():  # perhaps it died while the mark was removed
            assert list(verify(Manifest(stage.out))) == []
    assert died > 1
    assert found == stage.dataset.fingerprint or "build" not in operation


@pytest.mark.parametrize(
    "arguments", [("build", "--source", "none.rec", "--out", "none", "--exclude"), ("eval", "--set")]
)
def test_what_is_fetched_for_a_command_fails_alike(
    arguments: tuple[str, ...], bucket: StoredPath, proxy: FaultProxy
) -> None:
    proxy.add(faults.says(503, "SlowDown"), times=-1)
    (bucket / "set.bin").write_bytes(b"x")
    found = CliRunner().invoke(main, [*arguments, f"{bucket}/set.bin"])
    assert found.exit_code == 1
    said = f"Error: {bucket}/set.bin: {proxy.endpoint} says 503 SlowDown: made by the test (tried 2 times in "
    assert (found.stdout, found.stderr.startswith(said), found.stderr.count("\n")) == ("", True, 1)


# --- requests, one by one

CONTENT = bytes(range(251)) * 5000


@pytest.fixture
def content(bucket: StoredPath) -> StoredPath:
    """An object of several windows."""
    (bucket / "content").write_bytes(CONTENT)
    return bucket / "content"


@pytest.mark.parametrize("fault", PASSING)
def test_bytes_are_right_or_asked_for_again(fault: str, content: StoredPath, proxy: FaultProxy) -> None:
    rule = proxy.add(PASSING[fault])
    with StoredFile(content) as file:
        assert file.read_at(1000, 600_000) == CONTENT[1000:601_000]
        assert rule.seen == 1 + (fault != "slow")
        assert file.read_at(700_000, 600_000) == CONTENT[700_000:1_300_000]


@pytest.mark.parametrize("fault", ["shorter, and says so", "another range", "stalls in mid-body", "cut in mid-body"])
def test_wrong_bytes_are_never_given(fault: str, content: StoredPath, proxy: FaultProxy) -> None:
    proxy.add(PASSING[fault], times=-1)
    with StoredFile(content) as file, pytest.raises(StorageError, match=r"tried .*s\)$"):
        file.read_at(1000, 600_000)


@pytest.mark.parametrize("broken", [False, True])
def test_no_bytes_of_two_objects_are_mixed(broken: bool, content: StoredPath, proxy: FaultProxy) -> None:
    """It is replaced before a range is asked for, or within, when its answer breaks off in the middle."""

    def replaced(to: Any) -> None:
        answer = to.ask() if broken else None
        content.write_bytes(bytes(len(CONTENT)))
        if answer:
            to.say(answer, len(answer.body) // 2)
            to.reset()
        else:
            to.well()

    with StoredFile(content) as file:
        proxy.add(replaced)
        with pytest.raises(StorageError, match=f"^{content}: was replaced while it was read$"):
            file.read_at(1000, 600_000)


@pytest.mark.parametrize("fault", ["cut in mid-body", "shorter, and says so", "HTML", "429", "stalls in mid-body"])
def test_lists_are_whole(fault: str, bucket: StoredPath, proxy: FaultProxy) -> None:
    names = [f"{number:04}" for number in range(7)]
    for name in names:
        (bucket / "many" / name).write_bytes(b"")
    for listed in (StoredPath.tree, StoredPath.entries):
        proxy.add(PASSING[fault], path="list-type")
        assert [entry.name for entry, _ in listed(bucket / "many")] == names
    proxy.add(PASSING[fault], path="list-type")
    proxy.add(faults.says(403), method="HEAD", times=-1)  # to who may list, and not read
    assert not (bucket / "none").is_dir()


def test_a_list_goes_on_where_it_broke_off(
    bucket: StoredPath, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{number:04}" for number in range(120)]  # obstore gives them in fifties
    for name in names:
        (bucket / "many" / name).write_bytes(b"")
    plain, calls = requests._asked, []

    def breaking(place: Any, *more: Any) -> Any:
        calls.append(place)
        if len(calls) == 2:
            raise requests.PassingError(5, "broke off", str(place))
        return plain(place, *more)

    monkeypatch.setattr(requests, "_asked", breaking)
    assert [entry.name for entry, _ in (bucket / "many").tree()] == names


TOOK_EFFECT = {
    "answer lost": faults.lost,
    "500 when it was done": faults.says(500, "InternalError", done=True),
    "silent when it was done": lambda to: (to.ask(), faults.silent(to)),
}


@pytest.mark.parametrize("fault", TOOK_EFFECT)
def test_what_was_made_once_is_known_again(fault: str, bucket: StoredPath, proxy: FaultProxy) -> None:
    rule = proxy.add(TOOK_EFFECT[fault], method="PUT")
    (bucket / "one").write_bytes(b"mine", exclusive=True)
    assert rule.seen > 1  # the second one was told that it is there
    for data in (b"mine", b"other"):
        proxy.add(TOOK_EFFECT[fault], method="PUT")
        with pytest.raises(TakenError):
            (bucket / "one").write_bytes(data, exclusive=True)


@pytest.mark.parametrize("fault", TOOK_EFFECT)
def test_a_dataset_whose_publication_was_not_answered_is_published(fault: str, stage: Stage, proxy: FaultProxy) -> None:
    proxy.add(TOOK_EFFECT[fault], method="PUT", path="dataset.json")
    proxy.add(TOOK_EFFECT[fault], method="PUT", path=prefix.MARK)
    assert publish(stage) == stage.dataset.fingerprint


def sent_flipped(to: Any) -> None:
    body = bytearray(to.body)
    body[len(body) // 2] ^= 1
    to.body = bytes(body)
    to.well()


OF_UPLOADS: dict[str, tuple[Fault, str, str]] = {
    "no beginning": (faults.lost, "POST", "uploads"),
    "a part is lost": (faults.refused, "PUT", "partNumber=2"),
    "a part is not answered": (faults.lost, "PUT", "partNumber=1"),
    "a part is not taken": (faults.says(503, "SlowDown"), "PUT", "partNumber=2"),
    "a part is changed": (sent_flipped, "PUT", "partNumber=2"),
    "a part takes longer than an answer may": (
        lambda to: (to.proxy.ended.wait(2 * stores.READ_SECONDS), to.well()),
        "PUT",
        "partNumber=1",
    ),
    "the end is not taken": (faults.says(500, "InternalError"), "POST", "uploadId"),
    "the end is not answered": (faults.lost, "POST", "uploadId"),
    "the end was done": (faults.says(500, "InternalError", done=True), "POST", "uploadId"),
    "the end was done and forgotten": (faults.says(404, "NoSuchUpload", done=True), "POST", "uploadId"),
}


@pytest.mark.parametrize("fault", OF_UPLOADS)
def test_an_upload_is_whole(
    fault: str, bucket: StoredPath, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "_CHUNK", 5 << 20)
    (tmp_path / "file").write_bytes(CONTENT * 5)
    fails, method, path = OF_UPLOADS[fault]
    rule = proxy.add(fails, method=method, path=path)
    times = 1 if "longer" in fault else 2
    (bucket / "file").upload(tmp_path / "file", hashlib.sha256(CONTENT * 5).hexdigest())
    assert rule.seen == times or fault.endswith("forgotten")
    fetch(bucket / "file", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == CONTENT * 5


def test_an_upload_that_is_refused_leaves_nothing(
    bucket: StoredPath, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "_CHUNK", 5 << 20)
    (tmp_path / "file").write_bytes(CONTENT * 5)
    proxy.add(faults.says(403, "AccessDenied"), method="PUT", path="partNumber=2", times=-1)
    with pytest.raises(StorageError, match=rf"^{bucket}/file: access denied by {proxy.endpoint} \(AccessDenied\)"):
        (bucket / "file").upload(tmp_path / "file", "")
    assert not (bucket / "file").exists()
    assert [asked.method for asked in proxy.asked].count("DELETE") == 1  # of the parts that were there


def test_a_store_that_comes_back_is_waited_for(
    content: StoredPath, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes in the middle of an answer."""
    monkeypatch.delenv("AWS_MAX_ATTEMPTS")
    monkeypatch.setattr(stores, "PAUSES", (0.05, 1))
    proxy.add(lambda to: (to.say(to.ask(), 99), Timer(0.3, proxy.up).start(), proxy.down()))
    with StoredFile(content) as file:
        assert file.read_at(1000, 600_000) == CONTENT[1000:601_000]


def test_patience_ends(content: StoredPath, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_MAX_ATTEMPTS")
    monkeypatch.setattr(stores, "RETRY_SECONDS", 1)
    with StoredFile(content) as file:
        proxy.down()
        with pytest.raises(StorageError, match=rf"^{content}: {proxy.endpoint} does not answer: Connection refused"):
            file.read_at(1000, 600_000)


# --- bytes of the right number, and wrong


def build_flipped(stage: Stage, proxy: FaultProxy, form: str, within: str) -> Manifest:
    """Builds from the bucket; the first bytes of the source that a stage reads come with a bit changed."""
    left = [faults.flip]

    @contextmanager
    def around(name: str) -> Iterator[None]:
        if name == within and left:
            proxy.add(left.pop(), path="train.rec$")
        yield

    files, _ = find_files(stage.raw)
    execution = InProcess(1, None, PARTITION_BYTES, quiet=True, shuffle=form, around=around)
    return upload.build_at("tiny", files, stage.folder / "built", CONFIG, execution)


@pytest.mark.parametrize(("form", "within"), [("spill", "route"), ("direct", "write")])
def test_an_image_that_came_changed_is_read_again(form: str, within: str, stage: Stage, proxy: FaultProxy) -> None:
    assert build_flipped(stage, proxy, form, within).fingerprint == stage.dataset.fingerprint
    assert proxy.rules[0].seen > 1


def test_an_image_that_was_scanned_changed_is_said(stage: Stage, proxy: FaultProxy) -> None:
    line = rf"^{stage.raw}/train\.rec: record \d+ changed since it was scanned: .*; --restart scans it anew$"
    with pytest.raises(FaceshardsError, match=line):
        build_flipped(stage, proxy, "spill", "sign_partition")
    assert not (stage.folder / "built").exists()
    files, _ = find_files(stage.raw)
    execution = InProcess(1, None, PARTITION_BYTES, quiet=True)
    found = upload.build_at("tiny", files, stage.folder / "built", CONFIG, execution, restart=True)
    assert found.fingerprint == stage.dataset.fingerprint


def test_a_shard_that_came_changed_is_fetched_once_more(
    stage: Stage, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    whole = train(stage)
    reads = sum(asked.method == "GET" and asked.path.endswith("shard-00001.mindrecord") for asked in proxy.asked)
    shutil.rmtree(stage.folder / "cache")
    proxy.add(faults.flip, path="shard-00001.mindrecord$", after=reads - 1)  # the others are of its header
    with caplog.at_level(logging.WARNING):
        assert train(stage) == whole
    assert "shard-00001.mindrecord: its SHA-256 is not the manifest's; it is fetched once more" in caplog.text
    shutil.rmtree(stage.folder / "cache")
    proxy.add(faults.flip, path="shard-00001.mindrecord$", after=reads - 1, times=-1)
    with pytest.raises(StreamError, match=r"shard-00001\.mindrecord: changed since it was published"):
        train(stage)
    assert not list((stage.folder / "cache").glob("*.part"))

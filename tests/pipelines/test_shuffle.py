"""The two forms of the shuffle: the same bytes, and what a spill reads, keeps and says."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from benchmarks.in_process import InProcess
from faceshards.cli.plan import print_plan
from faceshards.errors import BuildError, ConfigError
from faceshards.files import bytes_text
from faceshards.reading import RegularFile
from faceshards.storage.location import StoredPath
from pipelines import shuffle
from pipelines.build import build
from pipelines.config import BuildConfig
from pipelines.plan import plan
from pipelines.runner import Execution
from pipelines.sources.find import find_files
from pipelines.stages import origins
from pipelines.stages import write as writing
from pipelines.workspace import work_folder
from tests.faceshards.cli.test_cli import refusal
from tests.faceshards.test_stored_dataset import upload
from tests.pipelines.build_fixtures import CONFIG, PARTITION_BYTES, digests, flip_bit, read_rec
from tests.recs import encode, write_im2rec


def built(source: Any, out: Path, form: str, config: BuildConfig = CONFIG, **more: Any) -> dict[str, str]:
    """Returns the digests of a dataset that is built in this process, in a form of the shuffle."""
    files, _ = find_files(*(source if isinstance(source, tuple) else (source,)))
    execution = InProcess(1, None, PARTITION_BYTES, quiet=True, shuffle=form, **more)
    build("tiny", files, out, config, execution)
    return digests(out)


@pytest.fixture(scope="module")
def faces(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of pictures, in a folder for each identity."""
    out = tmp_path_factory.mktemp("faces")
    for key, (label, image) in read_rec(tiny_source / "train.rec").items():
        folder = out / "ab"[label % 2] / f"p{label}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{key}.jpg").write_bytes(image)
    return out


@pytest.fixture(scope="module")
def tars(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures in two .tar files."""
    import webdataset

    out = tmp_path_factory.mktemp("tars")
    for number in range(2):
        with webdataset.TarWriter(str(out / f"{number}.tar"), compress=False) as writer:
            for path in sorted(faces.rglob("*.jpg"))[number::2]:
                writer.write({"__key__": path.stem, "jpg": path.read_bytes(), "cls": path.parent.name[1:]})
    return out


@pytest.mark.parametrize("kind", ["rec", "folder", "tar", "several"])
def test_both_forms_publish_the_same_bytes(kind, tiny_source, tiny_digests, faces, tars, tmp_path, monkeypatch):
    """Stretches and blocks are so small that there are many of each."""
    monkeypatch.setattr(origins, "_STRETCH", 20_000)
    monkeypatch.setattr(origins, "_HELD", 0)
    monkeypatch.setattr(origins, "_LEAST", 9000)
    source = {"rec": tiny_source, "folder": faces / "a", "tar": tars, "several": (faces / "a", faces / "b")}[kind]
    config = dataclasses.replace(CONFIG, labels="separate" if kind == "several" else CONFIG.labels, max_images=15)
    found = built(source, tmp_path / "spill", "spill", config)
    assert found == built(source, tmp_path / "direct", "direct", config)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["direct", "spill"]
    if kind == "rec":
        assert built(source, tmp_path / "tiny", "spill") == tiny_digests


# --- what is read


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .rec of 22 MB, of pictures that do not compress: so many that it takes several partitions."""
    rng = np.random.default_rng(4)
    images = []
    for label in range(76):
        for _ in range(8 if label % 2 else 7):
            coarse = cv2.resize(rng.uniform(0, 255, (6, 6, 3)), (112, 112), interpolation=cv2.INTER_CUBIC)
            picture = np.clip(coarse + rng.normal(0, 9, (112, 112, 3)), 0, 255).astype(np.uint8)
            images.append((float(label), encode(picture, ".png", cv2.IMWRITE_PNG_COMPRESSION, 0)))
    folder = tmp_path_factory.mktemp("large")
    write_im2rec(folder, images, "train")
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int] | None]:
    """What is asked of the store from now on: the range of each GET, None for a HEAD."""
    obstore = pytest.importorskip("obstore")
    found: list[tuple[int, int] | None] = []

    def noting(plain: Any) -> Any:
        def noted(*given: Any, **named: Any) -> Any:
            found.append(named.get("options", {}).get("range"))
            return plain(*given, **named)

        return noted

    for name in ("get", "head"):
        monkeypatch.setattr(obstore, name, noting(getattr(obstore, name)))
    return found


def test_a_source_in_a_bucket_is_read_twice_in_large_ranges(
    large: Path, bucket: StoredPath, tmp_path: Path, asked: list[tuple[int, int] | None]
) -> None:
    """Every other identity is dropped: 260 kB that nobody needs lie between those that stay."""
    stages: dict[str, list[tuple[int, int] | None]] = defaultdict(list)

    @contextmanager
    def around(stage: str) -> Iterator[None]:
        before = len(asked)
        yield
        stages[stage] += asked[before:]

    config = BuildConfig(shards=3, min_images=8)
    files, _ = find_files(upload(large, bucket / "large"))
    build("large", files, tmp_path / "out", config, InProcess(1, quiet=True, around=around))
    size = files[0].bytes
    assert size > 5 * (4 << 20)
    for stage in ("sign_partition", "route"):
        assert 2 < len(stages[stage]) <= size // (4 << 20) + 2  # the last partition is a rest
        ranges = [found for found in stages[stage] if found]
        assert ranges == sorted(ranges)
        assert sum(stop - start for start, stop in ranges) < size + len(ranges) * (200 << 10)
    assert all(stop <= start for (_, stop), (start, _) in pairwise(found for found in stages["route"] if found))
    assert stages["write"] == []
    files, _ = find_files(large)
    build("large", files, tmp_path / "local", config, InProcess(1, quiet=True))
    told = [digests(tmp_path / name) for name in ("out", "local")]
    for one in told:
        one.pop("dataset.json")  # says where the source lies
    assert told[0] == told[1]


def test_a_partition_is_read_at_once_and_a_shard_reads_one_stretch_of_each(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(origins, "_HELD", 0)
    monkeypatch.setattr(origins, "_LEAST", 9000)
    read: list[tuple[str, int, int]] = []
    taken = RegularFile._read

    def noted(self: RegularFile, offset: int, count: int) -> bytes:
        data = taken(self, offset, count)
        read.append((os.readlink(f"/proc/self/fd/{self._handle}"), offset, len(data)))
        return data

    stages: dict[str, list[list[tuple[str, int, int]]]] = defaultdict(list)

    @contextmanager
    def around(stage: str) -> Iterator[None]:
        read.clear()
        yield
        stages[stage].append(read.copy())

    monkeypatch.setattr(RegularFile, "_read", noted)
    built(tiny_source, tmp_path / "tiny", "spill", around=around)
    rec, at = str(tiny_source / "train.rec"), 0
    for reads in stages["route"]:  # a read for each partition, one behind the other
        ((name, offset, count),) = reads
        assert (name, at <= offset) == (rec, True)
        at = offset + count - 12  # what a record may have of header and padding
    assert len(stages["write"]) == CONFIG.shards
    for reads in stages["write"]:
        of_spills: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for name, offset, count in reads:
            assert not name.startswith(str(tiny_source))
            if name.endswith(".images"):
                of_spills[name].append((offset, offset + count))
        assert len(of_spills) > 3
        for places in of_spills.values():
            assert places == sorted(places)
            # A block begins with the first image that was not whole in the one before.
            assert all(start <= stop for (_, stop), (start, _) in pairwise(places))


# --- which form is taken

_MOUNTED = rb"""22 27 0:21 / /proc rw - proc proc rw
27 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
28 27 8:17 / /mnt/spinning\040disk rw master:2 - xfs /dev/sdb1 rw
29 27 0:40 / /mnt/nfs rw - nfs4 head:/export rw
30 29 0:41 / /mnt/nfs/shm rw - tmpfs tmpfs rw
31 27 0:42 / /mnt/s3fs rw - fuse.s3fs s3fs rw
32 27 0:43 / /data rw - overlay overlay rw
33 27 0:44 / /data rw - cifs //nas/data rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/a.rec", "ext4"),
        ("/mnt/spinning disk/a.rec", "xfs"),
        ("/mnt/spinning disk 2", "ext4"),
        ("/mnt/nfs", "nfs4"),
        ("/mnt/nfs/raw/a.rec", "nfs4"),
        ("/mnt/nfs/shm/a.rec", "tmpfs"),
        ("/mnt/s3fs/a.rec", "fuse.s3fs"),
        ("/data/a.rec", "cifs"),
    ],
)
def test_the_file_system_of_a_path_is_found(path: str, kind: str) -> None:
    found = shuffle._mount(path, _MOUNTED)
    assert found is not None
    assert found.kind == kind


@pytest.fixture
def disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /sys/dev/block of a test's own, in which all it knows of this machine is the disk of `tmp_path`."""
    monkeypatch.setattr(shuffle, "_MOUNTS", tmp_path / "mounts")
    monkeypatch.setattr(shuffle, "_DEVICES", tmp_path / "block")
    (tmp_path / "mounts").write_text(f"27 1 8:1 / {tmp_path} rw - ext4 /dev/sda1 rw\n")
    (tmp_path / "block").mkdir()
    return tmp_path


def disk(folder: Path, turns: bool) -> Path:
    (folder / "queue").mkdir(parents=True)
    (folder / "queue" / "rotational").write_text(f"{int(turns)}\n")
    return folder


@pytest.mark.parametrize("turns", [True, False])
@pytest.mark.parametrize("kind", ["whole", "partition", "lvm", "virtual"])
def test_a_disk_that_turns_is_known(disks: Path, kind: str, turns: bool) -> None:
    device = os.stat(disks).st_dev
    link = disks / "block" / f"{os.major(device)}:{os.minor(device)}"
    place = disk(disks / "devices" / ("virtio3" if kind == "virtual" else "ata1") / "sda", turns)
    if kind == "partition":
        (place / "sda1").mkdir()
        place = place / "sda1"
    if kind == "lvm":
        (place / "sda1").mkdir()
        upper = disk(disks / "devices" / "virtual" / "dm-0", False)
        (upper / "slaves").mkdir()
        (upper / "slaves" / "sda1").symlink_to(place / "sda1")
        place = upper
    link.symlink_to(place)
    (disks / "a.rec").touch()
    assert shuffle.is_slow(str(disks / "a.rec")) is (turns and kind != "virtual")


def test_what_is_not_known_is_fast(disks: Path) -> None:
    assert not shuffle.is_slow(str(disks))
    (disks / "mounts").unlink()
    assert not shuffle.is_slow(str(disks))
    (disks / "mounts").write_bytes(b"\xff\nnonsense - \n")
    assert not shuffle.is_slow(str(disks))


def test_memory_is_fast_a_bucket_slow_and_what_is_asked_for_is_taken(small_disk: Path) -> None:
    paths = [str(small_disk)]
    assert [shuffle.spills(form, paths) for form in shuffle.FORMS] == [False, False, True]
    paths.append("s3://bucket/train.rec")
    assert [shuffle.spills(form, paths) for form in shuffle.FORMS] == [True, False, True]


def test_another_form_is_refused(tiny_source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shuffle is 'random', and has to be one of auto, direct, spill"):
        Execution(shuffle="random")
    said = refusal("build", "--source", tiny_source, "--out", tmp_path / "out", "--shuffle", "random", code=2)
    assert "'--shuffle': 'random' is not one of 'auto', 'direct', 'spill'" in said


# --- what goes wrong


@pytest.fixture
def stopped(tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives a build that ends in an error when its second shard is written, and what is left of it."""

    def run(form: str) -> Path:
        plain = writing.write_shard

        def acting(path: Path, *given: Any, **named: Any) -> Any:
            if path.name == "shard-00001.mindrecord":
                raise BuildError("stopped")
            return plain(path, *given, **named)

        with monkeypatch.context() as patch:
            patch.setattr(writing, "write_shard", acting)
            with pytest.raises(BuildError, match="stopped"):
                built(tiny_source, tmp_path / "tiny", form)
        return work_folder(tmp_path / "tiny") / "routed"

    return run


def test_a_form_that_changed_is_said_and_goes_on(stopped, tiny_source, tiny_digests, tmp_path, caplog):
    def lines() -> list[str]:
        found = [record.message for record in caplog.records if record.name == "pipelines.build"]
        caplog.clear()
        return found[1:]  # the first is about the planted defects

    parts = len(list(stopped("direct").glob("*.arrow")))
    lines()
    routed = stopped("spill")
    assert lines() == [f"{parts} of {parts} partitions were routed without their images, and are once more"]
    assert len(list(routed.glob("*.images"))) == parts
    tables = {path: path.stat().st_mtime_ns for path in routed.glob("*.arrow")}
    stopped("direct")
    assert lines() == [f"the images of {parts} partitions were carried here; they are removed, and read anew"]
    assert {path: path.stat().st_mtime_ns for path in routed.iterdir()} == tables
    assert built(tiny_source, tmp_path / "tiny", "spill") == tiny_digests
    assert lines() == [f"{parts} of {parts} partitions were routed without their images, and are once more"]


@pytest.mark.parametrize("harm", ["bit", "short", "empty"])
def test_a_damaged_spill_is_found_and_made_anew(stopped, tiny_source, tiny_digests, tmp_path, harm):
    routed = stopped("spill")
    before = {path: path.stat().st_mtime_ns for path in routed.iterdir()}
    assert stopped("spill") == routed
    assert {path: path.stat().st_mtime_ns for path in routed.iterdir()} == before
    spilled = sorted(routed.glob("*.images"))[1]
    size = spilled.stat().st_size
    if harm == "bit":
        for byte in range(0, size, 2000):
            flip_bit(spilled, 8 * byte)
    else:
        os.truncate(spilled, {"short": size // 2, "empty": 0}[harm])
    said = (
        rf"{spilled}: damaged: the image of record \d+ is not the one that was read from the source; remove this file"
    )
    with pytest.raises(BuildError, match=said):
        built(tiny_source, tmp_path / "tiny", "spill")
    spilled.unlink()
    assert built(tiny_source, tmp_path / "tiny", "spill") == tiny_digests


@pytest.mark.parametrize("small_disk", [12], indirect=True)
def test_room_for_the_images_is_asked_for_first(tiny_source, tiny_digests, small_disk, capsys):
    """The set has 0.8 MB: a direct build needs 9.3 MB before it starts, a spill 10.1."""
    files, _ = find_files(tiny_source)
    (small_disk / "others").write_bytes(bytes(3_000_000))
    said = (
        r"disk/\.tiny\.building: 9\.\d MB free, the build needs about 10\.\d MB, 0\.\d+ MB of them to carry the "
        r"images; --shuffle direct needs none of these$"
    )
    with pytest.raises(BuildError, match=said):
        built(tiny_source, small_disk / "tiny", "spill")
    told = {
        form: plan("tiny", files, small_disk / "tiny", CONFIG, InProcess(1, quiet=True, shuffle=form))
        for form in ("direct", "spill")
    }
    assert told["direct"]["refused"] == []
    assert re.search(said.replace(r"/\.tiny\.building", ""), *told["spill"]["refused"])
    images = told["spill"]["image_bytes"]
    assert [told[form]["disk"]["spilled"] for form in told] == [0, images]
    assert told["spill"]["disk"]["work"] == told["direct"]["disk"]["work"] + images
    print_plan(told["spill"], False)
    line = f"{bytes_text(images)} until then for images on their way (--shuffle direct: none)"
    assert line in capsys.readouterr().out
    assert built(tiny_source, small_disk / "tiny", "direct") == tiny_digests

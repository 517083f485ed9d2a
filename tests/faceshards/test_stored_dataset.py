"""A dataset in a bucket is read as one on a disk: the same answers, the same refusals."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import faceshards
from faceshards.checksums import file_digest, sealed
from faceshards.cli.main import main
from faceshards.dataset import table_files
from faceshards.dataset.manifest import Manifest, ManifestError
from faceshards.dataset.schema import SCHEMAS
from faceshards.dataset.shard_images import images_of
from faceshards.errors import ShardError
from faceshards.formats.mindrecord.reader import Shard
from faceshards.formats.mindrecord.writer import write_shard
from faceshards.reading import content
from faceshards.storage.faults import StorageError
from faceshards.storage.location import StoredPath
from tests.fault_proxy import FaultProxy


def upload(folder: Path, place: StoredPath) -> StoredPath:
    """Returns a place after a folder's files were put there."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            (place / path.relative_to(folder)).upload(path, file_digest(path)[1])
    return place


def run(*arguments: object) -> str:
    """Returns what a command prints on stdout."""
    found = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.stdout


@pytest.fixture
def stored(tiny_dataset: Manifest, bucket: StoredPath) -> StoredPath:
    """The tiny dataset in a bucket, under a name that has to be quoted in requests."""
    return upload(tiny_dataset.path, bucket / "tiny set ü")


def test_each_command_says_the_same(tiny_dataset: Manifest, stored: StoredPath, tiny_source: Path) -> None:
    local = tiny_dataset.path
    row = tiny_dataset.table("dropped", ["sid"])["sid"][0].as_py()
    for arguments in (
        ["summary"],
        ["identities"],
        ["drops"],
        ["links"],
        ["conflicts"],
        ["conflicts", "--pairs"],
        ["shards"],
        ["image", 0],
        ["image", row],
        ["query", "SELECT reason, count(*) FROM dropped GROUP BY reason ORDER BY ALL"],
        ["query", "SELECT shard, sum(bytes), min(sid) FROM images GROUP BY shard ORDER BY shard"],
        ["verify", "--quiet"],
        ["verify", "--quiet", "--sample", "10%"],
        ["upgrade"],
    ):
        command, *more = arguments
        said = [run("manifest", command, path, *more, "--json") for path in (local, stored)]
        assert said[1].replace(json.dumps(str(stored)), json.dumps(str(local))) == said[0], command
    assert not json.loads(run("manifest", "diff", local, stored, "--json"))["differs"]


def asked_for(proxy: FaultProxy, place: StoredPath) -> Counter[str]:
    """Returns how often each object of a dataset was asked for since the last time, by its name in it."""
    names = [asked.path.partition(f"/{place.key}/")[2] for asked in proxy.asked]
    proxy.asked.clear()
    return Counter(names)


def test_each_table_is_asked_for_once(tiny_dataset: Manifest, stored: StoredPath, proxy: FaultProxy) -> None:
    tables = {name: tiny_dataset.files(name) for name in SCHEMAS}
    for arguments, names in (
        (["summary"], ["identities", "shards"]),
        (["identities"], ["identities"]),
        (["drops"], ["dropped"]),
        (["links"], ["identity_links"]),
        (["conflicts", "--pairs"], ["conflicts"]),
        (["shards"], ["shards"]),
        (["query", "SELECT count(*), min(phash) FROM images JOIN identities USING (label)"], ["images", "identities"]),
        (["query", "SELECT 1"], list(SCHEMAS)),
        (["image", "5"], ["dropped", "images", "conflicts"]),
        (["diff", tiny_dataset.path], ["images", "identities", "dropped"]),
    ):
        run("manifest", arguments[0], stored, *arguments[1:])
        wanted = ["dataset.json", *(file for name in names for file in tables[name])]
        assert asked_for(proxy, stored) == Counter(wanted), arguments


def test_an_image_costs_its_shard_two_requests(stored: StoredPath, proxy: FaultProxy, tmp_path: Path) -> None:
    run("manifest", "image", stored, 5, "--out", tmp_path / "5.jpg")
    asked = asked_for(proxy, stored)
    assert [count for name, count in asked.items() if name.startswith("shards/")] == [2]
    assert sum(asked.values()) == sum(1 for name in asked if not name.startswith("shards/")) + 2


def test_a_report_asks_for_single_images(
    tiny_dataset: Manifest, stored: StoredPath, proxy: FaultProxy, tmp_path: Path
) -> None:
    written = json.loads(run("manifest", "report", stored, "--out", tmp_path / "page.html", "--json"))
    asked = asked_for(proxy, stored)
    shards = [f"shards/{name}" for name in tiny_dataset.table("shards")["file"].to_pylist()]
    assert asked.pop("dataset.json") == 2  # with the date of its publication
    assert sum(asked[name] for name in shards) <= len(shards) + written["pictures"]
    assert {count for name, count in asked.items() if name not in shards} == {1}


def test_verify_reads_a_shard_twice_and_a_sample_of_it_by_images(
    tiny_dataset: Manifest, stored: StoredPath, proxy: FaultProxy
) -> None:
    shards = tiny_dataset.table("shards", ["file", "bytes"])
    run("manifest", "verify", stored, "--quiet")
    read = dict.fromkeys(shards["file"].to_pylist(), 0)
    for asked in proxy.asked:
        if (name := asked.path.rpartition("/")[2]) in read and asked.method == "GET":
            read[name] += asked.answered
    for name, size in zip(shards["file"].to_pylist(), shards["bytes"].to_pylist(), strict=True):
        assert read[name] < 2 * size + 3 * (64 << 10) + size // 10  # headers, labels and sids once more
    proxy.asked.clear()
    run("manifest", "verify", stored, "--quiet", "--sample", 3)
    asked = asked_for(proxy, stored)
    assert sum(asked[f"shards/{name}"] for name in read) <= len(read) + 3 * 3


def test_single_images_are_read_by_their_places(bucket: StoredPath, proxy: FaultProxy, tmp_path: Path) -> None:
    """Far from each other in 20 MB, each is a request of its own bytes; so is the header."""
    sizes = np.random.default_rng(0).integers(90_000, 110_000, 200)
    images = [bytes([number]) * size for number, size in enumerate(sizes.tolist())]
    local = tmp_path / "shard-00000.mindrecord"
    write_shard(local, images, sizes, np.arange(200), np.arange(200))
    (bucket / local.name).upload(local, "")
    proxy.asked.clear()
    rows = np.array([0, 3, 77, 78, 199])
    for path in (bucket / local.name, local):
        with Shard(path) as shard:
            assert shard.images(rows, sizes) == [images[row] for row in rows]
    assert [asked.method for asked in proxy.asked] == ["GET"] * 5  # 77 and 78 together
    assert sum(asked.answered for asked in proxy.asked) == (64 << 10) + sum(sizes[rows] + 8)
    sizes[3] += 1
    sizes[4] -= 1
    with (
        Shard(local) as shard,
        pytest.raises(ShardError, match=rf"row 3: no image of {sizes[3]} bytes, which the mani"),
    ):
        shard.images(rows, sizes)


def test_an_image_that_is_another_is_refused(tiny_dataset: Manifest, stored: StoredPath, tmp_path: Path) -> None:
    (row,) = tiny_dataset.table("images").slice(20, 1).to_pylist()
    shard = stored / "shards" / f"shard-{row['shard']:05d}.mindrecord"
    image = images_of(tiny_dataset, [row])[0]
    assert hashlib.sha256(image).digest() == row["sha256"]
    whole = (tiny_dataset.path / "shards" / shard.name).read_bytes()
    shard.write_bytes(whole.replace(image, image[:-1] + bytes([image[-1] ^ 1])))
    said = CliRunner().invoke(
        main, ["manifest", "image", str(stored), str(row["sid"]), "--out", str(tmp_path / "x.jpg")]
    )
    assert said.exit_code == 1
    assert said.stderr == f"Error: {shard}: row {row['row']}: the image's sha256 is not the manifest's\n"
    assert not (tmp_path / "x.jpg").exists()


def test_a_table_is_what_was_compared(stored: StoredPath, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small one stays in memory, as long as there is room; of a larger one no other version is read."""
    found, place = Manifest(stored), stored / "manifest" / "dropped.parquet"
    whole, rows = place.stat().st_size, found.table("dropped")
    place.write_bytes(b"x" * whole)
    assert found.table("dropped").equals(rows)
    with pytest.raises(ManifestError, match=r"dropped.parquet: changed since it was published"):
        Manifest(stored).table("dropped")

    for name, most in (("PIECE", 1000), ("_HELD", 1000)):
        with monkeypatch.context() as patch:
            patch.setattr(table_files, name, most)
            found, place = Manifest(stored), stored / "manifest" / "identities.parquet"
            first = found.table("identities")
            proxy.asked.clear()
            assert found.table("identities").equals(first)
            assert {asked.method for asked in proxy.asked} == {"GET"}
            data = content(place)
            place.write_bytes(b"x" * len(data))
            with pytest.raises(StorageError, match="was replaced while it was read"):
                found.table("identities")
            place.write_bytes(data)


def test_images_and_reports_are_the_same(tiny_dataset: Manifest, stored: StoredPath, tmp_path: Path) -> None:
    for name, path in (("local", tiny_dataset.path), ("stored", stored)):
        run("manifest", "image", path, 5, "--out", tmp_path / f"{name}.jpg")
    assert (tmp_path / "local.jpg").read_bytes() == (tmp_path / "stored.jpg").read_bytes()
    pages = {}
    for name, path in (("local", tiny_dataset.path), ("stored", stored)):
        written = json.loads(run("manifest", "report", path, "--out", tmp_path / name, "--json"))
        assert (written["pictures"] > 0, written["unread"]) == (True, 0)
        pages[name] = re.sub(r"Published [-0-9]+ [0-9:]+ UTC", "", (tmp_path / name).read_text())
    assert pages["stored"] == pages["local"]


def test_dropped_pictures_are_fetched_together(
    tiny_dataset: Manifest, tiny_source: Path, stored: StoredPath, proxy: FaultProxy, tmp_path: Path
) -> None:
    source = upload(tiny_source, stored.parent / "raw")
    info = json.loads(content(stored / "dataset.json"))
    (entry,) = info["sources"]
    here = {name: str(source / Path(entry[name]).name) for name in ("path", "index")}
    entry.update(here, mtime_ns=(source / "train.rec").stat().st_mtime_ns)
    (stored / "dataset.json").write_bytes(json.dumps(sealed(info)).encode())
    proxy.asked.clear()
    written = json.loads(run("manifest", "report", stored, "--out", tmp_path / "page.html", "--json"))
    assert (written["pictures"] > 50, written["unread"]) == (True, 0)
    asked = Counter(
        (asked.method, asked.path.rpartition("/")[2]) for asked in proxy.asked if f"/{source.key}/" in asked.path
    )
    assert asked.pop(("GET", "train.rec")) <= 4  # 0.7 MB
    assert asked == {("HEAD", "train.rec"): 1, ("HEAD", "train.idx"): 2, ("GET", "train.idx"): 1}


def test_python_opens_it(tiny_dataset: Manifest, stored: StoredPath) -> None:
    found = faceshards.open(str(stored))
    assert (found.fingerprint, len(found)) == (tiny_dataset.fingerprint, tiny_dataset.totals["kept"])
    assert found.images.to_table().equals(tiny_dataset.table("images"))
    assert found.image(5).encoded == faceshards.open(tiny_dataset.path).image(5).encoded
    assert faceshards.open(f"{stored}/dataset.json").path == stored
    with pytest.raises(faceshards.FaceshardsError, match=r"in a bucket: .*: name it by --cache \(in Python cache=\)"):
        faceshards.Stream(str(stored), 8)


def test_damage_is_found(tiny_dataset: Manifest, stored: StoredPath) -> None:
    table, shard = stored / "manifest" / "dropped.parquet", stored / "shards" / "shard-00001.mindrecord"
    whole = (tiny_dataset.path / "shards" / shard.name).read_bytes()
    shard.write_bytes(whole[:-1000] + bytes([whole[-1000] ^ 1]) + whole[-999:])
    table.write_bytes(b"x" * table.stat().st_size)
    (stored / "shards" / "stray.mindrecord").write_bytes(b"")
    (stored / "shards" / "shard-00002.mindrecord.db").unlink()
    said = CliRunner().invoke(main, ["manifest", "verify", str(stored), "--quiet"])
    assert said.exit_code == 1
    assert f"{table}: changed since it was published" in said.output
    assert f"{shard}: changed since it was published" in said.output
    assert f"{shard}: row " in said.output
    assert f"{stored}/shards/shard-00002.mindrecord.db: missing; the manifest lists it" in said.output
    assert f"{stored}/shards/stray.mindrecord: was not published with the dataset" in said.output
    refused = CliRunner().invoke(main, ["manifest", "drops", str(stored)])
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr.strip().endswith(
        f"{table}: changed since it was published: its SHA-256 is not dataset.json's"
    )


def test_nothing_there_is_said(bucket: StoredPath) -> None:
    for place, cause in (
        (bucket / "none", "no dataset published there (no dataset.json)"),
        (StoredPath("s3", "no-such-bucket", "x"), "no such bucket"),
    ):
        said = CliRunner().invoke(main, ["manifest", "summary", str(place)])
        assert said.exit_code == 1
        assert said.stderr.count("\n") == 1
        assert cause in said.stderr


def test_of_a_place_that_holds_several_it_is_said_which(bucket: StoredPath, tmp_path: Path) -> None:
    for place in (bucket, tmp_path):
        for name in ("b", "a/b", "c", "d"):
            (place / name).mkdir(parents=True)
            (place / name / "dataset.json").write_bytes(b"{}")
        said = CliRunner().invoke(main, ["manifest", "summary", str(place)])
        inner = ", ".join(str(place / name) for name in "bcd")
        assert said.output == (
            f"Error: {place}: no dataset published there (no dataset.json; datasets lie in it: {inner})\n"
        )


def test_an_older_one_is_upgraded(tiny_dataset: Manifest, stored: StoredPath) -> None:
    info = {name: value for name, value in tiny_dataset.info.items() if name != "sha256"}
    (stored / "dataset.json").write_bytes(json.dumps({**info, "schema_version": 1}).encode())
    run("manifest", "upgrade", stored)
    assert Manifest(stored).info == sealed(tiny_dataset.info)


def test_without_obstore_it_is_said_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(
        faceshards.FaceshardsError, match=r"needs obstore, which is not installed: pip install '.*\[s3\]'"
    ):
        faceshards.open("s3://faces/x")


def test_verification_sets_are_fetched(
    tiny_dataset: Manifest,
    stored: StoredPath,
    bucket: StoredPath,
    face_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (bucket / "orl.bin").upload(face_data / "orl" / "orl.bin", "")
    asked = ["manifest", "overlap", str(tiny_dataset.path), "--quiet", "--json", "--set"]
    there = json.loads(run(*asked, bucket / "orl.bin"))
    assert there == json.loads(run(*asked, face_data / "orl" / "orl.bin"))
    asked[2] = str(stored)
    assert json.loads(run(*asked, bucket / "orl.bin")) == {**there, "path": str(stored)}
    said = CliRunner().invoke(main, [*asked, str(bucket)])
    assert said.exit_code == 1
    assert f"{bucket}: no such object; of buckets one file is taken, not a folder of them" in said.output
    assert list(tmp_path.glob("faceshards-fetched-*")) == []

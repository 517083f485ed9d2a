"""One photograph: every name leads to its row, and what stands for it is followed to the end."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from faceshards.cli.main import main
from faceshards.dataset.manifest import Manifest
from faceshards.dataset.schema import SCHEMAS
from faceshards.errors import FaceshardsError
from faceshards.inspection.photograph import photograph
from tests.pipelines.build_fixtures import flip_bit, read_rec, rewrite_info


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["manifest", "image", *map(str, arguments)])


def dropped_row(sid: int, reason: str, representative: int | None, source: str = "a.rec") -> dict:
    distance = None if representative is None else 0
    row = {"sid": sid, "source": source, "key": f"k{sid}", "label_original": "0", "reason": reason, "detail": None}
    return {**row, "representative": representative, "distance": distance}


def image_row(sid: int, shard: int, row: int, source: str = "a.rec", key: str = "") -> dict:
    sha = hashlib.sha256(str(sid).encode()).digest()
    row = {"sid": sid, "source": source, "key": key or f"k{sid}", "label_original": "0", "label": 0, "row": row}
    return {**row, "shard": shard, "sha256": sha, "phash": sha, "bytes": 1, "height": 1, "width": 1}


DROPPED = [
    dropped_row(1, "near_duplicate", 2),
    dropped_row(2, "max_images", None),
    dropped_row(4, "exact_duplicate", 3),
    dropped_row(5, "near_duplicate", 4),
    dropped_row(6, "label_conflict", 7),
    dropped_row(7, "label_conflict", 6),
    dropped_row(8, "exact_duplicate", 6),
    dropped_row(9, "near_duplicate", 3),
]
IMAGES = [
    [image_row(12, 0, 0), image_row(0, 0, 1, key="twice")],
    [image_row(3, 1, 0), image_row(11, 1, 1, "b.rec", "twice"), image_row(10, 1, 2, "b.rec", "b.rec:x")],
]


@pytest.fixture(scope="module")
def tables(tiny_dataset: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 13 records in two files, in which records stand for each other in every way."""
    out = tmp_path_factory.mktemp("tables") / "set"
    shutil.copytree(tiny_dataset.path, out, ignore=shutil.ignore_patterns("*.mindrecord*", "part-*"))
    for name, rows in {
        "dropped": DROPPED,
        **{f"images.parquet/part-0000{i}": part for i, part in enumerate(IMAGES)},
    }.items():
        table = pa.Table.from_pylist(rows, SCHEMAS[name.partition(".")[0]])
        pq.write_table(table, out / "manifest" / f"{name}.parquet", row_group_size=2)

    def change(info: dict) -> None:
        info["totals"]["scanned"] = 13
        info["sources"] = [{**info["sources"][0], "name": name} for name in ("a.rec", "b.rec")]

    info = json.loads((out / "dataset.json").read_text())
    parts = [name for name in info["files"] if "/part-" in name]
    info["files"] = {name: entry for name, entry in info["files"].items() if name not in parts[2:]}
    (out / "dataset.json").write_text(json.dumps(info))
    rewrite_info(out, change)
    return out


@pytest.mark.parametrize(
    ("sid", "stands", "kept", "duplicates"),
    [
        (0, [], 0, []),
        (1, [2], None, []),
        (2, [], None, [1]),
        (3, [], 3, [4, 5, 9]),
        (4, [3], 3, [5, 9]),
        (5, [4, 3], 3, [9]),
        (6, [7], None, [8]),
        (7, [6], None, [8]),
        (8, [6, 7], None, []),
    ],
)
def test_what_stands_for_a_record(tables: Path, sid: int, stands: list, kept: int | None, duplicates: list) -> None:
    one = photograph(Manifest(tables), str(sid))
    assert one.row["sid"] == sid
    assert [row["sid"] for row in one.stands] == stands
    assert one.kept_sid == kept
    assert one.duplicates["sid"].to_pylist() == duplicates
    (said,) = json.loads(call(tables, sid, "--json").stdout)
    assert (said["kept_sid"], [row["sid"] for row in said["duplicates"]]) == (kept, duplicates)
    assert [row["sid"] for row in said["stands_for_it"]] == stands
    lines = [line.split() for line in call(tables, sid).stdout.splitlines()]
    assert ["duplicates", str(len(duplicates))] in lines


def test_names(tables: Path) -> None:
    found = Manifest(tables)
    for row in (row for part in IMAGES for row in part):
        digits = row["sha256"].hex()
        for name in (digits, digits.upper(), digits[:8], digits[:9], f"{row['source']}:{row['key']}"):
            assert photograph(found, name).row == row
    for name, sid in {"k3": 3, "k4": 4, "a.rec:k4": 4, "b.rec:x": 10, "a.rec:twice": 0}.items():
        assert photograph(found, name).row["sid"] == sid
    with pytest.raises(
        FaceshardsError, match=r"'twice' means 2 records: a.rec:twice \(sid 0\), b.rec:twice \(sid 11\)"
    ):
        photograph(found, "twice")
    for name in ("b.rec:k3", "c.rec:k3", "k", "k33"):
        with pytest.raises(FaceshardsError, match=f"'{name}' is no sid"):
            photograph(found, name)


def test_a_prefix_of_two_checksums(tables: Path, tmp_path: Path) -> None:
    out = shutil.copytree(tables, tmp_path / "set")
    path = out / "manifest" / "images.parquet" / "part-00001.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[1]["sha256"] = IMAGES[0][0]["sha256"][:31] + bytes([IMAGES[0][0]["sha256"][31] ^ 1])
    pq.write_table(pa.Table.from_pylist(rows, SCHEMAS["images"]), path)
    rewrite_info(out)
    digits = IMAGES[0][0]["sha256"].hex()
    assert photograph(Manifest(out), digits).row["sid"] == 12
    with pytest.raises(FaceshardsError, match=rf"sha256 {digits[:63]} means 2 records: .*\(sid 12\), .*\(sid 11\)"):
        photograph(Manifest(out), digits[:63])


def test_what_is_said_was_compared(tiny_dataset: Manifest, tmp_path: Path) -> None:
    """A row of a damaged file is not given; that a row is nowhere is not said beside a damaged file."""
    out = shutil.copytree(tiny_dataset.path, tmp_path / "copy")
    part = out / "manifest" / "images.parquet" / "part-00001.parquet"
    inside, outside = (
        pq.read_table(part.with_name(name))["sid"][0].as_py() for name in (part.name, "part-00002.parquet")
    )
    hashes = pq.read_metadata(part).row_group(0).column(SCHEMAS["images"].get_field_index("phash"))
    flip_bit(part, 8 * (hashes.data_page_offset + hashes.total_compressed_size // 2))  # no name is looked for there
    line = f"{part}: changed since it was published: its SHA-256 is not dataset.json's"
    for name in (inside, "no-such-key"):
        result = call(out, name)
        assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"Error: {line}\n")
    assert call(out, outside).stderr == ""
    part.write_bytes(part.read_bytes()[:-1])
    assert f"{part}: {part.stat().st_size} bytes, dataset.json says" in call(out, outside).stderr
    part.unlink()
    assert f"{part}: missing; dataset.json lists it" in call(out, outside).stderr


def test_dropped_records_come_back_from_their_source(tiny_source: Path, tiny_dataset: Manifest, tmp_path: Path) -> None:
    want = read_rec(tiny_source / "train.rec")  # by MXNet
    rows = tiny_dataset.table("dropped").to_pylist()
    some = {(row["reason"], want[int(row["key"])][1] == b""): row for row in rows}  # one of each
    assert len(some) > len(tiny_dataset.totals["dropped"])
    reasons = set()
    for row in some.values():
        out = tmp_path / f"{row['sid']}.jpg"
        result = call(tiny_dataset.path, row["sid"], "--out", out)
        if image := want[int(row["key"])][1]:
            assert out.read_bytes() == image, result.stderr
            reasons.add(row["reason"])
        else:
            assert f"record {row['key']} at byte" in result.stderr
            assert f"(sid {row['sid']}, dropped as undecodable, is in the source only)" in result.stderr
            assert (result.exit_code, len(result.stderr.splitlines()), out.exists()) == (1, 1, False)
    assert reasons == set(tiny_dataset.totals["dropped"])


def test_a_source_that_is_gone_or_changed(tiny_source: Path, tiny_dataset: Manifest, tmp_path: Path) -> None:
    out = shutil.copytree(tiny_dataset.path, tmp_path / "copy")
    rec = shutil.copy(tiny_source / "train.rec", tmp_path / "train.rec")
    row = tiny_dataset.table("dropped").to_pylist()[0]
    rewrite_info(out, lambda info: info["sources"][0].update(path=str(tmp_path / "gone.rec")))
    for change, cause in {
        tmp_path / "gone.rec": "No such file or directory",
        tmp_path / "train.rec": "changed since it was scanned",
    }.items():
        rewrite_info(out, lambda info: info["sources"][0].update(path=str(change)))  # noqa: B023
        result = call(out, row["sid"], "--out", tmp_path / "face.jpg")
        assert result.stderr.startswith(f"Error: {change}: {cause} (sid {row['sid']}, dropped as {row['reason']}, ")
        assert (result.exit_code, result.stdout, (tmp_path / "face.jpg").exists()) == (1, "", False)
    assert rec.exists()


def test_an_exact_copy_is_compared(tiny_dataset: Manifest, tmp_path: Path) -> None:
    """Where the manifest knows a dropped record's bytes, what the source has now is held against them."""
    row = next(row for row in tiny_dataset.table("dropped").to_pylist() if row["reason"] == "exact_duplicate")
    out = shutil.copytree(tiny_dataset.path, tmp_path / "copy")
    source = tiny_dataset.info["sources"][0]
    other = tmp_path / "train.idx"
    lines = Path(source["index"]).read_text().splitlines()
    places = dict(line.split("\t") for line in lines)
    places[row["key"]] = places["1"]
    other.write_text("".join(f"{key}\t{at}\n" for key, at in places.items()))
    rewrite_info(out, lambda info: info["sources"][0].update(index=str(other)))
    result = call(out, row["sid"], "--out", tmp_path / "face.jpg")
    assert f"record {row['key']} changed since it was scanned: its sha256 is another" in result.stderr
    assert not (tmp_path / "face.jpg").exists()

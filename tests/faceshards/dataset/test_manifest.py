"""What is read of a published dataset is what was published, or it is refused with the file's name."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import faceshards
from faceshards.cli.main import main
from faceshards.dataset.manifest import Manifest, ManifestError
from faceshards.dataset.schema import SCHEMAS
from faceshards.dataset.upgrade import upgrade
from faceshards.dataset.verify import verify
from tests.pipelines.build_fixtures import digests, flip_bit, rewrite_info


@pytest.fixture
def copy(tiny_dataset: Manifest, tmp_path: Path) -> Path:
    """The folder of a dataset that may be damaged."""
    return shutil.copytree(tiny_dataset.path, tmp_path / "copy")


@pytest.fixture
def older(copy: Path) -> Path:
    """The folder of a dataset as earlier releases wrote it."""
    rewrite_info(copy, schema=1)
    return copy


def test_the_checksum_of_dataset_json_is_of_canonical_json(tiny_dataset: Manifest) -> None:
    content = json.loads((tiny_dataset.path / "dataset.json").read_text())
    said = content.pop("sha256")
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    assert said == hashlib.sha256(canonical.encode()).hexdigest()
    assert content["schema_version"] == 2


def test_no_flipped_bit_of_dataset_json_passes(copy: Path) -> None:
    file = copy / "dataset.json"
    whole, want = file.read_bytes(), Manifest(copy).info
    refused = 0
    for bit in random.Random(0).sample(range(8 * len(whole)), 200):
        flip_bit(file, bit)
        try:
            assert Manifest(copy).info == want  # a blank between two words may be another
        except ManifestError as error:
            assert str(error).startswith(str(copy))  # noqa: PT017 - nearly all raise
            refused += 1
        file.write_bytes(whole)
    assert refused > 100


@pytest.mark.parametrize("table", SCHEMAS)
def test_no_flipped_bit_of_a_table_passes(table: str, copy: Path) -> None:
    dice = random.Random(table)
    files = [copy / name for name in Manifest(copy).files(table)]
    for _ in range(20):
        file = dice.choice(files)
        whole = file.read_bytes()
        flip_bit(file, dice.randrange(8 * len(whole)))
        found = faceshards.open(copy)
        line = f"{file}: changed since it was published: its SHA-256 is not dataset.json's"
        for read in (found.dataset, found.table, found.count, found.batches):
            with pytest.raises(ManifestError) as error:
                list(read(table))
            assert str(error.value) == line
        file.write_bytes(whole)
    assert found.table(table).equals(Manifest(copy).table(table))


def test_a_file_that_changes_later_is_looked_at_again(copy: Path) -> None:
    found = Manifest(copy)
    path = copy / "manifest" / "shards.parquet"
    before = found.table("shards")
    pq.write_table(before.slice(1), path)
    with pytest.raises(ManifestError, match=r"shards.parquet: \d+ bytes, dataset.json says \d+"):
        found.table("shards")
    path.unlink()
    with pytest.raises(ManifestError, match=r"shards.parquet: missing; dataset.json lists it"):
        found.table("shards")


def test_files_that_nobody_published_are_not_read(copy: Path) -> None:
    parts = copy / "manifest" / "images.parquet"
    want = Manifest(copy).table("images")
    shutil.copy(parts / "part-00000.parquet", parts / "part-00099.parquet")
    (parts / "part-00001 (copy).parquet").write_bytes(b"none")
    assert Manifest(copy).table("images").equals(want)
    assert Manifest(copy).table("images", shard=1).equals(want.filter(want["shard"].to_numpy() == 1))
    rewrite_info(copy, lambda info: info["files"].pop("manifest/images.parquet/part-00001.parquet"))
    with pytest.raises(ManifestError, match=r"dataset.json lists no such table for shard 1"):
        Manifest(copy).table("images", shard=1)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda info: info["files"].update({"manifest/shards.parquet": {}}), "damaged: 'bytes'"),
        (lambda info: info["files"].update({"manifest/shards.parquet": None}), "damaged: 'NoneType' object"),
        (lambda info: info.update(files=[]), "damaged: files is no dict"),
        (lambda info: info["totals"].update(kept="many"), "damaged: one of the totals"),
    ],
)
def test_a_dataset_json_of_another_shape(change, line: str, copy: Path) -> None:
    rewrite_info(copy, change)
    with pytest.raises(ManifestError, match=line):
        Manifest(copy)


def test_one_image_is_compared_too(copy: Path, tmp_path: Path) -> None:
    row = Manifest(copy).table("images").to_pylist()[7]
    out = tmp_path / "face.jpg"
    command = ["manifest", "image", str(copy), str(row["sid"]), "--out", str(out)]
    assert CliRunner().invoke(main, command).exit_code == 0
    shard = copy / "shards" / f"shard-{row['shard']:05d}.mindrecord"
    place = shard.read_bytes().index(out.read_bytes())
    out.unlink()
    flip_bit(shard, 8 * (place + row["bytes"] // 2))
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert result.stderr == f"Error: {shard}: row {row['row']}: the image's sha256 is not the manifest's\n"
    assert not out.exists()


# Schema 1.


def test_schema_1_is_read_with_one_warning(older: Path, tiny_dataset: Manifest, caplog) -> None:
    found = Manifest(older)
    assert caplog.messages == [
        f"{older}: of schema 1, whose dataset.json has no checksum of its own; "
        f"'faceshards manifest upgrade {older}' gives it one"
    ]
    assert found.fingerprint == tiny_dataset.fingerprint
    assert found.table("images").equals(tiny_dataset.table("images"))
    flip_bit(older / "manifest" / "identities.parquet", 999)
    with pytest.raises(ManifestError, match=r"identities.parquet: changed since it was published"):
        found.table("identities")


def test_upgrade_touches_dataset_json_alone(older: Path, tiny_dataset: Manifest, tiny_digests, caplog) -> None:
    said = CliRunner().invoke(main, ["manifest", "upgrade", str(older)])
    assert (said.exit_code, said.stderr, caplog.messages) == (0, "", [])
    assert said.stdout == f"{older}: of schema 2 now, with the same tables, shards and fingerprint\n"
    assert digests(older) == tiny_digests
    assert Manifest(older).fingerprint == tiny_dataset.fingerprint
    again = CliRunner().invoke(main, ["manifest", "upgrade", str(older), "--json"])
    assert json.loads(again.stdout)["upgraded"] is False
    assert digests(older) == tiny_digests


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda out: flip_bit(out / "manifest/conflicts.parquet", 700), "conflicts.parquet: changed since"),
        (lambda out: (out / "manifest/dropped.parquet").unlink(), "dropped.parquet: missing"),
        (lambda out: total(out, identities=13), "12 identities with images, not 13"),
        (lambda out: total(out, shards=3), "4 shards, not 3"),
        (lambda out: total(out, conflicts=1), "rows in conflicts, not 1"),
        (lambda out: rewrite_info(out, lambda info: info.update(fingerprint="0" * 64), schema=1), "the fingerprint"),
        (lambda out: rewrite_info(out, lambda info: info["files"].clear(), schema=1), "lists no such table"),
    ],
    ids=["flipped", "gone", "identities", "shards", "conflicts", "fingerprint", "no files"],
)
def test_upgrade_vouches_for_no_damage(damage, line: str, older: Path) -> None:
    damage(older)
    before = digests(older)
    said = CliRunner().invoke(main, ["manifest", "upgrade", str(older)])
    assert said.exit_code == 1
    assert line in said.stderr
    assert str(older) in said.stderr
    assert said.stderr.count("\n") == 1
    assert digests(older) == before


def total(out: Path, **values: int) -> None:
    rewrite_info(out, lambda info: info["totals"].update(values), schema=1)


KILL = """
import os, signal, sys
from pathlib import Path
from faceshards.dataset.upgrade import upgrade

def kill(number):
    os.kill(os.getpid(), signal.SIGKILL)

real = os.{function}
os.{function} = {act}
upgrade(Path(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "act", "schema"),
    [
        ("fsync", "kill", 1),  # the new one is written, under another name
        ("replace", "lambda *names: (real(*names), kill(0))", 2),
    ],
)
def test_an_upgrade_that_is_killed(function: str, act: str, schema: int, older: Path, tiny_digests) -> None:
    done = subprocess.run([sys.executable, "-c", KILL.format(function=function, act=act), str(older)])
    assert done.returncode == -signal.SIGKILL
    assert Manifest(older).schema_version == schema
    assert [finding for finding in verify(Manifest(older)) if not finding.foreign] == []  # the other name is
    upgrade(older)
    assert digests(older) == tiny_digests

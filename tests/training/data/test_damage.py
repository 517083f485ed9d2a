"""Damage in a dataset never trains: tables are compared before they are read, shards as `check_shards` says."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from faceshards.cli.main import main
from faceshards.dataset.manifest import Manifest, ManifestError
from tests.pipelines.build_fixtures import flip_bit, rewrite_info
from tests.training.runs import SETTINGS, arguments, finish, start, train
from training.data.layout import Layout, StreamError
from training.data.stream import Stream


@pytest.fixture(scope="module")
def copy(data, tmp_path_factory) -> Path:
    """The folder of a dataset that every test damages and mends."""
    return shutil.copytree(data.path, tmp_path_factory.mktemp("damage") / "copy")


def label_bits(part: Path) -> range:
    """Returns the bits of the pages of column `label` in a part of `images`, as the Parquet footer places them."""
    group = pq.ParquetFile(part).metadata.row_group(0)
    column = next(group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == "label")
    first = column.dictionary_page_offset or column.data_page_offset
    return range(8 * first, 8 * (first + column.total_compressed_size))


def refusal(copy: Path, recipe: Path, *options: str) -> str:
    """Returns the one line with which a plan is refused."""
    said = CliRunner().invoke(
        main, ["train", str(recipe), "--data", str(copy), "--out", str(recipe.parent / "run"), "--dry-run", *options]
    )
    assert said.exit_code == 1, said.output
    assert said.stdout == ""
    assert said.stderr.count("\n") == 1
    return said.stderr.strip()


@pytest.mark.parametrize(("table", "flips"), [("images", 20), ("shards", 10)])
def test_no_flip_of_a_table_trains(table: str, flips: int, copy: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(json.dumps(SETTINGS))
    dice = random.Random(flips)
    files = [copy / name for name in Manifest(copy).files(table)]
    for number in range(flips):
        file = dice.choice(files)
        whole = file.read_bytes()
        flip_bit(file, dice.choice(label_bits(file) if table == "images" else range(8 * len(whole))))
        line = f"{file}: changed since it was published: its SHA-256 is not dataset.json's"
        assert refusal(copy, recipe) == f"Error: {line}"
        # A rank looks for itself, at what it reads.
        found = Manifest(copy)
        rank = files.index(file) // 2 if table == "images" else number % 4
        with pytest.raises(ManifestError) as error:
            Stream(found, Layout(found, 4, 16), rank, check_shards=False)
        assert str(error.value) == line
        file.write_bytes(whole)


def test_a_rank_reads_the_parts_of_its_own_shards_only(copy: Path) -> None:
    other = copy / "manifest" / "images.parquet" / "part-00000.parquet"
    whole = other.read_bytes()
    flip_bit(other, 5000)
    found = Manifest(copy)
    Stream(found, Layout(found, 4, 16), 3, threads=1).close()
    other.write_bytes(whole)


def test_damage_of_schema_1_is_refused_too(copy: Path, tmp_path: Path) -> None:
    older = shutil.copytree(copy, tmp_path / "older")
    rewrite_info(older, schema=1)
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(json.dumps(SETTINGS))
    part = older / "manifest" / "images.parquet" / "part-00003.parquet"
    flip_bit(part, label_bits(part)[77])
    assert refusal(older, recipe).endswith(
        "part-00003.parquet: changed since it was published: its SHA-256 is not dataset.json's"
    )


# Shards. Their last bits are a row's number and label as MindRecord keeps them, which this stream has from the tables.


@pytest.fixture
def spoilt(copy: Path):
    """A dataset whose last shard has a flipped bit that only its checksum shows; and the shard."""
    shard = copy / "shards" / "shard-00007.mindrecord"
    whole = shard.read_bytes()
    flip_bit(shard, 8 * len(whole) - 1)
    yield Manifest(copy), shard
    shard.write_bytes(whole)


def epoch(data: Manifest, **options) -> list:
    stream = Stream(data, Layout(data, 1, 16), threads=1, **options)
    try:
        return list(stream.batches(0))
    finally:
        stream.close()


def test_an_epoch_of_a_damaged_shard_does_not_end(spoilt) -> None:
    data, shard = spoilt
    line = f"{shard}: changed since it was published: its SHA-256 is not the manifest's"
    with pytest.raises(StreamError) as error:
        epoch(data)  # beside it is the default
    assert str(error.value) == line
    with pytest.raises(StreamError) as error:
        Stream(data, Layout(data, 1, 16), check_shards=True)
    assert str(error.value) == line
    assert len(epoch(data, check_shards=False)) == Layout(data, 1, 16).steps_per_epoch
    # A rank looks at its own shards.
    first = Stream(data, Layout(data, 2, 16), 0, threads=1)
    assert len(list(first.batches(0))) == Layout(data, 2, 16).steps_per_epoch
    first.close()


def test_the_check_changes_no_batch(data) -> None:
    want = epoch(data, check_shards=False, augment=True)
    for check in ("background", True):
        got = epoch(data, check_shards=check, augment=True)
        for (images, labels), (others, theirs) in zip(want, got, strict=True):
            np.testing.assert_array_equal(images, others)
            np.testing.assert_array_equal(labels, theirs)


def test_other_checks_are_refused(data) -> None:
    with pytest.raises(StreamError, match="check_shards 'later' is not one of 'background', True, False"):
        Stream(data, Layout(data, 1, 16), check_shards="later")


@pytest.mark.parametrize("check", ["background", True])
def test_no_checkpoint_of_a_damaged_shard(spoilt, tmp_path: Path, check: bool | str) -> None:
    data, shard = spoilt
    out = tmp_path / "run"
    result = train(data.path, out, check_shards=check, checkpoint_steps=1)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        f"Error: {shard}: changed since it was published: its SHA-256 is not the manifest's"
    )
    assert not list(out.glob("checkpoints/*"))
    assert not (out / "result.json").exists()


@pytest.mark.slow
def test_damage_on_one_rank_ends_all(spoilt, tmp_path: Path) -> None:
    data, shard = spoilt
    out = tmp_path / "run"
    code, said, errors = finish(start(data.path, out, "--devices", "2", checkpoint_steps=1))
    assert (code, said) == (1, "")
    assert errors.splitlines()[-1].endswith(
        f"{shard}: changed since it was published: its SHA-256 is not the manifest's"
    )
    assert not list(out.glob("checkpoints/*"))


def test_the_plan_says_what_is_compared(data, tmp_path: Path) -> None:
    lines = {}
    for check in ("background", True, False):
        options = arguments(data.path, tmp_path / "run", "--dry-run", "--devices", "2", check_shards=check)
        told = CliRunner().invoke(main, ["train", *options]).stdout.splitlines()
        (lines[check],) = (line for line in told if line.startswith("compared with their checksums: "))
    assert all(line.startswith("compared with their checksums: the dataset's tables; ") for line in lines.values())
    assert "shards on each rank, beside the first epoch and before any checkpoint" in lines["background"]
    assert "shards on each rank, before the first step" in lines[True]
    assert "no shards" in lines[False]

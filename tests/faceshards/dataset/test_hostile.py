"""Datasets made to do harm: whoever reads one says a line of what is wrong, and no name reaches the terminal raw."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from faceshards.cli.main import main
from faceshards.dataset.manifest import Manifest, ManifestError
from faceshards.formats import json_files, pickles
from tests.pipelines.build_fixtures import rewrite_info


@pytest.fixture
def copy(tiny_dataset: Manifest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_dataset.path, tmp_path / "copy"))


def said(*arguments: object) -> tuple[int, str]:
    """Returns exit code and all that a command prints; a traceback would be an exception."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.mark.parametrize(
    "name", ["a\0b", "\ud800", "../../etc/passwd", "/etc/passwd", "", "manifest/", "a\x1b[2Jb", "."]
)
def test_a_name_that_no_file_in_a_dataset_has(copy: Path, name: str) -> None:
    rewrite_info(copy, lambda info: info["files"].update({name: {"bytes": 1, "sha256": "0" * 64}}))
    for command in ("summary", "verify"):
        code, told = said("manifest", command, copy)
        assert code == 1
        assert re.search(r"^Error: .*dataset.json: damaged: files: .* is no path of a file in the dataset$", told, re.M)
        assert not set(told) & {"\0", "\x1b"}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda info: info["files"].update({"manifest/shards.parquet": 7}), "damaged: 'int' object"),
        (lambda info: info["files"].update({"manifest/shards.parquet": "bytes"}), "damaged: string indices"),
        (
            lambda info: info["files"]["manifest/shards.parquet"].update(bytes=1.5),
            "damaged: files: manifest/shards.parquet has no size or checksum",
        ),
        (
            lambda info: info["files"]["manifest/shards.parquet"].update(sha256=None),
            "damaged: files: manifest/shards.parquet has no size or checksum",
        ),
        (
            lambda info: info["totals"]["dropped"].update(missing="1"),
            "damaged: the total dropped is no dict of integers",
        ),
        (lambda info: info["warnings"].append(7), "damaged: a warning is no text"),
        (lambda info: info.update(sources=[{}]), "damaged: sources: one has no name or path"),
    ],
)
def test_an_entry_that_is_none(copy: Path, change, line: str) -> None:
    rewrite_info(copy, change)
    for command in ("summary", "verify"):
        code, told = said("manifest", command, copy)
        assert (code, len(told.splitlines())) == (1, 1)
        assert line in told


def test_a_dataset_json_that_would_fill_the_memory(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = copy / "dataset.json"
    for text, line in (
        ("[" * 100_000, "nested too deeply"),
        ("[" + "[]," * 9000 + "[]]", "would become more than twice"),
    ):
        monkeypatch.setattr(json_files, "SPARE", pickles.SPARE if line.startswith("nested") else 1 << 20)
        file.write_text(text)
        with pytest.raises(ManifestError, match=f"damaged: .*{line}"):
            Manifest(copy)
    with open(file, "wb") as sparse:
        sparse.truncate(json_files.LARGEST + 1)
    with pytest.raises(ManifestError, match="damaged: more than 16 MiB of JSON"):
        Manifest(copy)


def rewritten(copy: Path, table: str, column: str, values: pa.Array) -> None:
    path = copy / "manifest" / f"{table}.parquet"
    rows = pq.read_table(path)
    pq.write_table(rows.set_column(rows.column_names.index(column), column, values), path)
    rewrite_info(copy)


def texts(rows: int, text: bytes) -> pa.Array:
    """Returns an array of texts that are any bytes: Arrow does not look at them."""
    as_bytes = pa.array([text] * rows, pa.binary())
    return pa.Array.from_buffers(pa.string(), rows, as_bytes.buffers())


@pytest.mark.parametrize(
    ("table", "column", "command"),
    [("dropped", "key", "drops"), ("shards", "file", "verify"), ("identities", "label_original", "verify")],
)
def test_text_that_is_not_utf8(copy: Path, table: str, column: str, command: str) -> None:
    rows = len(Manifest(copy).table(table))
    assert rows
    rewritten(copy, table, column, texts(rows, b"a\xffb"))
    where = re.escape(f"{copy}/manifest/{table}.parquet: ")
    for read in (Manifest(copy).table, lambda table: list(Manifest(copy).batches(table))):
        with pytest.raises(ManifestError, match=rf"{where}.*[Ii]nvalid UTF8"):
            read(table)
    assert said("manifest", command, copy)[0] == 1
    for other in ("summary", "verify", "shards", "drops", "identities", "conflicts", "links"):
        said("manifest", other, copy)
    said("manifest", "query", copy, f"SELECT {column} FROM {table}")


@pytest.mark.parametrize("name", ["../../out.mindrecord", "a\x1b[2J.mindrecord", "a\0b", "..", ""])
def test_a_shard_that_lies_elsewhere(copy: Path, name: str) -> None:
    rewritten(copy, "shards", "file", pa.array([name] * len(Manifest(copy).table("shards"))))
    code, told = said("manifest", "verify", copy)
    assert code == 1
    assert "which is no name of a file" in told
    assert not set(told) & {"\0", "\x1b"}


def test_nulls_where_none_may_be(copy: Path) -> None:
    rewritten(copy, "shards", "rows", pa.nulls(len(Manifest(copy).table("shards")), pa.int64()))
    with pytest.raises(ManifestError, match=r"shards.parquet: .*null"):
        Manifest(copy).table("shards")
    assert said("manifest", "verify", copy)[0] == 1


def test_no_name_moves_the_cursor(copy: Path) -> None:
    """Names with an escape sequence, of 7 and of 8 bits, that turn the direction, or that are lines of their own."""
    name = "eve\x1b[2J\x9b1m\u202e\nWARNING all is well"
    rows = Manifest(copy).table("identities")
    rewritten(copy, "identities", "label_original", pa.array([name] * len(rows)))
    rewrite_info(copy, lambda info: (info.update(name=name), info["warnings"].append(name)))
    for command in ("summary", "identities", "drops", "shards", "verify", "links", "conflicts"):
        for options in ((), ("--json",)):
            _, told = said("manifest", command, copy, *options)
            assert not set(told) & {"\x1b", "\x9b", "\u202e"}, command
            assert "\nWARNING all" not in told
    assert r"eve\x1b[2J\u009b1m\u202e\nWARNING all is well" in said("manifest", "summary", copy)[1]

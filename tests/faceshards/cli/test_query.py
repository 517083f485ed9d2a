"""manifest query: answers in four formats, and reaches nothing but the tables."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from faceshards.dataset.manifest import Manifest
from faceshards.dataset.schema import SCHEMAS
from tests.faceshards.cli.test_cli import call, refusal
from tests.pipelines.build_fixtures import ROOT, digests, flip_bit

EXAMPLE = re.compile(r'^    \$ faceshards manifest query \S+ "(.*?)"\n((?:    [^\n]*\n)+)', re.MULTILINE | re.DOTALL)


def ask(found: Manifest, sql: str, *more: str | Path) -> list[dict]:
    result = call("manifest", "query", found.path, sql, "--json", *more)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_an_answer_is_that_of_the_tables(tiny_dataset: Manifest) -> None:
    reasons = Counter(tiny_dataset.table("dropped")["reason"].to_pylist())
    found = ask(tiny_dataset, "SELECT reason, count(*) AS n FROM dropped GROUP BY reason")
    assert {row["reason"]: row["n"] for row in found} == reasons


@pytest.mark.parametrize("table", SCHEMAS)
def test_every_table_is_there_whole(tiny_dataset: Manifest, table: str) -> None:
    want = [
        {key: value.hex() if isinstance(value, bytes) else value for key, value in row.items()}
        for row in tiny_dataset.table(table).to_pylist()
    ]
    assert ask(tiny_dataset, f"FROM {table}") == want


def test_formats_say_the_same(tiny_dataset: Manifest, tmp_path: Path) -> None:
    sql = (
        "SELECT sid, sha256, NULL AS nothing, '' AS empty, 'a\"b,c' AS text, [sha256] AS some FROM images ORDER BY sid"
    )
    rows = ask(tiny_dataset, sql)
    text = call("manifest", "query", tiny_dataset.path, sql, "--format", "csv").stdout
    assert text.splitlines()[1].count(',,""') == 1  # null and an empty text are two things
    assert [
        (row["sid"], row["sha256"], row["text"], json.loads(row["some"])) for row in csv.DictReader(io.StringIO(text))
    ] == [(str(row["sid"]), row["sha256"], row["text"], row["some"]) for row in rows]
    out = tmp_path / "answer.parquet"
    assert call("manifest", "query", tiny_dataset.path, sql, "--out", out).stdout == ""
    assert [value.hex() for value in pq.read_table(out)["sha256"].to_pylist()] == [row["sha256"] for row in rows]
    shown = call("manifest", "query", tiny_dataset.path, sql, "--limit", "3")
    assert [line.split()[:3] for line in shown.stdout.splitlines()[1:]] == [
        [str(row["sid"]), row["sha256"], "-"] for row in rows[:3]
    ]
    assert shown.stderr == "(the first 3 rows; --limit 0 for all)\n"
    assert len(call("manifest", "query", tiny_dataset.path, sql, "--limit", "0").stdout.splitlines()) == len(rows) + 1


def test_bytes_in_sql_are_hex(tiny_dataset: Manifest) -> None:
    row = tiny_dataset.table("images", ["sid", "sha256"]).to_pylist()[5]
    sql = f"SELECT sid FROM images WHERE sha256 = from_hex('{row['sha256'].hex()}')"
    assert ask(tiny_dataset, sql) == [{"sid": row["sid"]}]


def test_values_that_json_lacks(tiny_dataset: Manifest) -> None:
    (row,) = ask(tiny_dataset, "SELECT 'nan'::DOUBLE a, sum(1) s, 1.5 d, DATE '2020-01-02' t, {'x': [NULL]} n, 1 AS s")
    assert row == {"a": None, "s": 1, "d": 1.5, "t": "2020-01-02", "n": {"x": [None]}, "s_1": 1}


@pytest.mark.parametrize("kind", ["table", "json"])
def test_a_value_without_room_is_one_line(tiny_dataset: Manifest, kind: str) -> None:
    sql = "SELECT max(date) AS far FROM test_all_types()"
    assert "CAST it in SQL" in refusal("manifest", "query", tiny_dataset.path, sql, "--format", kind)


@pytest.mark.parametrize(
    "sql",
    [
        *("SELECT * FROM read_csv('/etc/passwd')", "SELECT * FROM read_text('/etc/passwd')", "FROM glob('/etc/*')"),
        *("FROM '{path}/manifest/shards.parquet'", "FROM parquet_metadata('{path}/manifest/shards.parquet')"),
        *("COPY shards TO '{path}/x.csv'", "COPY (PIVOT shards ON file USING count(*)) TO '{path}/x.csv'"),
        "WITH x AS (COPY (SELECT 1) TO '{path}/manifest/shards.parquet') FROM x, shards",
        "WITH x AS (COPY (SELECT 1) TO 'manifest://shards/0' (FORMAT csv, USE_TMP_FILE false)) FROM x, shards",
        "EXPLAIN ANALYZE WITH x AS (COPY (SELECT 1) TO 'manifest://shards/0') FROM x, shards",
        *("ATTACH '{path}/x.db'", "ATTACH ':memory:' AS m", "INSTALL httpfs", "LOAD httpfs", "PRAGMA version"),
        *("SET threads = 1", "RESET memory_limit", "EXPORT DATABASE '{path}/x'", "CALL pragma_version()"),
        *("CREATE TABLE x AS SELECT 1", "INSERT INTO shards VALUES (1)", "DELETE FROM shards", "DROP VIEW shards"),
        *("UPDATE shards SET rows = 1", "BEGIN", "VACUUM", "CHECKPOINT", "USE main", "PREPARE v AS SELECT 1"),
        *("SELECT 1; SELECT 2", "SELECT 1; DROP VIEW shards", "", ";", "/* nothing */", "SELECT getenv('HOME')"),
        *("FROM 'https://example.com/x.parquet'", "SELECT * FROM found", "SELECT ?", "FROM enable_logging('file')"),
        *(
            "SELECT labl FROM images",
            "SELEC 1",
            "SELECT 'x'::INT FROM images",
            "SELECT error('two' || chr(10) || 'lines')",
        ),
    ],
)
def test_what_is_refused_is_one_line(tiny_dataset: Manifest, tiny_digests: dict[str, str], sql: str) -> None:
    line = refusal("manifest", "query", tiny_dataset.path, sql.format(path=tiny_dataset.path))
    assert "Traceback" not in line
    assert digests(tiny_dataset.path) == tiny_digests


def test_wrong_sql_names_the_place(tiny_dataset: Manifest) -> None:
    line = refusal("manifest", "query", tiny_dataset.path, "SELECT sid,\n  labl FROM images")
    assert line.startswith("Binder Error: Referenced column")
    assert line.endswith("(line 2, column 3)")


def test_time_and_memory_are_bounded(tiny_dataset: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spill = tmp_path / "spill"
    spill.mkdir()
    endless = "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT max(n) FROM t"
    line = refusal("manifest", "query", tiny_dataset.path, endless, "--timeout", "0.2", "--temp-dir", spill)
    assert line == "the query took longer than 0.2 s and was ended (--timeout)"
    much = "SELECT list(range) FROM range(100000000)"
    assert "Out of Memory" in refusal(
        "manifest", "query", tiny_dataset.path, much, "--memory", "50MB", "--temp-dir", spill
    )
    assert list(tmp_path.rglob("*")) == [spill]


def test_damage_is_found_before_the_first_row(tiny_dataset: Manifest, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_dataset.path, copy)
    flip_bit(copy / "manifest/dropped.parquet", 99)
    assert "changed since it was published" in refusal("manifest", "query", copy, "FROM Dropped")
    assert call("manifest", "query", copy, "SELECT count(*) FROM images").exit_code == 0


def test_out_is_whole_or_not_there(tiny_dataset: Manifest, tmp_path: Path) -> None:
    out = tmp_path / "a.csv"
    refusal("manifest", "query", tiny_dataset.path, "SELECT if(sid > 5, error('x'), sid) FROM images", "--out", out)
    assert not list(tmp_path.iterdir())
    inside = tiny_dataset.path / "manifest" / "a.csv"
    assert "inside the dataset" in refusal("manifest", "query", tiny_dataset.path, "SELECT 1", "--out", inside)
    assert "needs --out" in refusal("manifest", "query", tiny_dataset.path, "SELECT 1", "--format", "parquet", code=2)


@pytest.mark.slow
def test_ctrl_c_and_a_closed_pipe(tiny_dataset: Manifest) -> None:
    def start(sql: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "faceshards", "manifest", "query", str(tiny_dataset.path), sql, "--json"]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)

    for hurry, said in ((signal.SIGINT, "Error: interrupted\n"), (None, "")):
        with start("FROM range(1000000000000)") as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()  # the first rows are there
            if hurry:
                process.send_signal(hurry)
                process.stdout.read()
            process.stdout.close()
            assert process.stderr.read() == said
            assert process.wait() == (130 if hurry else 1)


def test_the_questions_of_the_page(tiny_dataset: Manifest) -> None:
    """The page shows the set of `make shards`; the columns have to be these here too."""
    examples = EXAMPLE.findall((ROOT / "docs" / "queries.md").read_text())
    assert len(examples) == 11  # ten, and one that is wrong
    for sql, output in examples:
        result = call("manifest", "query", tiny_dataset.path, " ".join(sql.split()))
        assert result.exit_code == (1 if output.strip().startswith("Error") else 0), sql
        found = result.stdout or result.stderr
        assert found.splitlines()[0].split() == output.splitlines()[0].split(), sql

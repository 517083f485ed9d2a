"""Commands that list rows: JSON is whole, what is cut says so, nothing is held, and a closed pipe is no error."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from faceshards.cli.main import main
from faceshards.dataset.manifest import Manifest
from faceshards.dataset.schema import SCHEMAS
from tests.faceshards.cli.test_cli import LISTS
from tests.pipelines.build_fixtures import rewrite_info

GROUP = 4096  # rows of a row group
COUNTS = {"dropped": 70, "identities": 45, "conflicts": 33, "identity_links": 21, "shards": 26}


def rows(table: str, count: int, detail: str = "") -> pa.Table:
    """Returns a table with so many different rows."""

    def value(field: pa.Field, i: int) -> object:
        if field.name == "reason":
            return "undecodable" if i % 2 else "damaged"
        if field.name == "photographs":
            return i // 4
        if field.name == "distance":
            return i % 257
        if field.name == "detail":
            return f"{detail}{i}"
        return (
            f"{field.name}-{i:03d}" if field.type == pa.string() else bool(i) if pa.types.is_boolean(field.type) else i
        )

    if count > 1000:  # rows that differ in their details
        one = rows(table, 1).drop_columns(["detail"])
        details = pa.array(np.char.add(detail, np.arange(count).astype(str)), pa.string())
        return one.take(np.zeros(count, np.int64)).append_column("detail", details).select(SCHEMAS[table].names)
    columns = {field.name: [value(field, i) for i in range(count)] for field in SCHEMAS[table]}
    return pa.table(columns, SCHEMAS[table])


def with_tables(source: Path, out: Path, tables: dict[str, pa.Table]) -> Path:
    """Returns a copy of a dataset with other tables."""
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("*.mindrecord*"))
    for name, table in tables.items():
        pq.write_table(table, out / "manifest" / f"{name}.parquet", row_group_size=GROUP)
    rewrite_info(out)
    return out


@pytest.fixture(scope="module")
def long(tiny_dataset: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose tables are longer than a terminal wants them."""
    tables = {name: rows(name, count) for name, count in COUNTS.items()}
    return with_tables(tiny_dataset.path, tmp_path_factory.mktemp("long") / "set", tables)


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["manifest", *map(str, arguments)])


@LISTS
def test_json_is_whole_and_cut_tables_say_so(long: Path, command: list[str], table: str) -> None:
    count = COUNTS[table]
    want = pq.read_table(long / "manifest" / f"{table}.parquet").to_pylist()
    if table == "identity_links":
        want.sort(key=lambda row: (-row["photographs"], row["label_original_a"], row["label_original_b"]))
    whole = call(*command, long, "--json")
    assert (whole.exit_code, whole.stderr) == (0, "")
    assert json.loads(whole.stdout) == want
    cut = call(*command, long, "--json", "--limit", "7")
    assert json.loads(cut.stdout) == want[:7]
    assert cut.stderr == f"(7 of {count} rows; --limit 0 for all)\n"
    text = call(*command, long)
    assert len(text.stdout.splitlines()) == 1 + 20
    assert text.stderr == f"(20 of {count} rows; --limit 0 for all)\n"
    for limit in (0, count, count + 1):
        text = call(*command, long, "--limit", str(limit))
        assert (len(text.stdout.splitlines()), text.stderr) == (1 + count, "")
        assert call(*command, long, "--json", "--limit", str(limit)).stdout == whole.stdout


def test_columns_are_aligned_over_all_rows(long: Path) -> None:
    lines = call("drops", long, "--limit", "0").stdout.splitlines()
    assert {line.index("label_original") for line in lines} == {lines[0].index("label_original")}


def test_what_is_narrowed_is_counted(long: Path) -> None:
    cut = call("drops", long, "--reason", "damaged")
    assert cut.stderr == "(20 of 35 rows; --limit 0 for all)\n"
    found = json.loads(call("drops", long, "--reason", "damaged", "--json").stdout)
    assert [row["sid"] for row in found] == list(range(0, 70, 2))
    assert call("drops", long, "--reason", "min_images", "--json").stdout == "[]\n"


PEAK = """
import sys
from faceshards.cli.main import main
from faceshards.progress import peak_memory
main(["manifest", "drops", *sys.argv[1:]], standalone_mode=False)
print(peak_memory(), file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--json"], ["--limit", "0"]], ids=["json", "text"])
def test_no_table_is_held(options: list[str], tiny_dataset: Manifest, tmp_path: Path) -> None:
    peaks = []
    for count in (2 * GROUP, 18 * GROUP):
        folder = with_tables(tiny_dataset.path, tmp_path / str(count), {"dropped": rows("dropped", count, "x" * 2000)})
        command = [sys.executable, "-c", PEAK, str(folder), *options]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stderr))
    held = 16 * GROUP * 2000  # bytes of the details alone, which the longer table has more
    assert peaks[1] - peaks[0] < held / 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["manifest", "drops", "--json"],
        ["manifest", "drops", "--limit", "0"],
        ["manifest", "conflicts"],
        ["manifest", "summary"],
        ["datasets", "--json"],
    ],
    ids=" ".join,
)
def test_a_closed_pipe_is_no_error(command: list[str], long: Path) -> None:
    where = [str(long)] if command[0] == "manifest" else []
    arguments = [sys.executable, "-m", "faceshards", *command[:2], *where, *command[2:]]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()  # what `| head` does once it has enough
        said = process.stderr.read()
    assert said == ""
    assert process.returncode in (0, 1)

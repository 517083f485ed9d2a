"""Lists narrowed and sorted, held against what pandas finds in the same tables."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from benchmarks.generate_manifest import generate
from faceshards.cli.main import main
from faceshards.dataset.manifest import Manifest
from faceshards.dataset.verify import check_books


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The tables of 30,000 records from two files."""
    out = tmp_path_factory.mktemp("generated") / "set"
    generate(out, 30_000, sources=2)
    return Manifest(out)


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(main, ["manifest", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result


def listed(*arguments: object) -> list[dict]:
    return json.loads(call(*arguments, "--json").stdout)


def test_what_is_generated_adds_up(generated: Manifest) -> None:
    assert list(check_books(generated.totals, generated.table("identities"), generated.table("shards"))) == []
    for table, total in {
        "dropped": sum(generated.totals["dropped"].values()),
        "images": generated.totals["kept"],
    }.items():
        assert generated.count(table) == total
    sids = pd.concat([generated.table(name, ["sid"]).to_pandas() for name in ("images", "dropped")])
    assert sorted(sids["sid"]) == list(range(generated.totals["scanned"]))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("sort", "key"), [("images", "kept"), ("scanned", "scanned"), ("dropped", "lost"), ("label", "label")]
)
def test_identities_sorted(sort: str, key: str, reverse: bool, generated: Manifest) -> None:
    frame = generated.table("identities").to_pandas()
    frame["lost"] = frame["scanned"] - frame["kept"]
    ascending = (sort == "label") != reverse
    want = frame.sort_values(key, ascending=ascending, kind="stable", na_position="last")["label_original"].tolist()
    options = ["--sort", sort, *(["--reverse"] if reverse else [])]
    assert [row["label_original"] for row in listed("identities", generated.path, *options)] == want
    few = call("identities", generated.path, *options, "--limit", 5)
    column = few.stdout.splitlines()[0].split().index("label_original")
    assert [line.split()[column] for line in few.stdout.splitlines()[1:]] == want[:5]
    assert few.stderr == f"(5 of {len(want)} rows; --limit 0 for all)\n"


@pytest.mark.parametrize(
    ("options", "query"),
    [
        (["--min", 20], "kept >= 20"),
        (["--max", 0], "kept <= 0"),
        (["--min", 10, "--max", 12, "--sort", "images"], "10 <= kept <= 12"),
        (["--drops", 4], "scanned - kept >= 4"),
        (["--drops", 3, "--max", 15, "--sort", "dropped"], "scanned - kept >= 3 and kept <= 15"),
        (["--label", "77"], "label_original == '77'"),
    ],
)
def test_identities_narrowed(options: list, query: str, generated: Manifest) -> None:
    want = generated.table("identities").to_pandas().query(query)["label_original"]
    assert sorted(row["label_original"] for row in listed("identities", generated.path, *options)) == sorted(want)
    said = call("identities", generated.path, *options).stderr
    count = len(want)
    assert said == ("(no rows)\n" if not count else f"(20 of {count} rows; --limit 0 for all)\n" if count > 20 else "")


@pytest.mark.parametrize(
    ("options", "query"),
    [
        (["--reason", "undecodable"], "reason == 'undecodable'"),
        (["--reason", "undecodable", "--reason", "min_images"], "reason in ('undecodable', 'min_images')"),
        (["--label", "77"], "label_original == '77'"),
        (["--source", "part-1.rec"], "source == 'part-1.rec'"),
        (
            ["--source", "part-0.rec", "--reason", "label_conflict", "--label", "5"],
            "source == 'part-0.rec' and reason == 'label_conflict' and label_original == '5'",
        ),
    ],
)
def test_drops_narrowed(options: list, query: str, generated: Manifest) -> None:
    want = generated.table("dropped").to_pandas().query(query)["sid"].tolist()
    assert [row["sid"] for row in listed("drops", generated.path, *options)] == want


def test_links_and_conflicts_of_an_identity(generated: Manifest) -> None:
    pairs = generated.table("identity_links").to_pandas()
    label = pairs["label_original_a"][0]
    either = f"label_original_a == '{label}' or label_original_b == '{label}'"
    assert len(listed("links", generated.path, "--label", label)) == len(pairs.query(either)) > 0
    assert listed("conflicts", generated.path, "--label", label) == listed("links", generated.path, "--label", label)
    photographs = generated.table("conflicts").to_pandas().query(either)
    found = listed("conflicts", generated.path, "--pairs", "--label", label)
    assert [row["sid_a"] for row in found] == photographs["sid_a"].tolist()
    most = int(pairs["photographs"].max())
    assert {row["photographs"] for row in listed("links", generated.path, "--min", most)} == {most}
    assert listed("links", generated.path, "--min", most + 1) == []


@pytest.mark.parametrize(
    ("arguments", "line", "code"),
    [
        (["drops", "--source", "x.rec"], "no source 'x.rec'; it was built from part-0.rec, part-1.rec", 1),
        (["identities", "--min", "3", "--max", "2"], "--min 3 is more than --max 2", 2),
        (["identities", "--sort", "age"], "'age' is not one of", 2),
        (["identities", "--drops", "-1"], "-1 is not in the range", 2),
    ],
)
def test_mistakes(arguments: list[str], line: str, code: int, generated: Manifest) -> None:
    result = CliRunner().invoke(main, ["manifest", arguments[0], str(generated.path), *arguments[1:]])
    assert (result.exit_code, result.stdout) == (code, "")
    assert line in result.stderr.splitlines()[-1]


def test_the_shards_of_generated_tables_are_not_needed(generated: Manifest, tmp_path: Path) -> None:
    sid = generated.table("images", ["sid"])["sid"][0].as_py()
    assert call("image", generated.path, sid).stdout.startswith(f"sid             {sid}\n")
    summary = json.loads(call("summary", generated.path, "--json").stdout)
    assert summary["shard_rows"]["mean"] * summary["shards"] == summary["kept"]

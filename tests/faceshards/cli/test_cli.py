"""The commands: results on stdout, one line on stderr for each mistake, exit codes that mean something."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from faceshards.cli.main import main
from faceshards.dataset.manifest import Manifest
from pipelines.config import BuildConfig
from tests.pipelines.build_fixtures import read_rec, run_build, synthetic_set

COMMANDS = (
    [],
    ["build"],
    ["settings"],
    ["datasets"],
    ["manifest"],
    *(["manifest", name] for name in ("summary", "identities", "image", "drops", "conflicts", "verify")),
)


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refusal(*arguments: str | Path, code: int = 1) -> str:
    """Returns the one line that a command refuses with."""
    result = call(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    if code == 2:  # click shows the usage before it
        assert lines[0].startswith("Usage: ")
        lines = lines[-1:]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    return lines[0].removeprefix("Error: ")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_set(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return run_build(source, tmp_path_factory.mktemp("built") / "tiny")


@pytest.mark.parametrize("names", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(names: Sequence[str]) -> None:
    result = call(*names, "--help")
    assert result.exit_code == 0
    assert "Usage: " in result.stdout
    if names in ([], ["build"], ["manifest"]):
        assert "Examples:\n" in result.stdout
    assert call(*names, "-h").stdout == result.stdout


def test_summary(built: Manifest) -> None:
    text = call("manifest", "summary", built.path)
    assert text.exit_code == 0
    lines = text.stdout.splitlines()
    assert lines[0] == f"tiny at {built.path}"
    assert lines[-1].split() == ["fingerprint", built.fingerprint]
    figures = {tuple(line.split())[-1]: line.split()[1] for line in lines if line.split()[0] == "dropped"}
    assert figures == {reason: str(count) for reason, count in built.totals["dropped"].items()}
    found = json.loads(call("manifest", "summary", built.path, "--json").stdout)
    assert found == {"path": str(built.path), "name": "tiny", "fingerprint": built.fingerprint, **built.totals,
                     "warnings": []}  # fmt: skip
    # dataset.json itself names the dataset too.
    assert call("manifest", "summary", built.path / "dataset.json").stdout == text.stdout


def plain(rows: list[dict]) -> list[dict]:
    return [{key: value.hex() if isinstance(value, bytes) else value for key, value in row.items()} for row in rows]


@pytest.mark.parametrize(
    ("command", "table"),
    [(["identities"], "identities"), (["drops"], "dropped"), (["conflicts", "--pairs"], "conflicts"),
     (["conflicts"], "identity_links")],
)  # fmt: skip
def test_tables(built: Manifest, command: list[str], table: str) -> None:
    expected = plain(built.table(table).to_pylist())
    found = json.loads(call("manifest", *command, built.path, "--limit", "0", "--json").stdout)
    assert sorted(found, key=json.dumps) == sorted(expected, key=json.dumps)
    text = call("manifest", *command, built.path, "--limit", "3")
    assert text.exit_code == 0
    assert len(text.stdout.splitlines()) == 4  # with the names of the columns
    assert text.stderr == f"(3 of {len(expected)} rows; --limit 0 for all)\n"
    assert json.loads(call("manifest", *command, built.path, "--limit", "3", "--json").stdout) == found[:3]


def test_tables_can_be_narrowed(built: Manifest) -> None:
    found = json.loads(call("manifest", "drops", built.path, "--reason", "wrong_size", "--json").stdout)
    assert [row["reason"] for row in found] == ["wrong_size"] * built.totals["dropped"]["wrong_size"]
    (row,) = json.loads(call("manifest", "identities", built.path, "--label", "3", "--json").stdout)
    assert row["label_original"] == "3"
    assert "quarantined" not in call("manifest", "identities", built.path).stdout  # a column of zeros
    assert "'boring' is not one of" in refusal("manifest", "drops", built.path, "--reason", "boring", code=2)


def test_image_gives_back_the_bytes_of_the_source(source: Path, built: Manifest, tmp_path: Path) -> None:
    row = built.table("images").to_pylist()[7]
    out = tmp_path / "face.jpg"
    text = call("manifest", "image", built.path, str(row["sid"]), "--out", out)
    assert text.exit_code == 0
    assert out.read_bytes() == read_rec(source / "train.rec")[int(row["key"])][1]
    assert dict(line.split(maxsplit=1) for line in text.stdout.splitlines())["sha256"] == row["sha256"].hex()
    (found,) = json.loads(call("manifest", "image", built.path, str(row["sid"]), "--json").stdout)
    assert found == plain([row])[0]
    assert found["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()


def test_image_of_a_dropped_row(built: Manifest, tmp_path: Path) -> None:
    row = built.table("dropped").to_pylist()[0]
    assert json.loads(call("manifest", "image", built.path, str(row["sid"]), "--json").stdout) == [row]
    line = refusal("manifest", "image", built.path, str(row["sid"]), "--out", tmp_path / "face.jpg")
    assert f"was dropped ({row['reason']})" in line
    assert not (tmp_path / "face.jpg").exists()


def test_image_mistakes(built: Manifest, tmp_path: Path) -> None:
    count = built.totals["scanned"]
    assert refusal("manifest", "image", built.path, str(count)) == (
        f"{built.path}: no sid {count}; they go from 0 to {count - 1}"
    )
    sid = str(built.table("images")["sid"][0])
    assert "No such file" in refusal("manifest", "image", built.path, sid, "--out", tmp_path / "no" / "face.jpg")
    assert "is not a valid integer" in refusal("manifest", "image", built.path, "seven", code=2)


def test_verify_says_so_when_all_is_well(built: Manifest) -> None:
    result = call("manifest", "verify", built.path)
    assert result.exit_code == 0
    assert result.stdout == (
        f"{built.path}: {built.totals['kept']} images in {built.totals['shards']} shards are as the manifest says\n"
    )


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


SHARD = "shards/shard-00002.mindrecord"


@pytest.mark.parametrize(
    ("damage", "culprit"),
    [
        (lambda out: flip(out / SHARD, (out / SHARD).stat().st_size // 2), SHARD),
        (lambda out: flip(out / SHARD, 0), SHARD),
        (lambda out: flip(out / f"{SHARD}.db", 5000), f"{SHARD}.db"),
        (lambda out: (out / f"{SHARD}.db").unlink(), f"{SHARD}.db"),
        (lambda out: (out / SHARD).unlink(), SHARD),
        (lambda out: (out / SHARD).write_bytes((out / SHARD).read_bytes()[:-1]), SHARD),
        (lambda out: shutil.copy(out / "shards/shard-00001.mindrecord", out / SHARD), SHARD),
        (lambda out: flip(out / "manifest/identities.parquet", 200), "manifest/identities.parquet"),
        (lambda out: (out / "manifest/dropped.parquet").unlink(), "manifest/dropped.parquet"),
        (lambda out: flip(out / "manifest/images.parquet/part-00001.parquet", 900),
         "manifest/images.parquet/part-00001.parquet"),
        (lambda out: (out / "manifest/images.parquet/part-00001.parquet").unlink(),
         "manifest/images.parquet/part-00001.parquet"),
    ],
    ids=["byte", "head", "db-byte", "db-gone", "shard-gone", "shard-cut", "other-shard", "parquet", "parquet-gone",
         "part", "part-gone"],
)  # fmt: skip
def test_verify_names_what_is_damaged(
    built: Manifest, tmp_path: Path, damage: Callable[[Path], object], culprit: str
) -> None:
    out = shutil.copytree(built.path, tmp_path / "copy")
    damage(out)
    result = call("manifest", "verify", out)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert any(line.startswith(f"{out / culprit}: ") for line in lines), result.stdout
    assert result.stderr == f"Error: {out}: {len(lines)} mismatches\n"


def test_verify_names_the_row_of_a_flipped_byte(built: Manifest, tmp_path: Path) -> None:
    out = shutil.copytree(built.path, tmp_path / "copy")
    row = next(row for row in built.table("images").to_pylist() if row["shard"] == 2)
    sid = str(row["sid"])
    call("manifest", "image", built.path, sid, "--out", tmp_path / "face.jpg")
    at = (out / SHARD).read_bytes().index((tmp_path / "face.jpg").read_bytes())
    flip(out / SHARD, at + 100)
    lines = call("manifest", "verify", out).stdout.splitlines()
    assert f"{out / SHARD}: row {row['row']} (sid {sid}): the image's sha256 is not the manifest's" in lines


@pytest.mark.parametrize("name", ["summary", "identities", "drops", "conflicts", "verify"])
def test_a_folder_without_a_dataset(name: str, tmp_path: Path) -> None:
    expected = f"{tmp_path}: no dataset published there (no dataset.json)"
    assert refusal("manifest", name, tmp_path) == expected
    assert refusal("manifest", name, tmp_path / "nowhere").endswith("no dataset published there (no dataset.json)")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", "damaged: Expecting property name"),
        ("[]", "damaged: list indices must be integers"),
        ("{}", "damaged: 'schema_version'"),
        ('{"schema_version": 1}', "damaged: 'name'"),
        ('{"schema_version": 99}', "schema version 99; this release reads 1"),
    ],
)
def test_a_dataset_json_that_is_none(text: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(text)
    assert line in refusal("manifest", "summary", tmp_path)


def test_name_or_source(tmp_path: Path) -> None:
    line = "give either the NAME of a known set or --source PATH"
    assert refusal("build", "--out", tmp_path / "out", code=2) == line
    assert refusal("build", "casia", "--source", tmp_path, "--out", tmp_path / "out", code=2) == line
    assert "Missing option '--out'" in refusal("build", "casia", code=2)
    assert list(tmp_path.iterdir()) == []


def test_unknown_and_missing_sets(tmp_path: Path) -> None:
    line = refusal("build", "vggface9", "--out", tmp_path / "out")
    assert line.startswith("unknown dataset 'vggface9'; known: casia, ms1mv2, ")
    line = refusal("build", "glint360k", "--out", tmp_path / "out", "--data-root", tmp_path / "raw")
    assert str(tmp_path / "raw" / "glint360k") in line
    assert "it is to be had from the InsightFace repository" in line
    assert "put it there" in line
    missing = tmp_path / "none"
    assert refusal("build", "--source", missing, "--out", tmp_path / "out") == f"{missing}: no such file or folder"
    missing.mkdir()
    assert "no .rec file, and no sub-folder with" in refusal("build", "--source", missing, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("colour=red", "--set: unknown key 'colour'; known keys: image_size, "),
        ("seed=one", "--set: seed: 'one' is not of type int"),
        ("seed=true", "--set: seed: True is not of type int"),
        ("seed=-1", "--set: seed: -1 is outside 0.."),
        ("recall=high", "--set: recall: 'high' is not of type float"),
        ("recall=1", "--set: recall: 1.0 is outside 0.5..0.9999"),
        ("image_size=112", "--set: image_size: 112 is not a list of integers"),
        ("image_size=[112]", "--set: image_size: [112] is not [height, width]"),
        ("conflict_policy=ask", "--set: conflict_policy: 'ask' is not one of drop, keep-larger, keep"),
        ("max_images=1", "--set: max_images: 1 is below min_images 2"),
    ],
)
def test_settings_that_are_none(setting: str, line: str, source: Path, tmp_path: Path) -> None:
    assert refusal("build", "--source", source, "--out", tmp_path / "out", "--set", setting).startswith(line)
    assert list(tmp_path.iterdir()) == []


def test_settings_that_cannot_be_read(source: Path, tmp_path: Path) -> None:
    build = ("build", "--source", source, "--out", tmp_path / "out")
    assert refusal(*build, "--set", "seed", code=2) == "--set seed: not KEY=VALUE"
    assert refusal(*build, "--set", "seed=[", code=2) == "--set seed=[: the value is not YAML"
    file = tmp_path / "settings.yaml"
    assert refusal(*build, "--config", file) == f"{file}: No such file or directory"
    for text, line in (
        ("colour: red", "unknown key 'colour'"),
        ("seed: [", "not YAML"),
        ("- seed", "holds no mapping of names to values"),
        ("min_images: 2.5", "min_images: 2.5 is not of type int"),
    ):
        file.write_text(text)
        assert refusal(*build, "--config", file).startswith(f"{file}: {line}")


@pytest.mark.parametrize("name", ["a;b", "what?", "it's", "a:b", "a|b"])
def test_a_path_that_mindrecord_cannot_open(name: str, source: Path, tmp_path: Path) -> None:
    line = refusal("build", "--source", source, "--out", tmp_path / name)
    assert line.startswith(f"{tmp_path / name}: ")
    assert "MindRecord" in line
    assert any(f" {bad} " in line for bad in ";?':|")
    assert list(tmp_path.iterdir()) == []


def test_datasets(tmp_path: Path) -> None:
    (tmp_path / "casia").mkdir()
    rows = {row["name"]: row for row in json.loads(call("datasets", "--data-root", tmp_path, "--json").stdout)}
    assert list(rows) == ["casia", "ms1mv2", "ms1mv3", "glint360k", "webface4m", "webface12m", "webface42m",
                          "synthetic"]  # fmt: skip
    assert [name for name, row in rows.items() if row["present"]] == ["casia"]
    assert (rows["casia"]["identities"], rows["casia"]["images"]) == (10572, 490623)
    assert rows["casia"]["path"] == str(tmp_path / "casia")
    assert all(row["terms"] and row["where"] and row["layout"] for row in rows.values())
    lines = call("datasets", "--data-root", tmp_path).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["name", *rows]
    assert lines[1].split()[1:4] == ["10,572", "490,623", "yes"]


def test_settings() -> None:
    found = json.loads(call("settings", "--json").stdout)
    assert BuildConfig(**{**found, "image_size": tuple(found["image_size"])}) == BuildConfig()
    assert [line.split()[0] for line in call("settings").stdout.splitlines()] == list(found)

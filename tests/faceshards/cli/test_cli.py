"""The commands: results on stdout, one line on stderr for each mistake, exit codes that mean something."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from evaluation.origin import NOTE
from faceshards.cli.main import main
from faceshards.cli.train import show_result
from faceshards.dataset.manifest import Manifest
from faceshards.errors import ConfigError
from faceshards.settings import make_config
from pipelines.config import BuildConfig
from tests.pipelines.build_fixtures import read_rec
from training.config import TrainConfig


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refusal(*arguments: str | Path, code: int = 1) -> str:
    """Returns the one line that a command refuses with."""
    result = call(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    if lines[0].startswith("Usage: "):  # click shows the usage before its own
        assert code == 2
        lines = lines[-1:]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    return lines[0].removeprefix("Error: ")


def test_summary(tiny_dataset: Manifest) -> None:
    text = call("manifest", "summary", tiny_dataset.path)
    assert text.exit_code == 0
    lines = text.stdout.splitlines()
    assert lines[0] == f"tiny at {tiny_dataset.path}"
    assert lines[-1].split() == ["fingerprint", tiny_dataset.fingerprint]
    assert "  settings    shards=4" in lines
    figures = {tuple(line.split())[-1]: line.split()[1] for line in lines if line.split()[0] == "dropped"}
    assert figures == {reason: str(count) for reason, count in tiny_dataset.totals["dropped"].items()}
    found = json.loads(call("manifest", "summary", tiny_dataset.path, "--json").stdout)
    broken = ["tiny: 12 of 272 records are broken and left out (undecodable 8, wrong_size 4)"]
    kept = [row["kept"] for row in tiny_dataset.table("identities").to_pylist() if row["label"] is not None]
    apart = sum(abs(a - b) for a in kept for b in kept)  # the Gini coefficient by its definition
    sizes, rows = found.pop("identity_sizes"), found.pop("shard_rows")
    assert (sizes["least"], sizes["most"], sizes["mean"]) == (
        min(kept),
        max(kept),
        pytest.approx(statistics.mean(kept)),
    )
    assert sizes["gini"] == pytest.approx(apart / (2 * len(kept) ** 2 * statistics.mean(kept)))
    assert sizes["quantiles"]["0.5"] == statistics.median_low(kept)
    assert rows["mean"] * tiny_dataset.totals["shards"] == tiny_dataset.totals["kept"]
    assert found == {
        "path": str(tiny_dataset.path),
        "name": "tiny",
        "fingerprint": tiny_dataset.fingerprint,
        **tiny_dataset.totals,
        "sources": tiny_dataset.info["sources"],
        "terms": None,
        "settings": {"shards": 4},
        "warnings": broken,
        "unsound": broken,
    }
    # dataset.json itself names the dataset too.
    assert call("manifest", "summary", tiny_dataset.path / "dataset.json").stdout == text.stdout


LISTS = pytest.mark.parametrize(
    ("command", "table"),
    [
        (["identities"], "identities"),
        (["drops"], "dropped"),
        (["conflicts", "--pairs"], "conflicts"),
        (["conflicts"], "identity_links"),
        (["links"], "identity_links"),
        (["shards"], "shards"),
    ],
)


def plain(rows: list[dict]) -> list[dict]:
    return [{key: value.hex() if isinstance(value, bytes) else value for key, value in row.items()} for row in rows]


@LISTS
def test_tables(tiny_dataset: Manifest, command: list[str], table: str) -> None:
    expected = plain(tiny_dataset.table(table).to_pylist())
    found = json.loads(call("manifest", *command, tiny_dataset.path, "--limit", "0", "--json").stdout)
    assert sorted(found, key=json.dumps) == sorted(expected, key=json.dumps)
    text = call("manifest", *command, tiny_dataset.path, "--limit", "3")
    assert text.exit_code == 0
    assert len(text.stdout.splitlines()) == 4  # with the names of the columns
    assert text.stderr == f"(3 of {len(expected)} rows; --limit 0 for all)\n"
    assert json.loads(call("manifest", *command, tiny_dataset.path, "--limit", "3", "--json").stdout) == found[:3]


def test_tables_can_be_narrowed(tiny_dataset: Manifest) -> None:
    found = json.loads(call("manifest", "drops", tiny_dataset.path, "--reason", "wrong_size", "--json").stdout)
    assert [row["reason"] for row in found] == ["wrong_size"] * tiny_dataset.totals["dropped"]["wrong_size"]
    (row,) = json.loads(call("manifest", "identities", tiny_dataset.path, "--label", "3", "--json").stdout)
    assert row["label_original"] == "3"
    assert "quarantined" not in call("manifest", "identities", tiny_dataset.path).stdout  # a column of zeros
    assert "'boring' is not one of" in refusal("manifest", "drops", tiny_dataset.path, "--reason", "boring", code=2)


def test_image_gives_back_the_bytes_of_the_source(tiny_source: Path, tiny_dataset: Manifest, tmp_path: Path) -> None:
    row = tiny_dataset.table("images").to_pylist()[7]
    out = tmp_path / "face.jpg"
    text = call("manifest", "image", tiny_dataset.path, str(row["sid"]), "--out", out)
    assert text.exit_code == 0
    assert out.read_bytes() == read_rec(tiny_source / "train.rec")[int(row["key"])][1]
    assert dict(line.split(maxsplit=1) for line in text.stdout.splitlines())["sha256"] == row["sha256"].hex()
    (found,) = json.loads(call("manifest", "image", tiny_dataset.path, str(row["sid"]), "--json").stdout)
    assert {name: found[name] for name in row} == plain([row])[0]
    assert found["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()


def test_image_mistakes(tiny_dataset: Manifest, tmp_path: Path) -> None:
    count = tiny_dataset.totals["scanned"]
    for number in (count, 9_999_999):  # the first is the key of the last record
        line = refusal("manifest", "image", tiny_dataset.path, str(number))
        assert line.startswith(f"{tiny_dataset.path}: no sid {number}; they go from 0 to {count - 1}; ")
    sid = str(tiny_dataset.table("images")["sid"][0])
    assert "No such file" in refusal("manifest", "image", tiny_dataset.path, sid, "--out", tmp_path / "no" / "face.jpg")
    for name in ("seven", "train.rec:", "0123abc", "f" * 64, "9" * 5000, ""):
        assert f"'{name}' is no sid (0 to {count - 1}), no key, and no sha256" in (
            refusal("manifest", "image", tiny_dataset.path, name)
        )


def test_verify_says_so_when_all_is_well(tiny_dataset: Manifest) -> None:
    result = call("manifest", "verify", tiny_dataset.path, "--quiet")
    assert result.exit_code == 0
    kept, shards = (tiny_dataset.totals[name] for name in ("kept", "shards"))
    assert result.stdout == f"{tiny_dataset.path}: {kept} images in {shards} shards are as the manifest says\n"


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


SHARD = "shards/shard-00002.mindrecord"
TABLE = "manifest/images.parquet/part-00001.parquet"


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
        (lambda out: flip(out / TABLE, 900), TABLE),
        (lambda out: (out / TABLE).unlink(), TABLE),
        (lambda out: shutil.copy(out / TABLE, out / f"{TABLE}.copy.parquet"), f"{TABLE}.copy.parquet"),
        (lambda out: shutil.copy(out / SHARD, out / "shards/shard-00099.mindrecord"), "shards/shard-00099.mindrecord"),
    ],
    ids=[
        "byte",
        "head",
        "db-byte",
        "db-gone",
        "shard-gone",
        "shard-cut",
        "other-shard",
        "parquet",
        "parquet-gone",
        "part",
        "part-gone",
        "part-more",
        "shard-more",
    ],
)
def test_verify_names_what_is_damaged(
    tiny_dataset: Manifest, tmp_path: Path, damage: Callable[[Path], object], culprit: str
) -> None:
    out = shutil.copytree(tiny_dataset.path, tmp_path / "copy")
    damage(out)
    result = call("manifest", "verify", out, "--quiet")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert any(line.startswith(f"{out / culprit}: ") for line in lines), result.stdout
    assert result.stderr == f"Error: {out}: {len(lines)} mismatches\n"


@pytest.mark.parametrize("name", ["summary", "identities", "drops", "conflicts", "links", "shards", "verify"])
def test_a_folder_without_a_dataset(name: str, tmp_path: Path) -> None:
    expected = f"{tmp_path}: no dataset published there (no dataset.json)"
    assert refusal("manifest", name, tmp_path) == expected
    assert refusal("manifest", name, tmp_path / "nowhere").endswith("no dataset published there (no such folder)")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", "damaged: Expecting property name"),
        ("[]", "damaged: holds no mapping of names to values"),
        ('{"schema_version": "2"}', "schema version '2'; this release reads 1 and 2"),
        ("{}", "damaged: 'schema_version'"),
        ('{"schema_version": 1}', "damaged: 'name'"),
        ('{"schema_version": 2}', "damaged: 'sha256'"),
        ('{"schema_version": 2, "sha256": "0"}', "damaged: its SHA-256 (sha256) is not that of the rest of it"),
        ('{"schema_version": 99}', "schema version 99; this release reads 1 and 2"),
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
    line = refusal("build", "vggface9", "--out", tmp_path / "out", code=2)
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


def test_a_root_that_holds_no_people_is_one_line(tmp_path: Path) -> None:
    for name in ("train/ann", "train/bob", "val/eve"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "0.jpg").touch()
    line = refusal("build", "--source", tmp_path / "set", "--out", tmp_path / "out")
    assert f"--source {tmp_path}/set/train (2 folders)" in line
    assert "--set nested=true" in line
    line = refusal("build", "--source", tmp_path / "set", "--source", tmp_path / "none", "--out", tmp_path / "out")
    assert line == f"{tmp_path}/none: no such file or folder"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("labels=mixed", "--set: labels: 'mixed' is not one of disjoint, shared, separate"),
        ("nested=1", "--set: nested: 1 is not of type bool"),
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
def test_settings_that_are_none(setting: str, line: str, tiny_source: Path, tmp_path: Path) -> None:
    assert refusal("build", "--source", tiny_source, "--out", tmp_path / "out", "--set", setting, code=2).startswith(
        line
    )
    assert list(tmp_path.iterdir()) == []


def test_settings_that_cannot_be_read(tiny_source: Path, tmp_path: Path) -> None:
    build = ("build", "--source", tiny_source, "--out", tmp_path / "out")
    assert refusal(*build, "--set", "seed", code=2) == "--set seed: not KEY=VALUE"
    assert refusal(*build, "--set", "seed=[", code=2) == "--set seed=[: the value is not YAML"
    file = tmp_path / "settings.yaml"
    assert refusal(*build, "--config", file, code=2) == f"{file}: No such file or directory"
    for text, line in (
        ("colour: red", "unknown key 'colour'"),
        ("seed: [", "not YAML"),
        ("- seed", "holds no mapping of names to values"),
        ("min_images: 2.5", "min_images: 2.5 is not of type int"),
        ("seed: " + "[" * 500, "nested too deeply"),
        ("seed: &a [*a]", "line 1: more than 100,000 values, as its aliases repeat them"),
        (
            "".join(f"a{i}: &a{i} [{f'*a{i - 1},' * 9 if i else 1}]\n" for i in range(12)),
            "line 5: more than 100,000 values",
        ),
        ("a: 1\n" * 400_000, "more than 1 MiB are no settings"),
    ):
        file.write_text(text)
        assert refusal(*build, "--config", file, code=2).startswith(f"{file}: {line}")


@pytest.mark.parametrize("name", ["a;b", "what?", "it's", "a:b", "a|b"])
def test_a_path_that_mindrecord_cannot_open(name: str, tiny_source: Path, tmp_path: Path) -> None:
    line = refusal("build", "--source", tiny_source, "--out", tmp_path / name)
    assert line.startswith(f"{tmp_path / name}: ")
    assert "MindRecord" in line
    assert any(f" {bad} " in line for bad in ";?':|")
    assert list(tmp_path.iterdir()) == []


def test_datasets(tmp_path: Path) -> None:
    (tmp_path / "casia").mkdir()
    rows = {row["name"]: row for row in json.loads(call("datasets", "--data-root", tmp_path, "--json").stdout)}
    webface = ["webface4m", "webface12m", "webface42m"]
    assert list(rows) == [
        "casia",
        "ms1mv2",
        "ms1mv3",
        "glint360k",
        *webface,
        "synthetic",
        "synthetic_leaks",
        "synthetic_spoiled",
    ]
    assert [name for name, row in rows.items() if row["present"]] == ["casia"]
    assert (rows["casia"]["identities"], rows["casia"]["images"]) == (10572, 490623)
    assert rows["casia"]["path"] == str(tmp_path / "casia")
    assert all(row["terms"] and row["where"] and row["layout"] for row in rows.values())
    lines = call("datasets", "--data-root", tmp_path).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["name", *rows]
    assert lines[1].split()[1:4] == ["10,572", "490,623", "yes"]


def test_settings() -> None:
    """A number past each end of its range is refused, and so is what is not in a list of choices; the ends are not."""
    found = json.loads(call("settings", "--json").stdout)
    for name, config in (("build", BuildConfig()), ("train", TrainConfig())):
        own = {row["key"]: row for row in found[name] if not row["key"].startswith("filters.")}
        assert list(own) == [field.name for field in dataclasses.fields(config)]
        assert make_config({key: row["default"] for key, row in own.items()}, "", config) == config
        for key, row in own.items():
            assert row["meaning"], key
            numbers = row["type"] in ("integer", "number")
            assert (row["range"] is not None) == numbers, key
            if numbers:
                for value in (row["range"][0] - 1, row["range"][1] * 2 + 1):
                    with pytest.raises(ConfigError, match=f"^{key}: {key}: .* is outside"):
                        make_config({key: value}, key, config)
            for value in row["choices"] or ():
                make_config({key: value}, key, config)
            if row["choices"]:
                with pytest.raises(ConfigError, match=f"{key}: 'neither' is not one of "):
                    make_config({key: "neither"}, key, config)
    text = call("settings").stdout
    assert "\n\nfaceshards train RECIPE" in text
    lines = text.splitlines()
    assert "  filters.blur.min_variance=30  (number from 0 to 1000000)" in lines
    assert "  check_shards=background  (true or false or name: background, true, false)" in lines
    assert "  seed=0  (integer from 0 to 9223372036854775807)" in lines
    assert [row["key"] for row in found["train"]] == [
        line.split("=")[0].strip() for line in call("settings", "train").stdout.splitlines()[1:] if line[2] != " "
    ]


def test_train_tells_the_last_checkpoint_from_the_best(capsys):
    result = {
        "steps": 300,
        "first_loss": 9.0,
        "last_loss": 1.0,
        "accuracies": {"orl": 0.93},
        "raw_pixels": {"orl": 0.6},
        "checkpoint": "run/checkpoints/step-000000300",
        "best": "run/checkpoints/step-000000200",
        "best_steps": 200,
        "best_accuracies": {"orl": 0.96},
        "dataset": "mine",
        "fingerprint": "f" * 64,
        "versions": {"faceshards": "9"},
        "date": "2030-01-01T00:00:00+00:00",
    }
    show_result(result, as_json=False)
    assert capsys.readouterr().out.splitlines()[1:] == [
        "orl: accuracy 93.00% at step 300, the last checkpoint (raw pixels 60.00%)",
        "orl *: accuracy 96.00% at step 200, the best, which eval takes",
        "best run/checkpoints/step-000000200",
        NOTE,
        "checkpoint run/checkpoints/step-000000300",
        "trained on mine, fingerprint ffffffffffff",
        "with faceshards 9; 2030-01-01T00:00:00+00:00",
    ]
    # Of a run that a release before has finished.
    before = {name: result[name] for name in ("steps", "first_loss", "last_loss", "accuracies", "checkpoint", "best")}
    show_result(before, as_json=False)
    assert capsys.readouterr().out.splitlines()[1:] == [
        "orl: accuracy 93.00% at step 300, the last checkpoint",
        "checkpoint run/checkpoints/step-000000300",
    ]

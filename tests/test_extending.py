"""The package of docs/extending.md, installed and run; and packages that bring what they should not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
from click.testing import CliRunner

from faceshards.cli.main import main
from faceshards.extensions import ExtensionError, blamed, family
from faceshards.formats.verification_bin import write_bin
from tests.recs import jpeg

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(?:python|toml)\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


# --- the page's package


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that pip has installed the page's package into."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "my_faces").mkdir()
    (folder / "my_faces" / "__init__.py").touch()
    for name, text in BLOCK.findall(PAGE):
        (folder / name).write_text(text, encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--no-build-isolation", "--target", folder / "site", folder], check=True, timeout=300)
    return folder / "site"


@pytest.fixture(scope="module")
def run(installed, tmp_path_factory):
    """Runs faceshards with the package installed, and returns what it prints."""
    folder = tmp_path_factory.mktemp("work")
    paths = os.pathsep.join(filter(None, (str(installed), str(ROOT), os.environ.get("PYTHONPATH"))))

    def call(*arguments: object) -> str:
        command = [sys.executable, "-m", "faceshards", *map(str, arguments)]
        environ = {**os.environ, "PYTHONPATH": paths}
        done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stdout

    call.folder = folder
    return call


@pytest.mark.slow
def test_the_page_adds_one_of_each(run):
    lines = []
    for person in range(6):
        for picture in range(4 + 4 * (person == 2)):
            path = run.folder / f"{person}-{picture}.jpg"
            path.write_bytes(jpeg(10 * person + picture, quality=95 if person else 10))
            lines.append(f"person {person}\t{path}")
    (run.folder / "crew.people").write_text("\n".join([*lines, "person 1\tgone.jpg"]))
    sizes = sorted(path.stat().st_size for path in run.folder.glob("*.jpg"))
    limit = sizes[-1] - 1

    assert "  largest  " in run("--help")
    filters = f"filters.heavy.max_bytes={limit}"
    built = run("build", "--source", "crew.people", "--out", "data", "--set", filters, "--set", "shards=2", "--json")
    totals = json.loads(built)
    assert (totals["scanned"], totals["kept"], totals["dropped"]) == (29, 27, {"missing": 1, "heavy": 1})
    assert run("largest", "data").startswith("person 2: ")
    dropped = {row["reason"]: row for row in json.loads(run("manifest", "drops", "data", "--json"))}
    assert dropped["heavy"]["detail"] == f"{sizes[-1]} bytes > {limit}"
    assert dropped["missing"]["key"] == "gone.jpg"
    run("manifest", "verify", "data", "--quiet")
    run("manifest", "image", "data", dropped["heavy"]["sid"], "--out", "heavy.jpg")  # read back from its source
    assert (run.folder / "heavy.jpg").read_bytes() == Path(dropped["heavy"]["key"]).read_bytes()

    recipe = {"global_batch": 8, "epochs": 1, "lr": 0.05, "lr_batch": 0, "embedding_size": 16, "loggers": []}
    (run.folder / "mine.yaml").write_text(json.dumps({**recipe, "backbone": "tiny", "margin": "plain"}))
    trained = json.loads(run("train", "mine.yaml", "--data", "data", "--out", "run", "--json"))
    assert trained["steps"] == 3
    assert np.isfinite(trained["last_loss"])

    same = [True, False] * 10
    images = [jpeg(i if flag else i + 100 * j) for i, flag in enumerate(same) for j in range(2)]
    write_bin(run.folder / "faces.bin", images, same)
    table = run("eval", "--model", "run", "--set", "faces.bin", "--quiet", "--out", "report").splitlines()
    assert "worst_fold" in table[0]
    report = json.loads((run.folder / "report" / "report.json").read_text())["sets"][0]
    assert report["worst_fold"] == min(report["fold_accuracies"])
    assert report["worst_fold_interval"][0] <= report["worst_fold"]


# --- what is none


class Greeter(Protocol):
    name: str

    def greet(self) -> str: ...


def bring(folder: Path, monkeypatch, group: str, name: str, value: str, code: str = "", package: str = "other") -> None:
    """Puts a package with one entry point on the path, as pip leaves it."""
    info = folder / f"{package}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[faceshards.{group}]\n{name} = {value}\n")
    (folder / f"{package}.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, package, raising=False)


@pytest.mark.parametrize(
    ("name", "value", "code", "message"),
    [
        ("new", "other:gone", "", "AttributeError: module 'other' has no attribute 'gone'"),
        ("new", "other_module", "", "ModuleNotFoundError: No module named 'other_module'"),
        ("new", "other:new", "raise RuntimeError('no\\nlicence')", "RuntimeError: no\nlicence"),
        ("new", "other:new", "import sys; sys.exit('bye')", "SystemExit: bye"),
        ("new", "other:new", "new = 3", "has no greet, name"),
        ("old", "other:old", "", "the name is taken by faceshards: rename or remove one"),
    ],
)
def test_what_is_no_member_is_named(tmp_path, monkeypatch, name, value, code, message):
    bring(tmp_path, monkeypatch, "greeters", name, value, code)
    with pytest.raises(ExtensionError) as failure:
        family("greeters", {"old": 1}, Greeter)
    where = f"faceshards.greeters '{name}' of the package other 1.2 ({value}): "
    assert str(failure.value) == where + message


def test_a_member_follows_those_of_the_house_and_two_of_one_name_are_refused(tmp_path, monkeypatch):
    bring(tmp_path / "a", monkeypatch, "greeters", "new", "one:new", "def new(): ...", "one")
    assert list(family("greeters", {"old": print}, Callable)) == ["old", "new"]
    bring(tmp_path / "b", monkeypatch, "greeters", "new", "two:new", "def new(): ...", "two")
    with pytest.raises(ExtensionError, match=r"'new' of the package two 1.2 .* taken by the package one 1.2"):
        family("greeters", {"old": print}, Callable)
    bring(tmp_path / "c", monkeypatch, "others", "new", "other:new", "new = 3")
    with pytest.raises(ExtensionError, match=r"\(other:new\): int is not a str$"):
        family("others", {}, str)


def test_whatever_a_member_raises_is_one_line():
    with (
        pytest.raises(ExtensionError, match=r"^source 'people': ZeroDivisionError: division by zero$"),
        blamed("source 'people'"),
    ):
        1 / 0  # noqa: B018
    with pytest.raises(OSError, match="gone"), blamed("source 'people'"):  # the source's file is, not the source
        raise OSError("gone")


def test_a_command_that_cannot_be_loaded_says_so_and_spoils_no_other(tmp_path, monkeypatch):
    bring(tmp_path, monkeypatch, "commands", "broken", "other:broken", "raise ValueError('half installed')")
    found = CliRunner().invoke(main, ["--help"])
    assert found.exit_code == 0
    assert "  broken " in found.output
    found = CliRunner().invoke(main, ["broken", "--anything", "x"])
    assert (found.exit_code, found.output.count("\n")) == (1, 1)
    assert found.output.endswith("of the package other 1.2 (other:broken): ValueError: half installed\n")


def test_a_command_takes_no_name_of_the_house(tmp_path, monkeypatch):
    bring(tmp_path, monkeypatch, "commands", "build", "other:build", "import click")
    found = CliRunner().invoke(main, ["datasets"])
    assert found.exit_code == 1
    assert "faceshards.commands 'build' of the package other 1.2 (other:build): the name is taken" in found.output

"""What installing the package brings: names, data, extras, and a command that no folder of the user's can shadow."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement

import faceshards
from faceshards.cli.command import EXTRAS, Command
from faceshards.cli.main import COMMANDS, main
from faceshards.settings import CONFIGS
from pipelines.sources.catalog import known_datasets
from pipelines.synthetic.write import SyntheticSpec
from training.config import load_recipe

DISTRIBUTIONS = {"sklearn": "scikit-learn"}  # where it is not the module's name
REQUIREMENTS = [Requirement(line) for line in importlib.metadata.requires("faceshards") or []]


def needed(extra: str) -> set[str]:
    """Returns the names that an extra adds, or the base for ""."""
    return {
        entry.name.lower()
        for entry in REQUIREMENTS
        if (entry.marker is None) == (not extra) and (entry.marker is None or entry.marker.evaluate({"extra": extra}))
    }


def test_the_version_is_the_packages():
    assert importlib.metadata.version("faceshards") == faceshards.__version__
    assert CliRunner().invoke(main, ["--version"]).output == f"faceshards, version {faceshards.__version__}\n"


def test_the_base_is_what_builds_and_looks():
    base = {"numpy", "opencv-python-headless", "pyarrow", "dask", "cryptography", "click", "pyyaml", "tqdm"}
    assert needed("") == base


@pytest.mark.parametrize("module", EXTRAS)
def test_a_missing_module_names_the_extra_that_brings_it(module):
    assert DISTRIBUTIONS.get(module, module).lower() in needed(EXTRAS[module])

    @click.command(cls=Command)
    def act() -> None:
        raise ModuleNotFoundError("no such module", name=f"{module}.part")

    result = CliRunner().invoke(act)
    assert (result.exit_code, result.output) == (
        1,
        f"Error: act needs {module}.part, which is not installed: pip install 'faceshards[{EXTRAS[module]}]'\n",
    )


def test_only_mxnet_holds_numpy_below_2():
    held = {
        str(entry.marker) for entry in REQUIREMENTS if entry.name == "numpy" and not entry.specifier.contains("2.4.0")
    }
    assert held == {'extra == "mxnet"'}


def test_settings_that_come_with_the_package_can_be_read():
    assert {path.stem for path in CONFIGS.glob("train/*.yaml")} >= {"synthetic", "casia", "ms1mv3", "webface42m"}
    for path in CONFIGS.glob("train/*.yaml"):
        load_recipe(path.stem, {})
    known, spec = known_datasets()["synthetic"], SyntheticSpec()
    assert (known.identities, known.images) == (spec.identities + spec.defects, spec.records)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_its_name(name):
    command = main.get_command(click.Context(main, **main.context_settings), name)
    assert command is not None
    assert command.name == name


@pytest.mark.parametrize("start", [["-m", "faceshards"], [str(Path(faceshards.__file__).with_name("__main__.py"))]])
def test_a_folder_of_the_users_shadows_nothing(start, tmp_path):
    for name in ("training", "pipelines", "evaluation", "formats", "errors", "settings"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('shadowed')")
    done = subprocess.run(
        [sys.executable, *start, "train", "synthetic", "--data", "none", "--out", "run", "--dry-run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stderr.endswith("Error: none: no dataset published there (no such folder)\n")
    assert done.returncode == 1

"""Who may know whom (setup.cfg, docs/design.md): the contracts name every module, each of them bites, and what an extra
installs is imported only when it is needed."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import json
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import grimp
import pytest

import faceshards

ROOT = Path(faceshards.__file__).resolve().parents[1]
PACKAGES = ("faceshards", "pipelines", "training", "evaluation")
CLI = {"faceshards.cli", "faceshards.__main__"}


def read_setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


SETUP = read_setup()
PREFIX = "importlinter:contract:"
CONTRACTS = {name.removeprefix(PREFIX): SETUP[name] for name in SETUP.sections() if name.startswith(PREFIX)}


def listed(contract: str, key: str) -> list[str]:
    """Returns the words of a contract's list."""
    return re.split(r"[\s|]+", CONTRACTS[contract][key].strip())


def children(package: str) -> set[str]:
    """Returns the modules and packages right below a package."""
    return {f"{package}.{found.name}" for found in pkgutil.iter_modules([str(ROOT / package.replace(".", "/"))])}


def modules() -> set[str]:
    """Returns every module of the four packages, without the packages themselves."""
    paths = (path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {".".join(path.with_suffix("").parts) for path in paths if path.name != "__init__.py"}


# --- every module is in a contract


def test_every_module_is_in_a_contract_that_is_exhaustive():
    whole = [name for name, contract in CONTRACTS.items() if contract.get("exhaustive") == "True"]
    named = {f"{listed(name, 'containers')[0]}.{layer}" for name in whole for layer in listed(name, "layers")}
    roots = {listed(name, "containers")[0] for name in whole}
    assert roots.issuperset(PACKAGES)
    lost = {name for name in modules() if not any(name == known or name.startswith(f"{known}.") for known in named)}
    assert lost == set()
    assert {known for known in named if known not in children(known.rpartition(".")[0])} == set()


BORROWED = {"pipelines.sources", *(f"training.{name}" for name in ("backbones", "weights", "checkpoint", "device"))}
# What contracts name that are about all modules but some.
ALL_BUT_SOME = {
    ("dask", "source_modules"): {*PACKAGES, *children("pipelines")}
    - {"pipelines", "pipelines.runner", "pipelines.cluster"},
    ("mindspore", "source_modules"): {"pipelines", *children("faceshards")} - CLI,
    ("click", "source_modules"): {*PACKAGES, *children("faceshards")} - {"faceshards", *CLI},
    ("mxnet", "source_modules"): set(PACKAGES),
    ("borrowed", "forbidden_modules"): children("pipelines")
    .union(children("training"), children("training.data"))
    .difference(BORROWED, {"training.data", "training.data.transforms"}),
}


@pytest.mark.parametrize(("contract", "key"), ALL_BUT_SOME)
def test_a_contract_of_all_but_some_leaves_none_out(contract, key):
    assert set(listed(contract, key)) == ALL_BUT_SOME[contract, key]


def test_the_ground_does_not_use_the_public_names():
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    assert graph.find_modules_that_directly_import("faceshards") <= {
        "faceshards.cli.main",  # the version
        "evaluation.models.export",  # likewise
        "faceshards.versions",  # likewise
        "training.launch",  # where it lies
    }


def test_a_package_is_a_docstring():
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("__init__.py")]
    bodies = {path: ast.parse(path.read_text(encoding="utf-8")).body for path in files}
    more = {str(path.relative_to(ROOT)) for path, body in bodies.items() if [*map(type, body)] != [ast.Expr]}
    assert more == {"faceshards/__init__.py"}  # the version, and the public names


# --- every contract bites


PLANTS = {
    "house": [
        ("training.step", "evaluation.report.table"),
        ("training.config", "pipelines.config"),
        ("pipelines.records", "training.config"),
        ("evaluation.measure", "faceshards.cli.options"),
        ("faceshards.dataset.manifest", "pipelines.config"),
        ("faceshards.errors", "training.config"),
        ("evaluation.measure", "faceshards.api.dataset"),
        ("faceshards.api.dataset", "faceshards.cli.options"),
    ],
    "storage": [("faceshards.storage.faults", "faceshards.storage.stores")],
    "ground": [("faceshards.formats.idx", "faceshards.dataset.schema"), ("faceshards.errors", "faceshards.files")],
    "build": [
        ("pipelines.build", "pipelines.exports.base"),
        ("pipelines.sources.base", "pipelines.runner"),
        ("pipelines.dedupe.near", "pipelines.stages.write"),
    ],
    "stages": [("pipelines.stages.write", "pipelines.stages.route")],
    "sources": [("pipelines.sources.folder", "pipelines.sources.recordio")],
    "filters": [
        ("pipelines.filters.blur", "pipelines.filters.gray"),
        ("pipelines.filters.base", "pipelines.filters.screen"),
    ],
    "exports": [
        ("pipelines.exports.folder", "pipelines.exports.webdataset"),
        ("pipelines.exports.images", "pipelines.exports.registry"),
    ],
    "split": [("pipelines.split.plan", "pipelines.split.rows")],
    "training": [
        *[(f"training.{part}", "training.loop") for part in ("data.stream", "head.partial_fc", "backbones.iresnet")],
        *[(f"training.{part}", "training.step") for part in ("centers.class_centers", "device.cpu")],
        *[(f"training.{part}", "training.plan") for part in ("head.sampling", "centers.rules")],
    ],
    "evaluation": [("evaluation.protocol.verification", "evaluation.measure")],
    "borrowed": [("evaluation.measure", "training.loop"), ("evaluation.embedder", "pipelines.records")],
    "dask": [("pipelines.stages.sign", "dask"), ("training.data.stream", "distributed")],
    "mindspore": [("pipelines.records", "mindspore"), ("faceshards.formats.idx", "mindspore")],
    "mxnet": [("faceshards.formats.recordio", "mxnet"), ("training.step", "torch")],
    "click": [("training.schedule", "click"), ("faceshards.settings", "click")],
    "numbers": [("evaluation.report.table", "mindspore"), ("evaluation.protocol.intervals", "training.config")],
}


def lint(tree: Path, *arguments: str) -> tuple[int, str]:
    """Returns exit code and output of import-linter for the packages in a folder."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", *arguments]
    environ = {"PATH": "", "COLUMNS": "200"}
    done = subprocess.run(command, cwd=tree, env=environ, capture_output=True, text=True, timeout=100, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages and their contracts."""
    folder = tmp_path_factory.mktemp("tree")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", folder)
    return folder


def test_every_contract_is_kept(tree):
    code, said = lint(tree)
    assert code == 0, said
    assert f"{len(CONTRACTS)} kept, 0 broken" in said


@pytest.mark.slow
@pytest.mark.parametrize("contract", CONTRACTS)
def test_a_forbidden_import_breaks_its_contract(tree, contract):
    before = {}
    try:
        for module, target in PLANTS[contract]:
            path = tree / f"{module.replace('.', '/')}.py"
            before.setdefault(path, path.read_text(encoding="utf-8"))
            with path.open("a", encoding="utf-8") as file:
                file.write(f"\nimport {target}\n")
        code, said = lint(tree, "--contract", contract)
    finally:
        for path, text in before.items():
            path.write_text(text, encoding="utf-8")
    assert code == 1, said
    assert "0 kept, 1 broken" in said
    for module, target in PLANTS[contract]:
        assert f"{module} -> {target} (l." in said


# --- what an extra installs is imported when it is needed


def requirements(text: str) -> set[str]:
    """Returns the names of required distributions."""
    names = (re.match(r"[\w.-]+", line.strip()) for line in text.splitlines() if not line.startswith("#"))
    return {re.sub(r"[-_.]+", "-", found[0]).lower() for found in names if found}


def modules_of_extras() -> list[str]:
    """Returns the importable names that only extras install."""
    extras = SETUP["options.extras_require"]
    wanted = set().union(*(requirements(extras[name]) for name in ("train", "eval", "dashboard", "mxnet")))
    # Dask brings jinja2, and with it markupsafe; setuptools is wherever pip is.
    wanted -= requirements(SETUP["options"]["install_requires"]) | {"jinja2", "markupsafe", "setuptools"}
    found = importlib.metadata.packages_distributions().items()
    return sorted(name for name, owners in found if wanted & {owner.lower().replace("_", "-") for owner in owners})


WITHOUT = """
import importlib, json, pkgutil, sys
absent = json.loads(sys.argv.pop(1))

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


def without_extras(code: str, *arguments: str) -> Any:
    """Returns what Python code prints, as JSON, in a process where nothing is that only extras install."""
    command = [sys.executable, "-c", WITHOUT + code, json.dumps(modules_of_extras()), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_extras_install_is_known():
    assert {"mindspore", "mxnet", "sklearn", "matplotlib", "onnx", "onnxruntime"} <= set(modules_of_extras())


IMPORT = """
failed = {}
for found in pkgutil.walk_packages(importlib.import_module(sys.argv[1]).__path__, f"{sys.argv[1]}."):
    if not found.name.endswith(".__main__"):
        try:
            importlib.import_module(found.name)
        except ModuleNotFoundError as error:
            failed[found.name] = error.name
print(json.dumps([failed, "dask" in sys.modules]))
"""


@pytest.mark.parametrize(
    ("package", "failing", "dask"),
    [("faceshards", {"faceshards.formats.safetensors": "safetensors"}, False), ("pipelines", {}, True)],
)
def test_the_base_is_enough_to_import_what_builds(package, failing, dask):
    assert without_extras(IMPORT, package) == [failing, dask]


HELP = """
from click.testing import CliRunner
from faceshards.cli.main import COMMANDS, main
codes = {name: CliRunner().invoke(main, [*name.split(), "--help"]).exit_code for name in ("", *COMMANDS)}
print(json.dumps([codes, "dask" in sys.modules]))
"""


def test_the_base_is_enough_for_help():
    codes, dask = without_extras(HELP)
    assert {"", "build", "train", "eval", "export"} <= codes.keys()
    assert set(codes.values()) == {0}
    assert not dask  # it takes a second to import


PUBLIC = """
import faceshards
heavy = {"pipelines", "training", "evaluation", "numpy", "pyarrow", "click", "dask"}
before = sorted(heavy & set(sys.modules))
names = {name: getattr(faceshards, name).__module__ for name in faceshards._PUBLIC}
assert names.keys() <= set(dir(faceshards))
print(json.dumps([before, names]))
"""


def test_public_names_are_handed_on_when_asked_for():
    before, names = without_extras(PUBLIC)
    assert before == []
    assert names == {
        "open": "faceshards.api.dataset",
        "Dataset": "faceshards.api.dataset",
        "build": "faceshards.api.build",
        "Stream": "faceshards.api.stream",
        "FaceshardsError": "faceshards.errors",
    }
    stub = ast.parse((ROOT / "faceshards" / "__init__.pyi").read_text(encoding="utf-8"))
    told = {node.name for node in stub.body if isinstance(node, ast.FunctionDef)}
    told |= {node.names[0].asname for node in stub.body if isinstance(node, ast.ImportFrom)} - {None}
    assert told == names.keys()
    with pytest.raises(AttributeError, match="module 'faceshards' has no attribute 'clsoe'"):
        _ = faceshards.clsoe
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", faceshards.__version__)

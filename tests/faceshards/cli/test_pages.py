"""Commands that pages show are run on the tiny set: what they print has the lines, titles and words of the page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from faceshards.dataset.manifest import Manifest
from faceshards.formats.verification_bin import write_bin
from pipelines.config import BuildConfig
from tests.faceshards.cli.test_cli import call
from tests.pipelines.build_fixtures import ROOT, read_rec, run_build


def shown(page: str, command: str) -> tuple[list[str], list[str]]:
    """Returns the words of the first command of a page that begins so, and the lines that the page shows below it."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    match = re.search(rf"^    \$ faceshards ({command}[^\n]*)\n((?:(?:    [^\n]*)?\n)+)", text, re.MULTILINE)
    assert match, command
    return match[1].split(), [line.removeprefix("    ") for line in match[2].rstrip().splitlines()]


def shape(line: str) -> str:
    """Returns a line without what another set has otherwise: numbers, digests, names of sets and places, blanks."""
    line = re.sub(r"\b[0-9a-f]{64}\b|-?\d[\d,.]*", "#", line)
    line = re.sub(r"\S*/\S+", "PLACE", line)
    return " ".join(re.sub(r"\b(tiny|synthetic\w*)\b", "SET", line).split())


def shapes(lines: list[str]) -> list[str]:
    return [shape(line) for line in lines if line.strip()]


@pytest.fixture(scope="module")
def after(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The tiny set under the settings that the page's second set was built with."""
    out = tmp_path_factory.mktemp("after") / "tiny"
    return run_build(tiny_source, out, BuildConfig(shards=4, conflict_policy="keep", min_images=4))


def test_diff(tiny_dataset: Manifest, after: Manifest) -> None:
    words, lines = shown("manifest.md", "manifest diff")
    result = call(*words[:2], tiny_dataset.path, after.path, *words[4:])
    assert result.exit_code == 0
    assert shapes(result.stdout.splitlines()) == shapes(lines)
    assert result.stdout.splitlines()[3:6] == lines[3:6]  # the settings that differ


def test_overlap(tiny_dataset: Manifest, tiny_source: Path, tmp_path: Path) -> None:
    write_bin(
        tmp_path / "verification.bin",
        [image for _, image in read_rec(tiny_source / "train.rec").values()][:4],
        [True] * 2,
    )
    words, lines = shown("manifest.md", "manifest overlap")
    result = call(*words[:2], tiny_dataset.path, "--set", tmp_path / "verification.bin", *words[5:], "--quiet")
    assert shapes(result.stdout.splitlines()) == shapes(lines)


def test_getting_started(tiny_dataset: Manifest, tmp_path: Path) -> None:
    """A build ends with what `manifest summary` says; the tiny set is no known one, so it has no terms."""
    _, lines = shown("getting-started.md", "build synthetic")
    summary = call("manifest", "summary", tiny_dataset.path).stdout.splitlines()
    differ = {"terms none, these people do not exist", "settings the defaults", "settings shards=#"}
    assert [line for line in shapes(summary) if line not in differ] == [
        line for line in shapes(lines) if line not in differ
    ]
    words, lines = shown("getting-started.md", "manifest drops")
    assert shapes(call(*words[:2], tiny_dataset.path, *words[3:]).stdout.splitlines()) == shapes(lines)
    words, lines = shown("getting-started.md", "manifest report")
    assert words[3:] == ["--out", "synthetic.html"]
    result = call(*words[:2], tiny_dataset.path, "--out", tmp_path / "synthetic.html")
    assert shapes(result.stdout.splitlines()) == [shape(lines[0].replace("synthetic.html", "./synthetic.html"))]
    for sid in "01":
        words, lines = shown("getting-started.md", f"manifest image data/shards/synthetic {sid}")
        result = call(*words[:2], tiny_dataset.path, *words[3:5], tmp_path / words[5])
        assert result.exit_code == 0
        assert (tmp_path / words[5]).stat().st_size > 0


def test_plan(tiny_source: Path, tmp_path: Path) -> None:
    words, lines = shown("datasets.md", "build synthetic")
    assert words == ["build", "synthetic", "--out", "data/shards/synthetic", "--plan"]
    options = ("--quiet", "--workers", "2", "--set", "shards=4")
    result = call("build", "--source", tiny_source, "--out", tmp_path / "tiny", "--plan", *options)
    assert result.exit_code == 0
    assert shapes(result.stdout.splitlines()) == shapes(lines)

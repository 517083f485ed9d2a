"""The pages: links hold on GitHub and on the site, commands that they show exist, the site is built of itself alone."""

from __future__ import annotations

import dataclasses
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

import faceshards
from faceshards.cli.main import main
from pipelines.config import BuildConfig
from tests.pipelines.build_fixtures import ROOT

PAGES = sorted((ROOT / "docs").glob("*.md"))
READ = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def named(entry: Any) -> Iterator[str]:
    """Yields the pages of a part of mkdocs.yml's nav."""
    if isinstance(entry, str):
        yield entry
    else:
        for part in entry.values() if isinstance(entry, dict) else entry:
            yield from named(part)


def anchors(page: Path) -> set[str]:
    """Returns the places of a page that links may name, as GitHub makes them of its headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_navigation_and_in_the_overview() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(named(settings["nav"])) == [page.name for page in PAGES]
    overview = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if page.name != "README.md" and f"({page.name})" not in overview] == []


@pytest.mark.parametrize("page", READ, ids=lambda page: page.name)
def test_links_lead_somewhere_on_github(page: Path) -> None:
    text = re.sub(r"^(?: {4}|\|? *`).*$", "", FENCE.sub("", page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, place = target.partition("#")
        file = page.parent / name if name else page
        assert file.is_file(), target
        assert page.parent == ROOT or file.parent == page.parent, f"{target}: not on the site"
        assert not place or place in anchors(file), target


def commands(page: Path) -> Iterator[list[str]]:
    """Yields the commands of a page, in words: those that can be typed as they stand."""
    for line in re.findall(
        r"^    (?:\$ |\.venv/bin/)?(faceshards .*)$", page.read_text(encoding="utf-8"), re.MULTILINE
    ):
        if not re.search(r"…|\.\.\.|\[--", line) and line.count('"') % 2 == 0:
            yield shlex.split(line, comments=True)[1:]


def refused(words: list[str]) -> str:
    """Returns why a command is none: no such command, option or value, an argument that is missing; "" if it is one."""
    try:
        parse(words)
    except click.UsageError as error:
        return error.format_message()
    return ""


def parse(words: list[str]) -> None:
    """Parses a command without running it."""
    command: click.Command | None = main
    context = None
    while isinstance(command, click.Group):
        context = click.Context(command, parent=context, **command.context_settings)
        _, command, words = command.resolve_command(context, words)
    assert command is not None
    command.make_context(command.name, list(words), parent=context)


@pytest.mark.parametrize("page", READ, ids=lambda page: page.name)
def test_commands_on_pages_exist(page: Path) -> None:
    assert not {shlex.join(words): why for words in commands(page) if (why := refused(words))}


def test_a_command_that_is_none_is_found() -> None:
    for words in (
        ["biuld", "x"],
        ["build", "casia", "--outt", "x"],
        ["manifest", "drop", "x"],
        ["train", "--out", "x"],
    ):
        assert refused(words)


def options(command: click.Command, context: click.Context) -> Iterator[tuple[str, list[str]]]:
    """Yields the options of a command, and of those below it, by all their spellings."""
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from options(below, click.Context(below, parent=context, info_name=name))
    for option in command.params:
        if isinstance(option, click.Option):
            yield f"{context.command_path} {option.name}", option.opts


def test_every_option_and_setting_has_its_place_on_a_page() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in READ)
    unsaid = [
        name
        for name, opts in options(main, click.Context(main, **main.context_settings))
        if not any(opt in text for opt in opts)
    ]
    assert [name for name in unsaid if name.split()[-1] not in ("help", "version")] == []
    for field in dataclasses.fields(BuildConfig):  # in a row of a table, or set
        assert re.search(rf"^\| (\w+, )?{field.name}\b|\b{field.name}=", text, re.MULTILINE), field.name


def test_the_table_of_settings_has_their_defaults() -> None:
    table = re.search(
        r"^\| setting \| default .*\n((?:\|.*\n)*)", (ROOT / "docs" / "datasets.md").read_text(), re.MULTILINE
    )
    assert table is not None
    said = {}
    for row in table[1].splitlines()[1:]:
        names, defaults = (cell.strip() for cell in row.split("|")[1:3])
        said |= dict(zip(names.split(", "), yaml.safe_load(f"[{defaults}]"), strict=True))
    config = dataclasses.asdict(BuildConfig())
    wanted = {name: list(value) if isinstance(value, tuple) else value for name, value in config.items()}
    assert said == {name: value for name, value in wanted.items() if name != "filters"}  # a page of its own


def test_the_reference_has_the_public_names() -> None:
    reference = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    for module, name in faceshards._PUBLIC.values():
        assert re.search(rf"^::: {re.escape(module)}(\.{name})?$", reference, re.MULTILINE), name


class Loaded(HTMLParser):
    """What a built page loads by itself."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.loaded += [given[key] or "" for key in ("src", "srcset", "data") if key in given]
        if tag == "link":
            self.loaded.append(given.get("href") or "")


def paragraphs(page: Path) -> Iterator[str]:
    """Yields a built page's paragraphs, code left out."""
    for found in re.findall(r"<p>(.*?)</p>", page.read_text(encoding="utf-8"), re.DOTALL):
        yield re.sub(r"<code>.*?</code>", "", found, flags=re.DOTALL)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `make docs` makes it."""
    out = tmp_path_factory.mktemp("site")
    # --quiet would hide the warnings from --strict, too.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return out


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        for address in Loaded(page).loaded:
            assert not re.match(r"(\w+:)?//", address), f"{page.name}: {address}"
    for style in site.rglob("*.css"):
        for address in re.findall(r"(?:url\(|@import )\s*['\"]?([^'\")]+)", style.read_text(encoding="utf-8")):
            assert not re.match(r"(https?:)?//", address), f"{style.name}: {address}"


@pytest.mark.slow
def test_the_site_shows_lists_tables_and_docstrings(site: Path) -> None:
    """GitHub takes a list right below a paragraph, and a bar after a backslash; the site's Markdown does not."""
    for page in PAGES:
        name = "index" if page.name == "README.md" else page.stem
        for paragraph in paragraphs(site / f"{name}.html"):
            assert not re.search(r"^(- |\* |\d+\. |\||:::)", paragraph, re.MULTILINE), f"{name}: {paragraph}"
    reference = (site / "reference.html").read_text(encoding="utf-8")
    wanted = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "reference.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(wanted) > 15
    for identifier in wanted:
        assert f'id="{identifier}"' in reference
    assert "of the dataset on the run's ranks" in reference  # an argument of Stream

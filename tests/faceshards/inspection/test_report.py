"""The page about a dataset: whole, its own, safe from what names say, of a size, and looked at in a browser."""

from __future__ import annotations

import base64
import html
import json
import os
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

from faceshards.cli.main import main
from faceshards.dataset.manifest import Manifest
from pipelines.config import BuildConfig
from tests.pipelines.build_fixtures import read_rec, rewrite_info, run_build

EVIL = "<script>alert(1)<∕script>"
HOSTILE = (EVIL, '" onload="alert(2)', "{{ 7*7 }}", "&lt;b&gt;", "rtl\u202eevil", "new\nline", "x" * 120)


def report(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["manifest", "report", *map(str, arguments)])


class Page(HTMLParser):
    """What a page holds, by Python's own parser."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def pictures(self) -> dict[int, bytes]:
        """Returns the bytes of all pictures by their sids."""
        found = {}
        for figure in re.findall(r"<figure class=\"(?:kept|dropped)\">(.*?)</figure>", self.source, re.DOTALL):
            if data := re.search(r"base64,([^\"]*)\"", figure):
                found[int(re.search(r"sid (\d+)", figure)[1])] = base64.b64decode(data[1])  # type: ignore[index]
        return found

    def shown(self) -> dict[str, tuple[int, int]]:
        """Returns for what is shown how many, and of how many, by its name."""
        found = re.findall(r"([\d,]+) of ([\d,]+) ([a-z ]+) shown", self.words)
        return {unit: (int(count.replace(",", "")), int(total.replace(",", ""))) for count, total, unit in found}


@pytest.fixture(scope="module")
def tiny_page(tiny_dataset: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page about the tiny dataset."""
    page = tmp_path_factory.mktemp("page") / "tiny.html"
    result = report(tiny_dataset.path, "--out", page)
    assert result.exit_code == 0, result.output
    return page


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dataset of an image folder whose names are meant to do harm, and the folder; each identity has a near
    duplicate, and shares a photograph with the next."""
    folder = tmp_path_factory.mktemp("hostile")
    source = folder / "<img src=x onerror=alert(3)>"
    for number, name in enumerate(HOSTILE):
        (source / name).mkdir(parents=True)
        for copy in range(3):
            # Larger than what the page takes as it is.
            write(source / name / f"{copy}.jpg", draw(10 * number + copy), 95)
        write(source / name / "near.jpg", draw(10 * number), 60)
        write(source / name / "shared.png", draw(10 * ((number + 1) % len(HOSTILE)) + 1), 0)
    config = BuildConfig(shards=1, image_size=(0, 0), conflict_policy="keep")
    return run_build(source, folder / "built", config).path, source


def draw(seed: int) -> np.ndarray:
    blocks = np.random.default_rng(seed).integers(0, 255, (7, 7, 3), dtype=np.uint8)
    return cv2.resize(blocks, (300, 400), interpolation=cv2.INTER_CUBIC)


def write(path: Path, pixels: np.ndarray, quality: int) -> None:
    path.write_bytes(cv2.imencode(path.suffix, pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes())


def test_it_says_what_the_tables_say(tiny_dataset: Manifest, tiny_page: Path) -> None:
    page = Page(tiny_page)
    totals = tiny_dataset.totals
    assert f"{totals['scanned']} scanned = {totals['kept']} kept + {totals['scanned'] - totals['kept']} dropped" in (
        page.words
    )
    for reason, count in totals["dropped"].items():
        assert f"{reason} {count} {100 * count / totals['scanned']:.2f} %" in page.words
    assert tiny_dataset.fingerprint in page.words
    assert tiny_dataset.info["sources"][0]["path"] in page.words
    for line in tiny_dataset.info["warnings"]:
        assert f"Unsound: {line}" in page.words
    assert "shards=4 , all others are the defaults" in page.words
    dropped = tiny_dataset.table("dropped").to_pylist()
    stand = {row["representative"] for row in dropped if row["reason"] == "near_duplicate"}
    assert page.shown() == {
        "photographs with near duplicates": (len(stand), len(stand)),
        "pairs of photographs": (totals["conflicts"],) * 2,
        "pairs of identities": (totals["identity_links"],) * 2,
        # Of the largest first, of the smallest last.
        "identities": (totals["identities"] - 8, totals["identities"]),
    }


def test_the_chart_counts_every_identity(tiny_dataset: Manifest, tiny_page: Path) -> None:
    counts: dict[str, int] = {}
    for count, kind in re.findall(r"images: ([\d,]+) identities (before the balance|kept)", tiny_page.read_text()):
        counts[kind] = counts.get(kind, 0) + int(count)
    rows = [row for row in tiny_dataset.table("identities").to_pylist() if row["label_original"] is not None]
    before = [row["kept"] + row["min_images"] + row["max_images"] for row in rows]
    assert counts == {"kept": sum(row["kept"] > 0 for row in rows), "before the balance": sum(n > 0 for n in before)}


def test_pictures_are_those_of_the_source(tiny_source: Path, tiny_dataset: Manifest, tiny_page: Path) -> None:
    keys = {
        row["sid"]: int(row["key"]) for name in ("images", "dropped") for row in tiny_dataset.table(name).to_pylist()
    }
    records = read_rec(tiny_source / "train.rec")
    pictures = Page(tiny_page).pictures()
    assert pictures == {sid: records[keys[sid]][1] for sid in pictures}
    rows = tiny_dataset.table("dropped").to_pylist()
    assert pictures.keys() >= {row["sid"] for row in rows if row["reason"] in ("near_duplicate", "label_conflict")}


def test_the_same_seed_gives_the_same_bytes(tiny_dataset: Manifest, tiny_page: Path, tmp_path: Path) -> None:
    assert report(tiny_dataset.path, "--out", tmp_path / "again.html").exit_code == 0
    assert (tmp_path / "again.html").read_bytes() == tiny_page.read_bytes()
    assert report(tiny_dataset.path, "--out", tmp_path / "again.html", "--seed", "1").exit_code == 0  # replaced
    other, first = Page(tmp_path / "again.html"), Page(tiny_page)
    assert other.pictures().keys() != first.pictures().keys()
    assert other.shown() == first.shown()
    assert os.listdir(tmp_path) == ["again.html"]


def test_it_keeps_to_its_size(tiny_dataset: Manifest, tmp_path: Path) -> None:
    page = tmp_path / "deep" / "small.html"
    result = report(tiny_dataset.path, "--out", page, "--max-size", "220kB", "--json")
    found = json.loads(result.stdout)
    assert found["bytes"] == page.stat().st_size <= 220_000
    shown = Page(page).shown()
    assert all(count for count, _ in shown.values())  # something of everything
    assert any(count < total for count, total in shown.values())
    assert found["pictures"] == len(re.findall("<img ", page.read_text())) > 0
    result = report(tiny_dataset.path, "--out", page, "--max-size", "9 kB")
    assert result.exit_code == 1
    assert re.fullmatch(rf"Error: {page}: 0.009 MB is too small: the figures alone take 0.0\d\d MB\n", result.stderr)
    assert report(tiny_dataset.path, "--out", page, "--max-size", "many").exit_code == 2
    assert page.stat().st_size == found["bytes"]


def test_names_are_text(hostile: tuple[Path, Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = report(hostile[0], "--out", page)
    assert result.exit_code == 0, result.output
    found = Page(page)
    assert not {"script", "b1", "iframe", "object"} & {tag for tag, _ in found.tags}
    allowed = {"alt", "src", "class", "id", "href", "title", "content", "lang", "charset", "name", "rel", "http-equiv"}
    drawing = {"viewbox", "preserveaspectratio", "x", "y", "x1", "x2", "y1", "y2", "width", "height", "text-anchor"}
    attributes = {name for _, attrs in found.tags for name in attrs}
    assert attributes <= allowed | drawing | {"scope", "tabindex", "role"} | {
        name for name in attributes if name.startswith("aria-")
    }
    for _, attrs in found.tags:
        for name in ("src", "href"):
            assert (attrs.get(name) or "#").startswith(
                ("data:image/jpeg;base64,", "data:image/png;base64,", "data:,", "#")
            )
    assert html.escape(EVIL) in found.source
    for name in ("{{ 7*7 }}", "&lt;b&gt;", r"rtl\u202eevil", r"new\nline", "x" * 120, hostile[1].name):
        assert name in found.words
    assert "\u202e" not in found.source
    for data in found.pictures().values():  # thumbnails
        assert max(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape) == 224


@pytest.mark.parametrize("why", ["gone", "changed"])
def test_a_source_that_is_gone_is_one_warning(
    hostile: tuple[Path, Path], tmp_path: Path, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "moved"
    if why == "changed":
        shutil.copytree(hostile[1], source, copy_function=shutil.copyfile)  # newer than what was scanned
    shutil.copytree(hostile[0], tmp_path / "set")
    rewrite_info(tmp_path / "set", lambda info: info["sources"][0].update(path=str(source)))
    page = tmp_path / "page.html"
    result = report(tmp_path / "set", "--out", page)
    assert result.exit_code == 0, result.output
    lost = Manifest(tmp_path / "set").count("dropped")
    assert lost == len(HOSTILE)
    said = "No such file or directory" if why == "gone" else "changed since it was scanned"
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"{page}: {lost} pictures could not be read from their sources: {source}/")
    assert said in warning
    assert page.read_text().count("The source no longer gives this picture") == lost
    assert f"{lost} pictures below could not be read" in Page(page).words


def test_a_damaged_shard_is_an_error(tiny_dataset: Manifest, tmp_path: Path) -> None:
    shutil.copytree(tiny_dataset.path, tmp_path / "set")
    shard = next((tmp_path / "set" / "shards").glob("*.mindrecord"))
    shard.unlink()
    result = report(tmp_path / "set", "--out", tmp_path / "page.html")
    assert result.exit_code == 1
    assert str(shard) in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert os.listdir(tmp_path) == ["set"]


def test_a_set_without_drops(tmp_path: Path) -> None:
    source = tmp_path / "faces"
    for name in ("ann", "bob"):
        (source / name).mkdir(parents=True)
        for copy in range(3):
            write(source / name / f"{copy}.jpg", draw(100 * len(os.listdir(source)) + copy), 90)
    found = run_build(source, tmp_path / "set", BuildConfig(shards=1, image_size=(0, 0)))
    assert found.totals["dropped"] == {}
    result = report(found.path, "--out", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    words = Page(tmp_path / "page.html").words
    assert "Nothing: every record scanned is in the shards." in words
    assert words.count("There are none.") == 3  # near duplicates, conflicts, links
    assert "Test pictures" not in words
    assert "Mirrored" not in words
    assert "The largest identities" in words
    assert "The smallest identities" not in words


def test_a_set_made_from_another_says_so(tiny_dataset: Manifest, tmp_path: Path) -> None:
    shutil.copytree(tiny_dataset.path, tmp_path / "set")
    split = {"unseen": "5%", "seed": 3, "parent": {"fingerprint": "f00d" * 16}}
    rewrite_info(tmp_path / "set", lambda info: info.update(split=split))
    assert report(tmp_path / "set", "--out", tmp_path / "page.html").exit_code == 0
    line = f"made from the dataset with fingerprint {'f00d' * 16}, by a split (unseen=5%, seed=3)"
    assert line in Page(tmp_path / "page.html").words


@pytest.mark.parametrize("command", ["report", "build"])
def test_without_jinja_the_extra_is_named(
    tiny_dataset: Manifest, tiny_source: Path, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("faceshards.inspection.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    page, out = tmp_path / "page.html", tmp_path / "set"
    asked = (tiny_dataset.path, "--out", page)
    result = report(*asked) if command == "report" else build("--source", tiny_source, "--out", out, "--report", page)
    line = f"Error: {command} needs jinja2, which is not installed: pip install 'faceshards[manifest]'\n"
    assert (result.exit_code, result.stderr) == (1, line)
    assert os.listdir(tmp_path) == []


def test_places_that_are_refused(tiny_dataset: Manifest, tmp_path: Path) -> None:
    (tmp_path / "link.html").symlink_to(tmp_path / "other.html")
    for page, cause in (
        (tmp_path, "no regular file"),
        (tmp_path / "link.html", "a link; name the file itself"),
        (tiny_dataset.path / "page.html", "inside the dataset, which stays as it was published"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        result = report(tiny_dataset.path, "--out", page)
        assert (result.exit_code, result.stderr) == (1, f"Error: {page}: {cause}\n")
    assert os.listdir(tmp_path) == ["link.html"]


def build(*arguments: str | Path) -> Result:
    options = ("--set", "shards=1", "--set", "image_size=[0,0]", "--workers", "1", "--quiet")
    return CliRunner().invoke(main, ["build", *map(str, arguments), *options])


def test_a_build_ends_with_its_report(tmp_path: Path) -> None:
    for copy in range(3):
        (tmp_path / "faces" / "ann").mkdir(parents=True, exist_ok=True)
        write(tmp_path / "faces" / "ann" / f"{copy}.jpg", draw(copy), 90)
    out, page = tmp_path / "set", tmp_path / "page.html"
    asked = ("--source", tmp_path / "faces", "--out", out)
    result = build(*asked, "--report", out / "page.html")
    assert result.stderr == f"Error: {out}/page.html: inside the dataset, which stays as it was published\n"
    assert not out.exists()  # before anything is built
    result = build(*asked, "--report", page)
    assert result.exit_code == 0, result.output
    assert re.fullmatch(rf"report {page}: 0\.\d+ MB, 3 pictures", result.stdout.splitlines()[-1])
    assert report(out, "--out", tmp_path / "again.html").exit_code == 0
    assert page.read_bytes() == (tmp_path / "again.html").read_bytes()
    page.unlink()
    assert json.loads(build(*asked, "--report", page, "--json").stdout)["kept"] == 3  # published already
    assert page.exists()


# --- as a browser shows it


LOOK = """() => ({
  wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  pictures: document.images.length,
  broken: [...document.images].filter(image => !image.naturalWidth).length,
  unnamed: [...document.images].filter(image => !image.alt).length,
  lost: [...document.querySelectorAll('nav a')].filter(a => !document.querySelector(a.getAttribute('href'))).length,
})"""
CONTRAST = """() => {
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(v => v / 255).map(
    v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
  const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (c !== 'rgba(0, 0, 0, 0)') return c; } return 'rgb(255, 255, 255)'; };
  const texts = [...document.querySelectorAll('body *')].filter(e => e.getClientRects().length && !e.closest('svg')
    && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()));
  return Math.min(...texts.map(e => { const [a, b] = [getComputedStyle(e).color, ground(e)].map(light);
    return (Math.max(a, b) + .05) / (Math.min(a, b) + .05); })); }"""


@pytest.mark.slow
@pytest.mark.parametrize("of", ["tiny", "hostile"])
def test_a_browser_shows_it(browser: Any, tiny_page: Path, hostile: tuple[Path, Path], tmp_path: Path, of: str) -> None:
    page = tiny_page
    if of == "hostile":
        page = tmp_path / "page.html"
        assert report(hostile[0], "--out", page).exit_code == 0
    for width, scheme in ((1200, "light"), (500, "light"), (1200, "dark"), (500, "dark")):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        shown = context.new_page()
        said: list[str] = []
        shown.on("console", lambda message, said=said: said.append(message.text))
        shown.on("pageerror", lambda error, said=said: said.append(str(error)))
        shown.on("dialog", lambda dialog, said=said: (said.append(dialog.message), dialog.dismiss()))
        asked: list[str] = []
        shown.on("request", lambda request, asked=asked: asked.append(request.url))
        shown.goto(page.as_uri(), wait_until="load")
        assert said == []
        assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
        looks = shown.evaluate(LOOK)
        assert looks.pop("pictures") == page.read_text().count("<img ")
        assert looks == {"wide": 0, "broken": 0, "unnamed": 0, "lost": 0}
        assert shown.evaluate(CONTRAST) >= 4.5  # WCAG 2.2, 1.4.3 (AA)
        grounds = shown.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (grounds == "rgb(17, 19, 24)") == (scheme == "dark")
        context.close()

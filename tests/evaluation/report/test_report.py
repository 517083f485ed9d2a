"""The report: what is in the table, in the JSON and on the page."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pytest

import faceshards
from evaluation.origin import NOTE, Origin
from evaluation.protocol.metrics import METRICS
from evaluation.protocol.verification import verify_distances
from evaluation.report.figures import POINTS, roc_band, roc_points
from evaluation.report.published import published, published_ijbc
from evaluation.report.table import Entry, table
from evaluation.report.write import KEYS, NEAREST, PAGE, write, wrong_pairs
from tests.recs import jpeg

PAIRS = 40


def origin(backbone="", trained_on="", **more):
    """Returns the origin of figures that a model from elsewhere gives."""
    return Origin("r50.onnx", "0123456789abcdef" * 4, backbone, trained_on=trained_on, **more)


def entry(name, seed=0, spread=0.3, pictures=(), digest=""):
    """Returns an entry of random distances; the smaller the spread, the better they tell persons apart."""
    rng = np.random.default_rng(seed)
    same = np.arange(PAIRS) % 2 == 0
    dist = np.clip(np.where(same, 0.8, 1.6) + rng.normal(0, spread, PAIRS), 0, 4)
    result = verify_distances(dist, same, fars=(1e-1, 1e-6), bootstrap=50)
    return Entry(name, result, result, dist, same, pictures, digest=digest)


def test_the_fields_sets_come_first_with_published_figures():
    entries = [entry("mine"), entry("CPLFW"), entry("lfw"), entry("AgeDB-30")]
    lines = table(entries, origin("r50", "CASIA-WebFace"))
    assert [line.split()[0] for line in lines[1:5]] == ["lfw", "AgeDB-30", "CPLFW", "mine"]
    assert lines[0].split()[-2:] == ["mindface", "CVLface"]
    accuracy = 100 * entry("lfw").result.value("accuracy")
    assert lines[1].split()[-4:] == ["98.67", f"{accuracy - 98.67:+.2f}", "99.37", f"{accuracy - 99.37:+.2f}"]
    assert max(map(len, lines)) <= 150
    assert "mindface" not in table([entry("lfw")], origin("r50", "synthetic"))[0]
    assert published("vit_l", "ms1mv2", "cfp-fp") == published("vit_l", "ms1mv2", "b/cfp-fp") == {"mindface": 93.71}
    assert published_ijbc("r100", "Glint360K") == 97.55


def test_the_page_is_complete_and_shows_what_is_wrong(tmp_path):
    found = entry("a<b>$c", pictures=[jpeg(i) for i in range(2 * PAIRS)])
    write(tmp_path, [found], origin("r50", "<script>"))
    page = (tmp_path / "report.html").read_text()
    assert "<script>" not in page
    assert "a<b>" not in page
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert "http" not in page
    kinds = wrong_pairs(found)
    limit = np.repeat(found.result.fold_thresholds, PAIRS // 10)
    wrong = (found.distances < limit) != found.same
    assert [kind["wrong"] for kind in kinds] == [int((wrong & ~found.same).sum()), int((wrong & found.same).sum())]
    assert [len(shown(kind)) for kind in kinds] == [kind["wrong"] or NEAREST for kind in kinds]
    assert page.count("data:image/jpeg") == 2 * sum(len(shown(kind)) for kind in kinds) > 0
    assert 'alt=""' not in page
    assert " ± " in page
    assert "+-" not in page
    assert any(kind["wrong"] for kind in kinds)
    for kind in kinds:
        assert wrong[[pair["number"] for pair in shown(kind)]].all() == (kind["wrong"] > 0)


def shown(kind):
    """Returns the pairs of all pages."""
    assert all(len(page) == PAGE for page in kind["pages"][:-1])
    return [pair for page in kind["pages"] for pair in page]


def test_without_errors_the_nearest_are_shown_as_such(tmp_path):
    found = entry("easy", spread=0.0)
    assert [(kind["wrong"], len(shown(kind))) for kind in wrong_pairs(found)] == [(0, 5), (0, 5)]
    write(tmp_path, [found], origin())
    assert (tmp_path / "report.html").read_text().count("nearest to the threshold") == 2


def test_json_has_every_figure_and_no_nan(tmp_path):
    write(tmp_path, [entry("lfw")], origin("r50", "casia"))

    def refuse(name):
        raise AssertionError(name)

    report = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)["sets"][0]
    assert report["tar"]["1e-06"] is None
    assert report["tar_intervals"]["0.1"][0] <= report["tar"]["0.1"] <= report["tar_intervals"]["0.1"][1]
    assert report["threshold_cosine"] == pytest.approx(1 - report["threshold"] / 2)
    assert report["published"] == {"mindface": 98.67, "CVLface": 99.37}
    assert list(report) == list(KEYS)
    assert [name for name, value in report.items() if value is None] == []


def test_a_new_metric_comes_last_in_the_json(tmp_path, monkeypatch):
    monkeypatch.setitem(METRICS, "worst fold", lambda pairs: {"worst_fold": pairs.judged.accuracies.min(axis=1)})
    found = entry("lfw")
    write(tmp_path, [found], origin())
    report = json.loads((tmp_path / "report.json").read_text())["sets"][0]
    assert list(report) == [*KEYS, "worst_fold", "worst_fold_interval"]
    assert report["worst_fold"] == min(found.result.fold_accuracies)


def test_the_table_has_the_rates_that_are_asked_for_and_figures_of_others(monkeypatch):
    monkeypatch.setitem(METRICS, "worst fold", lambda pairs: {"worst_fold": pairs.judged.accuracies.min(axis=1)})
    asked = replace(entry("lfw"), fars=(0.05, 1e-3))
    head, row = table([asked], origin())[:2]
    assert re.findall(r"\S+@\S+|worst_fold", head) == ["VAL@1e-3", "TAR@0.05", "TAR@1e-3", "worst_fold"]
    assert row.split()[head.split().index("worst_fold") - len(head.split())] == (
        f"{100 * min(asked.result.fold_accuracies):.2f}"
    )


def test_a_curve_of_many_pairs_has_few_points():
    rng = np.random.default_rng(0)
    same = rng.random(200_000) < 0.5
    dist = rng.random(200_000) + ~same
    far, tar = roc_points(dist, same)
    assert len(far) <= POINTS
    for i in (0, len(far) // 2, len(far) - 2):
        # The definition: as many impostor pairs accepted as the rate says, and all genuine pairs below the next one.
        border = np.sort(dist[~same])[round(far[i] * (~same).sum())]
        assert tar[i] == np.mean(dist[same] < border)


def test_a_curves_band_is_that_of_resampled_pairs():
    """Each resample is made as such, and its curve is read off by the definition."""
    rng = np.random.default_rng(1)
    same = rng.random(120) < 0.4
    dist = rng.normal(np.where(same, 0.8, 1.4), 0.4)
    genuine, impostor = np.sort(dist[same]), np.sort(dist[~same])
    far, _ = roc_points(dist, same)
    drawn, curves = np.random.default_rng(5), []
    for _ in range(30):
        others, own = (np.sort(kind[drawn.integers(len(kind), size=len(kind))]) for kind in (impostor, genuine))
        borders = [
            others[count] if count < len(others) else np.inf for count in (far * len(others)).round().astype(int)
        ]
        curves.append([np.mean(own < border) for border in borders])
    band = roc_band(dist, same, samples=30, seed=5)
    np.testing.assert_allclose(band, np.quantile(curves, (0.025, 0.975), axis=0), rtol=0, atol=1e-12)


def test_a_set_that_chose_the_model_is_marked_everywhere(tmp_path):
    entries = [entry("lfw", digest="d" * 64), entry("orl", digest="e" * 64), entry("old", digest="f" * 64)]
    # By its pairs, whatever its name is now; by its name alone, where a checkpoint of before knows no more.
    known = origin("r50", step=300, dataset="mine", fingerprint="9" * 64, chosen_on={"faces": "e" * 64, "old": ""})
    rows = {line.split()[0]: line for line in table(entries, known)}
    assert [name for name, line in rows.items() if line.split()[1] == "*"] == ["orl", "old"]
    assert table(entries, known).count(NOTE) == 1
    assert table(entries, known)[-3:-1] == [
        "model r50.onnx: r50, step 300, sha256 0123456789ab",
        "trained on mine, fingerprint 999999999999",
    ]
    write(tmp_path, entries, known)
    report = json.loads((tmp_path / "report.json").read_text())
    assert {row["set"]: row["chose_the_model"] for row in report["sets"]} == {"lfw": False, "orl": True, "old": True}
    page = (tmp_path / "report.html").read_text()
    assert page.count(NOTE) == 3  # below the table, and in both sections
    assert "<h2>orl *</h2>" in page
    assert "<h2>lfw</h2>" in page
    assert "trained on mine, fingerprint 999999999999" in page
    # Another set of a name that chose it is not that set.
    assert not origin(chosen_on={"lfw": "a" * 64}).chosen_by("lfw", "d" * 64)
    assert NOTE not in table(entries, origin())


def test_a_report_says_of_what_it_is(tmp_path):
    write(tmp_path, [entry("lfw")], origin("r50", "casia"))
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["model"] == {
        "file": "r50.onnx",
        "sha256": "0123456789abcdef" * 4,
        "backbone": "r50",
        "channels": None,
        "input_range": None,
        "step": None,
        "dataset": None,
        "fingerprint": None,
        "trained_on": "casia",
        "chosen_on": [],
    }
    assert report["versions"].items() >= {"numpy": np.__version__, "faceshards": faceshards.__version__}.items()
    assert datetime.fromisoformat(report["date"]).utcoffset() == timedelta(0)
    assert table([entry("lfw")], origin())[-2] == "trained on: not known"
    assert "trained on casia, as --trained-on says" in (tmp_path / "report.html").read_text()


LOOK = """() => {
  const table = document.querySelector('.wide'), opened = document.querySelector('details.page[open]');
  const picture = opened.querySelector('img').getBoundingClientRect();
  return {
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    hidden: table.scrollWidth - table.clientWidth,
    bar: table.offsetHeight - table.clientHeight,
    unnamed: [...document.images].filter(image => !image.alt).length,
    broken: [...document.images].filter(image => !image.naturalWidth).length,
    plots: [...document.querySelectorAll('svg')].filter(svg => svg.getAttribute('role') === 'img').length,
    picture: [picture.width, picture.height],
    opened: [...document.querySelectorAll('details.page')].filter(page => page.open).length,
    apart: Math.min(...[...document.querySelectorAll('.plot')].map(
      plot => plot.getBoundingClientRect().top - plot.previousElementSibling.getBoundingClientRect().bottom)),
  };
}"""


def test_a_browser_shows_it(browser, tmp_path):
    """On a narrow window the table scrolls in itself, by a bar that is there; a page of wrong pairs opens alone."""
    bad = entry("lfw", spread=2.0, pictures=[jpeg(i) for i in range(2 * PAIRS)])
    kinds = wrong_pairs(bad)
    write(tmp_path, [bad, entry("orl", pictures=[jpeg(i) for i in range(2 * PAIRS)])], origin("r50", "casia"))
    colours = set()
    for width, scheme in ((1200, "light"), (500, "light"), (500, "dark")):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        shown_page = context.new_page()
        shown_page.goto((tmp_path / "report.html").as_uri(), wait_until="load")
        looks = shown_page.evaluate(LOOK)
        assert looks["wide"] <= 0
        assert (looks["hidden"] > 0) == (looks["bar"] > 0)
        assert looks["hidden"] > 0 or width > 500
        assert (looks["unnamed"], looks["broken"], looks["plots"]) == (0, 0, 3)
        assert looks["picture"] == [140, 140]
        assert looks["opened"] == 4  # the first of each kind of each set
        assert looks["apart"] >= 16
        colours.add(shown_page.evaluate("getComputedStyle(document.querySelector('svg text')).fill"))
        if len(kinds[0]["pages"]) > 1:
            shown_page.locator("details.page:not([open]) summary").first.click()
            assert shown_page.evaluate(LOOK)["opened"] == 4
        context.close()
    assert len(colours) == 2  # the figures take the page's

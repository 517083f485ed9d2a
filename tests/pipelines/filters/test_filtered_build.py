"""Builds with filters: what was planted goes, with what was measured, and nothing else; and the books add up."""

from __future__ import annotations

import html
import json
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from distributed import LocalCluster

from faceshards.cli.main import main
from faceshards.dataset.manifest import Manifest, ManifestError
from faceshards.dataset.schema import DROP_REASONS, SCHEMAS
from faceshards.dataset.verify import verify
from faceshards.errors import BuildError, ConfigError
from faceshards.extensions import ExtensionError
from faceshards.formats.verification_bin import write_bin
from pipelines.config import BuildConfig
from pipelines.filters.registry import FILTERS
from pipelines.synthetic.spoiled import SPOILED
from pipelines.synthetic.write import SyntheticSpec
from pipelines.workspace import work_folder
from tests.pipelines.build_fixtures import (
    digests,
    read_defects,
    read_rec,
    rewrite_info,
    run_build,
    shared_worker,
    synthetic_set,
)

SPEC = SyntheticSpec(identities=12, images=180, defects=0, spoiled=3, unseen=0, pairs=0, seed=7)
CONFIG = BuildConfig(image_size=(0, 0), shards=2, filters={name: {} for name in FILTERS})
LIMITS = {  # value and threshold of each reason, as documented
    "blurred": ("variance", "<", 30),
    "dark": ("mean", "<", 12),
    "bright": ("mean", ">", 240),
    "flat": ("spread", "<", 20),
    "gray": ("chroma", "<", 4),
    "small": ("side", "<", 40),
    "narrow": ("aspect", ">", 2),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_set(tmp_path_factory.mktemp("spoiled"), SPEC)


@pytest.fixture(scope="module")
def filtered(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return run_build(source, tmp_path_factory.mktemp("built") / "filtered", CONFIG)


def call(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_all_that_was_planted_goes_and_no_good_picture(source, filtered):
    planted = {row["key"]: row["kind"] for row in read_defects(source)}
    assert Counter(planted.values()) == dict.fromkeys(SPOILED, 3)
    dropped = filtered.table("dropped").to_pylist()
    assert {row["key"]: row["reason"] for row in dropped} == planted
    for row in dropped:
        name, sign, limit = LIMITS[row["reason"]]
        what, value, *rest = row["detail"].split()
        assert (what, rest) == (name, [sign, str(limit)])
        assert (float(value) < limit) == (sign == "<")
        assert row["representative"] is row["distance"] is None


def test_the_books_and_tables_have_the_filters_reasons(source, filtered):
    assert filtered.totals["dropped"] == dict.fromkeys(
        ("small", "narrow", "dark", "bright", "flat", "gray", "blurred"), 3
    )
    assert filtered.info["reasons"] == list(CONFIG.filter_reasons)
    assert filtered.reasons == (*DROP_REASONS, *CONFIG.filter_reasons)
    assert filtered.info["config"]["filters"] == CONFIG.filters
    lost = Counter((row["label_original"], row["reason"]) for row in filtered.table("dropped").to_pylist())
    for row in filtered.table("identities").to_pylist():
        told = {reason: row[reason] for reason in filtered.reasons}
        assert told == {reason: lost[row["label_original"], reason] for reason in filtered.reasons}
        assert row["kept"] + sum(told.values()) == row["scanned"]
    assert sum(map(len, filtered.batches("identities"))) == filtered.count("identities")
    assert list(verify(filtered)) == []


def test_commands_know_the_filters_reasons(filtered, tiny_dataset):
    rows = json.loads(call("manifest", "drops", filtered.path, "--reason", "flat", "--reason", "dark", "--json"))
    assert Counter(row["reason"] for row in rows) == {"flat": 3, "dark": 3}
    titles = call("manifest", "identities", filtered.path, "--limit", 1).splitlines()[0].split()
    assert titles == ["label", "label_original", "scanned", "kept", *CONFIG.filter_reasons]
    (row, *_) = json.loads(call("manifest", "identities", filtered.path, "--json"))
    assert list(row) == [*SCHEMAS["identities"].names, *CONFIG.filter_reasons]
    assert "dropped                3  blurred\n" in call("manifest", "summary", filtered.path)
    refused = CliRunner().invoke(main, ["manifest", "drops", str(tiny_dataset.path), "--reason", "flat"])
    assert refused.exit_code == 2
    assert f"--reason: 'flat' is not one of {', '.join(DROP_REASONS)}" in refused.output


def test_books_that_lack_a_reason_do_not_add_up(filtered, tmp_path):
    copy = shutil.copytree(filtered.path, tmp_path / "copy")
    path = copy / "manifest" / "identities.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["flat"]), path)
    rewrite_info(copy, lambda info: info["reasons"].remove("flat"))
    assert "identities has no column flat" in {found.text for found in verify(Manifest(copy))}
    rewrite_info(copy, lambda info: info.update(reasons="flat"))
    with pytest.raises(ManifestError, match="reasons is no list of names"):
        Manifest(copy)


def test_the_page_shows_what_was_sorted_out_and_its_values(filtered, tmp_path):
    page = tmp_path / "page.html"
    call("manifest", "report", filtered.path, "--out", page)
    text = page.read_text()
    for row in filtered.table("dropped").to_pylist():
        if row["reason"] in CONFIG.filter_reasons:
            assert f"<h2>Sorted out: {row['reason']}</h2>" in text
            assert f"<span>{html.escape(row['detail'])}</span>" in text


def test_a_set_without_filters_has_none_of_it(tiny_dataset):
    assert "reasons" not in tiny_dataset.info
    assert tiny_dataset.info["config"]["filters"] == {}
    assert tiny_dataset.reasons == DROP_REASONS
    assert set(CONFIG.filter_reasons).isdisjoint(tiny_dataset.table("identities").column_names)


def test_a_plan_shows_how_the_values_lie(source, tmp_path):
    ask = ["build", "--source", source, "--out", tmp_path / "out", "--set", "image_size=[0,0]"]
    ask += ["--set", "filters=[blur,size]", "--scheduler", shared_worker(), "--quiet", "--plan"]
    told = json.loads(call(*ask, "--json"))
    assert told["dropped"]["small"] == told["dropped"]["narrow"] == 3
    rows = {(row["filter"], row["measure"]): row for row in told["measured"]}
    assert set(rows) == {("blur", "variance"), ("size", "side"), ("size", "aspect")}
    side = rows["size", "side"]
    assert side["images"] == SPEC.records
    assert side["quantiles"]["0"] < 40 < side["quantiles"]["0.5"] == 112
    lines = call(*ask).splitlines()
    (place,) = (number for number, line in enumerate(lines) if "measured by filters" in line)
    assert [line.split()[:2] for line in lines[place + 2 : place + 5]] == [[*names] for names in sorted(rows)]
    assert max(map(len, lines[place : place + 5])) <= 80
    # A plan's record tables have the verdicts of its own thresholds: a build with others may not go on from there.
    stricter = [*ask[:-1], "--set", "filters.blur.min_variance=300"]
    refused = CliRunner().invoke(main, [*map(str, stricter)])
    assert refused.exit_code == 1
    assert "a plan has another request" in refused.output
    built = json.loads(call(*stricter, "--restart", "--json"))
    assert built["dropped"]["blurred"] > told["dropped"]["blurred"]


# --- order


def person(folder: Path, pictures: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, data in pictures.items():
        (folder / name).write_bytes(data)


def face(source: Path, number: int) -> np.ndarray:
    records, planted = read_rec(source / "train.rec"), {int(row["key"]) for row in read_defects(source)}
    clean = [image for key, (_, image) in records.items() if key not in planted]
    return cv2.imdecode(np.frombuffer(clean[number], np.uint8), cv2.IMREAD_COLOR)


def encoded(picture: np.ndarray, suffix: str = ".jpg") -> bytes:
    return cv2.imencode(suffix, picture)[1].tobytes()


@pytest.mark.slow
def test_a_spoiled_copy_does_not_stand_for_a_sharp_one(source, tmp_path):
    """A blurred copy in the larger file is what dedupe would keep."""
    sharp = face(source, 0)
    blurred = cv2.GaussianBlur(sharp, (0, 0), 2.5)
    pictures = {"a.jpg": encoded(sharp), "b.png": encoded(blurred, ".png"), "c.jpg": encoded(face(source, 40))}
    assert len(pictures["b.png"]) > len(pictures["a.jpg"])
    person(tmp_path / "in" / "ann", pictures)
    limit = cv2.Laplacian(cv2.resize(cv2.cvtColor(blurred, 6), (56, 56), interpolation=3), cv2.CV_64F).var() + 20
    with_filter = BuildConfig(shards=1, near_within=40, filters={"blur": {"min_variance": float(limit)}})
    for config, kept, reason in (
        (BuildConfig(shards=1, near_within=40), {"ann/b.png", "ann/c.jpg"}, {"ann/a.jpg": "near_duplicate"}),
        (with_filter, {"ann/a.jpg", "ann/c.jpg"}, {"ann/b.png": "blurred"}),
    ):
        found = run_build(tmp_path / "in", tmp_path / f"out-{len(config.filters)}", config)
        assert set(found.table("images")["key"].to_pylist()) == kept
        assert {row["key"]: row["reason"] for row in found.table("dropped").to_pylist()} == reason


def test_broken_goes_before_filtered_and_filtered_before_all_else(source, tmp_path):
    good, gray = face(source, 0), cv2.cvtColor(face(source, 40), cv2.COLOR_BGR2GRAY)
    person(
        tmp_path / "in" / "ann",
        {
            "a.jpg": encoded(good),
            "b.jpg": encoded(face(source, 80)),
            "cut.jpg": encoded(gray)[:900],
            "gray.jpg": encoded(gray),
            "same.jpg": encoded(gray),
            "wide.jpg": encoded(gray[:80]),
        },
    )
    person(tmp_path / "in" / "bob", {"x.jpg": encoded(gray), "y.jpg": encoded(face(source, 120))})
    write_bin(tmp_path / "test.bin", [encoded(gray), encoded(good)], [False])
    config = BuildConfig(shards=1, min_images=1, filters={"gray": {}, "size": {"min_side": 100}})
    found = run_build(tmp_path / "in", tmp_path / "out", config, exclude=[tmp_path / "test.bin"])
    assert {row["key"]: row["reason"] for row in found.table("dropped").to_pylist()} == {
        "ann/a.jpg": "test_overlap",
        "ann/cut.jpg": "undecodable",
        "ann/gray.jpg": "gray",  # no test picture, no duplicate, and no conflict with bob's
        "ann/same.jpg": "gray",
        "ann/wide.jpg": "wrong_size",
        "bob/x.jpg": "gray",
    }
    assert found.totals["conflicts"] == 0
    assert found.table("identities")["test_overlap"].to_pylist() == [1, 0]
    assert list(verify(found)) == []


# --- another threshold, and a filter of another package


@pytest.mark.slow
def test_another_threshold_is_another_request(source, filtered, tmp_path):
    stricter = BuildConfig(image_size=(0, 0), shards=2, filters={**CONFIG.filters, "blur": {"min_variance": 300}})
    before = digests(filtered.path)
    with pytest.raises(BuildError, match="from another request; --overwrite replaces it"):
        run_build(source, filtered.path, stricter)
    assert digests(filtered.path) == before
    found = run_build(source, tmp_path / "out", stricter)
    assert found.totals["dropped"]["blurred"] > 3
    kept, more = (set(one.table("images")["key"].to_pylist()) for one in (filtered, found))
    assert more < kept
    assert digests(run_build(source, tmp_path / "out", CONFIG, overwrite=True).path) == before


MODULE = '''
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

@dataclass(frozen=True)
class Heavy:
    """Drops large files, and fails at one of them while a file says so."""

    max_bytes: int = 4000
    fail: str = ""

    REASONS: ClassVar = ("heavy",)

    def check(self, image):
        size = image.measure("bytes", image.encoded.size)
        if size > self.max_bytes:
            if self.fail and Path(self.fail).exists():
                raise RuntimeError("no more")
            return "heavy", f"{size:g} bytes > {self.max_bytes}"

class Plain:
    REASONS = ("plain",)

    def check(self, image):
        pass

def no_filter():
    pass
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of someone else's, as pip leaves it, with entry points."""
    site = tmp_path / "site"
    info = site / "heavyfilter-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "heavyfilter.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: heavyfilter\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[faceshards.filters]\nheavy = heavyfilter:Heavy\nabsent = heavyfilter:Absent\n"
        "function = heavyfilter:no_filter\nplain = heavyfilter:Plain\n"
    )
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=":")


@pytest.fixture
def workers(package):
    """The address of two workers that know the package."""
    with LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0") as found:
        yield found.scheduler_address


@pytest.mark.slow
def test_a_filter_of_another_package_fails_is_mended_and_goes_on(workers, source, tmp_path):
    flag = tmp_path / "fail"
    flag.touch()
    sizes = [len(image) for image in images_of(source)]
    limit = sorted(sizes)[-2]  # the largest alone is heavier, and it has a key
    filters = {"heavy": {"max_bytes": limit, "fail": str(flag)}, "size": {}}
    config = BuildConfig(image_size=(0, 0), shards=2, filters=filters)
    assert list(config.filters) == ["size", "heavy"]
    out = tmp_path / "out"
    where = rf"train\.rec: record {sizes.index(max(sizes)) + 1}: filter heavy: RuntimeError: no more$"
    with pytest.raises(BuildError, match=where):
        run_build(source, out, config, scheduler=workers)
    assert not out.exists()
    assert any((work_folder(out) / "records").iterdir())  # what the build goes on from
    flag.unlink()
    other = BuildConfig(image_size=(0, 0), shards=2, filters={"heavy": {**filters["heavy"], "max_bytes": limit + 1}})
    with pytest.raises(BuildError, match=r"has another request .max_bytes: .*; repeat it as it was, or pass --restart"):
        run_build(source, out, other, scheduler=workers)
    found = run_build(source, out, config, scheduler=workers)
    assert found.totals["dropped"]["heavy"] == 1
    (row,) = (row for row in found.table("dropped").to_pylist() if row["reason"] == "heavy")
    assert row["detail"] == f"{max(sizes)} bytes > {limit}"
    assert list(verify(found)) == []
    assert digests(run_build(source, tmp_path / "at once", config, scheduler=workers).path) == digests(out)


def images_of(source: Path) -> list[bytes]:
    """Returns the images of a set in the order of their keys, 1 and up."""
    return [image for _, (_, image) in sorted(read_rec(source / "train.rec").items())]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("absent", "(heavyfilter:Absent): AttributeError: module 'heavyfilter' has no attribute 'Absent'"),
        ("function", "(heavyfilter:no_filter): has no REASONS, check"),
        ("plain", "(heavyfilter:Plain): is no dataclass, whose fields would be its settings"),
    ],
)
def test_entry_points_that_bring_no_filter(package, name, line):
    with pytest.raises(ExtensionError) as error:
        BuildConfig(filters={name: {}})
    assert str(error.value) == f"faceshards.filters '{name}' of the package heavyfilter 1.0 {line}"
    names = "size, exposure, gray, blur, absent, function, heavy, plain"
    with pytest.raises(ConfigError, match=rf"^filters: no filter 'heavyy'; there are {names}$"):
        BuildConfig(filters={"heavyy": {}})


def test_a_filter_that_takes_a_name(package, tmp_path):
    entries = tmp_path / "site" / "heavyfilter-1.0.dist-info" / "entry_points.txt"
    entries.write_text("[faceshards.filters]\nblur = heavyfilter:Heavy\n")
    with pytest.raises(ExtensionError, match=r"\(heavyfilter:Heavy\): the name is taken by faceshards"):
        BuildConfig(filters={"size": {}})


def test_a_set_outlives_the_package_of_its_filter(filtered, tmp_path):
    """Reasons are names in the tables; whoever reads them needs no filter."""
    copy = shutil.copytree(filtered.path, tmp_path / "copy")
    path = copy / "manifest" / "identities.parquet"
    table = pq.read_table(path)
    renamed = [{"flat": "nebulous"}.get(name, name) for name in table.column_names]
    pq.write_table(table.rename_columns(renamed), path)
    path = copy / "manifest" / "dropped.parquet"
    table = pq.read_table(path)
    rows = [{**row, "reason": row["reason"].replace("flat", "nebulous")} for row in table.to_pylist()]
    pq.write_table(type(table).from_pylist(rows, table.schema), path)

    def rename(info):
        info["reasons"] = [reason.replace("flat", "nebulous") for reason in info["reasons"]]
        info["totals"]["dropped"]["nebulous"] = info["totals"]["dropped"].pop("flat")
        info["config"]["filters"]["cloud"] = {"limit": 3}

    rewrite_info(copy, rename)
    assert list(verify(Manifest(copy))) == []
    rows = json.loads(call("manifest", "drops", copy, "--reason", "nebulous", "--json"))
    assert len(rows) == 3
    assert 'filters={"size"' in call("manifest", "summary", copy)

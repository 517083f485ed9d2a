"""A plan says what the build then does, hands its work on, and leaves nothing else."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from faceshards.dataset.manifest import Manifest
from faceshards.errors import BuildError
from faceshards.formats.verification_bin import write_bin
from faceshards.inspection.sizes import spread
from pipelines.config import BuildConfig
from pipelines.plan import plan
from pipelines.sources.base import in_sample
from pipelines.sources.find import find_files
from pipelines.synthetic.faces import encode_face
from pipelines.workspace import work_folder
from tests.faceshards.cli.test_cli import call, refusal
from tests.pipelines.build_fixtures import (
    CONFIG,
    PARTITION_BYTES,
    by_shared_worker,
    digests,
    external,
    read_rec,
    run_build,
    shared_worker,
)


def run_plan(source: Path, out: Path, config: BuildConfig = CONFIG, **options: Any) -> dict[str, Any]:
    files, _ = find_files(source)
    return plan("tiny", files, out, config, by_shared_worker(PARTITION_BYTES), **options)


def again(*_: object) -> None:
    raise AssertionError("done a second time")


def compare(told: dict[str, Any], found: Manifest) -> None:
    """Compares a plan with what was published."""
    exact = ("scanned", "kept", "dropped", "identities", "conflicts", "identity_links", "shards", "image_bytes")
    assert {name: told[name] for name in exact} == {name: found.totals[name] for name in exact}
    assert (told["warnings"], told["unsound"]) == (found.info["warnings"], found.info["unsound"])
    assert told["kept_out"] == found.info["dedupe"].get("test_overlap", {})
    people = found.table("identities", ["label_original", "kept"]).to_pylist()
    kept = [row["kept"] for row in people if row["kept"]]
    assert told["identity_sizes"] == spread(np.array(kept))
    assert told["identities_dropped"] == sum(row["label_original"] is not None for row in people) - len(kept)
    rows = found.table("shards", ["rows"])["rows"].to_pylist()
    assert told["shard_rows"] == {"least": min(rows), "most": max(rows)}
    assert told["image_sizes"] == spread(found.table("images", ["bytes"])["bytes"].to_numpy())
    near = [row["distance"] for row in found.table("dropped").to_pylist() if row["reason"] == "near_duplicate"]
    assert told["near_duplicate_bits"] == spread(np.array(near))
    shards, rest = (
        sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        for folder in (found.path / "shards", found.path / "manifest")
    )
    assert told["disk"]["shards"] == pytest.approx(shards, rel=0.01)
    assert told["disk"]["shards"] + told["disk"]["tables"] == pytest.approx(shards + rest, rel=0.1)


def test_the_build_does_what_was_planned_and_nothing_twice(tiny_source, tiny_digests, tmp_path, monkeypatch):
    out = tmp_path / "new" / "tiny"
    told = run_plan(tiny_source, out)
    work = work_folder(out)
    assert list(out.parent.iterdir()) == [work]
    assert told["work_folder"] == str(work)
    files = {path: path.stat().st_mtime_ns for path in work.rglob("*.parquet")}
    assert told["seconds"]["scan_and_sign"] > 0
    monkeypatch.setattr("pipelines.survey.sign_partition", again)
    monkeypatch.setattr("pipelines.survey.decide", again)
    assert run_plan(tiny_source, out) == {**told, "disk": {**told["disk"], "free": pytest.approx(1e15, abs=1e15)}}
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*.parquet")} == files
    found = run_build(tiny_source, out)
    assert digests(found.path) == tiny_digests
    assert not work.exists()
    compare(told, found)


def test_real_faces_with_some_kept_out(tmp_path):
    config = BuildConfig(image_size=(0, 0), near_within=40, min_images=3)
    faces = [image for _, image in read_rec(external("orl/train.rec")).values()][:12]
    write_bin(tmp_path / "set.bin", faces, [False] * 6)
    options = {"exclude": [tmp_path / "set.bin"]}
    told = run_plan(external("orl/train.rec"), tmp_path / "orl", config, **options)
    assert told["dropped"]["test_overlap"] == sum(told["kept_out"].values()) >= 12
    compare(told, run_build(external("orl/train.rec"), tmp_path / "orl", config, **options))


def test_other_settings_are_tried_on_the_same_scan(tiny_source, tmp_path, monkeypatch):
    out, strict = tmp_path / "tiny", dataclasses.replace(CONFIG, min_images=12, shards=0)
    write_bin(tmp_path / "set.bin", [encode_face(99, 0, 0), b"no picture"], [False])
    before = run_plan(tiny_source, out)
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.survey.sign_partition", again)
        told = run_plan(tiny_source, out, strict, exclude=[tmp_path / "set.bin"])
        assert any("1 of 2 pictures cannot be decoded" in line for line in told["warnings"])
        assert told["dropped"]["min_images"] > before["dropped"]["min_images"]
        with pytest.raises(
            BuildError,
            match=r"a plan has another request \(image_size: \[112, 112\] then, .*; repeat it as it was, or pass --",
        ):
            run_plan(tiny_source, out, BuildConfig(image_size=(0, 0)))
        # What was told of the set is not told of a build without it.
        compare(run_plan(tiny_source, out, strict), run_build(tiny_source, tmp_path / "tiny", strict))


def test_a_build_that_was_begun_is_no_plan_any_more(tiny_source, tmp_path, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "tiny"
    run_plan(tiny_source, out)
    monkeypatch.setattr("pipelines.build.assemble", stop)
    with pytest.raises(KeyboardInterrupt):
        run_build(tiny_source, out)
    for run in (run_plan, run_build):
        with pytest.raises(BuildError, match="has another request"):
            run(tiny_source, out, dataclasses.replace(CONFIG, seed=1))


def test_an_interrupted_plan_goes_on(tiny_source, tiny_dataset, tmp_path, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.survey.decide", stop)
        with pytest.raises(KeyboardInterrupt):
            run_plan(tiny_source, tmp_path / "tiny")
    monkeypatch.setattr("pipelines.survey.sign_partition", again)
    compare(run_plan(tiny_source, tmp_path / "tiny"), tiny_dataset)


@pytest.fixture(scope="module")
def folder(tiny_source: Path, tiny_dataset: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of the tiny set in a folder for each identity."""
    out = tmp_path_factory.mktemp("folder") / "tiny"
    done = call("export-data", tiny_dataset.path, out, "--to", "folder", "--quiet", "--scheduler", shared_worker())
    assert done.exit_code == 0, done.output
    return out


def test_a_sample_is_whole_identities(tiny_source, tiny_dataset, tmp_path):
    out, people = tmp_path / "tiny", tiny_dataset.table("identities").to_pylist()
    chosen = in_sample([row["label_original"] for row in people], 0.6)
    sample = [row for row, here in zip(people, chosen, strict=True) if here]
    told = run_plan(tiny_source, out, share=0.6)
    seen = sum(row["scanned"] for row in sample)
    assert told["looked_at"] == {"images": seen, "identities": len(sample)}
    assert 0 < len(sample) < len(people)
    scale = tiny_dataset.totals["scanned"] / seen
    for reason in ("undecodable", "wrong_size", "exact_duplicate", "near_duplicate"):
        assert told["dropped"].get(reason, 0) == round(sum(row[reason] for row in sample) * scale)
    assert told["dropped"].get("label_conflict", 0) <= round(sum(row["label_conflict"] for row in sample) * scale)
    assert told["kept"] + sum(told["dropped"].values()) == told["scanned"]
    assert told["scanned"] == pytest.approx(tiny_dataset.totals["scanned"], abs=3)  # each count is rounded
    assert list(tmp_path.iterdir()) == []
    assert "work_folder" not in told


def test_a_sample_of_a_folder_reads_no_other_file(folder, tmp_path):
    people = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    others = [name for name, here in zip(people, in_sample(people, 0.5), strict=True) if not here]
    assert 0 < len(others) < len(people)
    told = run_plan(folder, tmp_path / "tiny", share=0.5)
    assert told["looked_at"]["identities"] == len(people) - len(others)
    # What is not read cannot be found broken.
    for name in others:
        for path in (folder / name).iterdir():
            path.write_bytes(bytes(path.stat().st_size))
    assert run_plan(folder, tmp_path / "tiny", share=0.5)["dropped"].get("undecodable", 0) == 0


def test_a_sample_that_was_interrupted_is_nothing_to_a_build(tiny_source, tiny_digests, tmp_path, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "tiny"
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.plan._tell", stop)
        with pytest.raises(KeyboardInterrupt):
            run_plan(tiny_source, out, share=0.5)
    assert work_folder(out, "sample").exists()
    assert digests(run_build(tiny_source, out).path) == tiny_digests
    with pytest.raises(BuildError, match=r"an interrupted sample has another request \(sample: 0.5 then, 0.4 now\)"):
        run_plan(tiny_source, out, share=0.4, overwrite=True)
    monkeypatch.setattr("pipelines.survey.sign_partition", again)
    assert run_plan(tiny_source, out, share=0.5, overwrite=True)["sample"] == 0.5
    assert not work_folder(out, "sample").exists()


def test_what_a_build_would_refuse(tiny_source, tiny_dataset, tmp_path):
    arguments = ("build", "--source", tiny_source, "--plan", "--quiet", "--scheduler", shared_worker(), "--strict")
    result = call(*arguments, "--out", tmp_path / "new", "--json")
    assert (result.exit_code, result.stderr) == (1, "Error: a build would be refused\n")
    (said,) = json.loads(result.stdout)["refused"]
    assert said.startswith("--strict publishes nothing: tiny: 12 of 272 records are broken")
    there = call(*arguments[:-1], "--out", tiny_dataset.path, "--set", "seed=7")
    assert there.exit_code == 0
    assert "  refused     " in there.stdout
    assert "from another request; --overwrite replaces it" in there.stdout
    shutil.rmtree(work_folder(tiny_dataset.path))


@pytest.mark.parametrize("small_disk", [4], indirect=True)
def test_too_little_room_is_said(tiny_source, small_disk):
    (said,) = run_plan(tiny_source, small_disk / "tiny")["refused"]
    assert re.fullmatch(rf"{small_disk}: \d\.\d MB free, the build needs about \d\.\d MB", said)
    with pytest.raises(BuildError, match="free, the build needs about"):
        run_build(tiny_source, small_disk / "tiny")


def test_nothing_to_keep_and_nothing_to_look_at(tiny_source, tmp_path):
    with pytest.raises(BuildError, match=r"^nothing to publish: 10 records scanned"):
        run_plan(external("dmlc/sample.rec"), tmp_path / "out")
    with pytest.raises(BuildError, match=r"^in a sample of 0.001 %: there is no record of so few .*; take a larger"):
        run_plan(tiny_source, tmp_path / "out", share=1e-5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("share", ["0", "101%", "1.5", "-5%", "some", "nan", "%"])
def test_a_share_that_is_none(share, tmp_path):
    said = refusal("build", "synthetic", "--out", tmp_path / "out", "--plan", f"--sample={share}", code=2)
    assert f"{share}: no share above 0 to 100 %" in said


def test_a_sample_belongs_to_a_plan(tmp_path):
    said = refusal("build", "synthetic", "--out", tmp_path / "out", "--sample", "5%", code=2)
    assert "--sample belongs to --plan" in said

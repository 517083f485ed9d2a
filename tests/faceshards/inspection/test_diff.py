"""Two sets are compared as multisets of images: held to a count in plain Python, and to changes made by hand."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from faceshards.dataset.manifest import Manifest
from faceshards.inspection.images import compare_images
from tests.faceshards.cli.test_cli import call, refusal
from tests.pipelines.build_fixtures import flip_bit, rewrite_info

# Few digests, some equal in their first word alone, and few identities: everything repeats.
images = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), max_size=12)
# With so many more, first words that differ in their ninth bit alone are alike: the bits below number the rows.
crowd = [(6 + 6 * i, 0) for i in range(300)]


def arrays(rows: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    digests = np.array([[digest // 3 << 8, 7, digest % 3, 1] for digest, _ in rows], np.uint64).reshape(-1, 4)
    return digests, np.array([identity for _, identity in rows], np.int32)


@settings(deadline=None)
@given(images, images, st.sampled_from([[], crowd]))
@example([(0, 0)], [(1, 0)], [])
@example([(0, 0)], [(3, 0)], crowd)
def test_images_are_compared_as_multisets(
    a: list[tuple[int, int]], b: list[tuple[int, int]], more: list[tuple[int, int]]
) -> None:
    b = [*more, *b]
    found = compare_images(arrays(a), arrays(b))
    only_a, only_b = Counter(a) - Counter(b), Counter(b) - Counter(a)
    digests = [Counter(digest for digest, _ in only.elements()) for only in (only_a, only_b)]
    moved = digests[0] & digests[1]
    assert found.same == (Counter(a) & Counter(b)).total()
    assert Counter(a[i][0] for i in found.moved_a) == moved
    assert [a[i][0] for i in found.moved_a] == [b[i][0] for i in found.moved_b]
    assert Counter(a[i] for i in (*found.lost, *found.moved_a)) == only_a
    assert Counter(b[i] for i in (*found.gained, *found.moved_b)) == only_b
    assert Counter(a[i][0] for i in found.lost) == digests[0] - moved


@pytest.fixture
def changed(tiny_dataset: Manifest, tmp_path: Path) -> Manifest:
    """The tiny set with an image under another identity, an image replaced, and a drop explained anew."""
    copy = tmp_path / "changed"
    shutil.copytree(tiny_dataset.path, copy)
    part, dropped = copy / "manifest/images.parquet/part-00001.parquet", copy / "manifest/dropped.parquet"
    identities = copy / "manifest/identities.parquet"
    rows = pq.read_table(part)
    schema, lines = rows.schema, rows.to_pylist()
    people = {row["label"]: row["label_original"] for row in pq.read_table(identities).to_pylist()}
    label = (lines[0]["label"] + 1) % 3
    lines[0] |= {"label": label, "label_original": people[label]}
    lines[1]["sha256"] = bytes(32)
    pq.write_table(pa.Table.from_pylist(lines, schema), part)
    rows = pq.read_table(dropped)
    lines = rows.to_pylist()
    lines[0]["reason"] = "damaged" if lines[0]["reason"] != "damaged" else "missing"
    pq.write_table(pa.Table.from_pylist(lines, rows.schema), dropped)
    rewrite_info(copy, lambda info: info["config"].update(seed=99))
    return Manifest(copy)


def test_what_was_changed_is_what_differs(tiny_dataset: Manifest, changed: Manifest) -> None:
    result = call("manifest", "diff", tiny_dataset.path, changed.path, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    before = tiny_dataset.table("images", shard=1).to_pylist()[:2]
    after = changed.table("images", shard=1).to_pylist()[:2]
    assert found["settings"] == [{"name": "seed", "a": tiny_dataset.info["config"]["seed"], "b": 99}]
    assert found["images_moved"] == [
        {
            "sha256": before[0]["sha256"].hex(),
            "label_original_a": before[0]["label_original"],
            "label_original_b": after[0]["label_original"],
            "sid_a": before[0]["sid"],
            "sid_b": before[0]["sid"],
        }
    ]
    assert [row["sha256"] for row in found["images_lost"]] == [before[1]["sha256"].hex()]
    assert [row["sha256"] for row in found["images_gained"]] == ["00" * 32]
    assert [row["sid_a"] for row in found["dropped_otherwise"]] == [tiny_dataset.table("dropped")["sid"][0].as_py()]
    assert found["counts"]["images_same"] == tiny_dataset.totals["kept"] - 2
    assert found["differs"]
    text = call("manifest", "diff", tiny_dataset.path, changed.path, "--exit-code")
    assert text.exit_code == 1
    assert "1  images under another label_original" in text.stdout


def test_a_set_is_as_it_is(tiny_dataset: Manifest) -> None:
    result = call("manifest", "diff", tiny_dataset.path, tiny_dataset.path, "--exit-code", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert not found["differs"]
    assert found["counts"].pop("images_same") == tiny_dataset.totals["kept"]
    assert not any(found["counts"].values())


def test_sets_that_cannot_be_compared(tiny_dataset: Manifest, changed: Manifest, tmp_path: Path) -> None:
    assert "no dataset published" in refusal("manifest", "diff", tiny_dataset.path, tmp_path)
    flip_bit(changed.path / "manifest/identities.parquet", 99)
    assert "identities.parquet: changed" in refusal("manifest", "diff", tiny_dataset.path, changed.path)
    rewrite_info(changed.path, schema=3)
    assert "schema version 3" in refusal("manifest", "diff", tiny_dataset.path, changed.path)

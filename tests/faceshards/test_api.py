"""The public names: what they give is held to the files themselves, read by others; what they refuse is one line."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import faceshards
from faceshards.dataset.manifest import Manifest
from faceshards.dataset.schema import LATER, SCHEMAS
from faceshards.errors import ConfigError, SourceError
from tests.pipelines.build_fixtures import digests, read_rec, run_build
from training.data.layout import Layout
from training.data.stream import Stream as TrainersStream


@pytest.fixture(scope="module")
def data(tiny_dataset: Manifest) -> faceshards.Dataset:
    return faceshards.open(tiny_dataset.path)


def read(data: faceshards.Dataset, table: str):
    """Returns a table as Parquet's own reader has it."""
    path = data.path / "manifest" / f"{table}.parquet"
    return pq.ParquetDataset(path).read() if path.is_dir() else pq.read_table(path)


# --- a dataset


def test_it_says_what_it_is(data):
    assert repr(data) == (
        f"<Dataset 'tiny': {len(data)} images of 12 identities, {272 - len(data)} dropped, "
        f"fingerprint {data.fingerprint[:12]}, in {data.path}>"
    )
    assert len(data) == len(read(data, "images"))


@pytest.mark.parametrize("table", SCHEMAS)
def test_tables_are_the_files(data, table):
    found, want = getattr(data, table), read(data, table)
    assert isinstance(found, ds.Dataset)
    rows = found.to_table()
    assert rows.select(want.column_names).equals(want)
    assert rows.schema.equals(SCHEMAS[table])
    later = {name: value for name, value in LATER.get(table, {}).items() if name not in want.column_names}
    for name, value in later.items():
        assert set(rows[name].to_pylist()) <= {value}
        assert found.count_rows(filter=ds.field(name) == value) == len(want)
        assert found.count_rows(filter=ds.field(name) != value) == 0
    assert bool(later) == (table in LATER)  # the tiny set excluded nothing, and looked for no mirrored copies


def test_nullable_integers_stay_integers_in_pandas(data):
    found, want = data.to_pandas("dropped"), read(data, "dropped")
    assert all(isinstance(kind, pd.ArrowDtype) for kind in found.dtypes)
    assert found["representative"].isna().sum() == want["representative"].null_count > 0
    rows = found.astype(object).where(found.notna(), None).to_dict("records")
    assert rows == want.to_pylist()
    where = ds.field("reason") == "undecodable"
    some = data.to_pandas("dropped", ["reason", "sid"], where)
    assert some.columns.tolist() == ["reason", "sid"]
    assert some["sid"].tolist() == want.filter(where)["sid"].to_pylist() != []
    assert data.to_pandas("images", "sid").columns.tolist() == ["sid"]
    assert data.to_pandas("images", "sha256")["sha256"].tolist() == read(data, "images")["sha256"].to_pylist()


def test_sql_is_asked_of_the_same_tables(data):
    want = Counter(read(data, "dropped")["reason"].to_pylist())
    found = data.query("SELECT reason, count(*) AS n FROM dropped GROUP BY reason")
    assert dict(zip(found["reason"].to_pylist(), found["n"].to_pylist(), strict=True)) == want
    assert data.query("FROM images WHERE sid < 0").num_rows == 0


def test_images_are_the_sources_kept_or_dropped(data, tiny_source):
    records = read_rec(tiny_source / "train.rec")  # as MXNet reads them
    kept, dropped = read(data, "images").to_pylist(), read(data, "dropped").to_pylist()
    for row in kept[::80] + [row for row in dropped if row["detail"] != "empty image"][::5]:
        image = data.image(row["sid"])
        assert image.row == row
        assert image.encoded == records[int(row["key"])][1]
        assert image.reason == row.get("reason", "kept")
    row = kept[3]
    for name in (str(row["sid"]), row["sha256"], row["sha256"].hex()[:12], f"train.rec:{row['key']}"):
        assert data.image(name).row == row
    pixels = data.image(row["sid"]).pixels
    assert (pixels.shape, pixels.dtype) == ((row["height"], row["width"], 3), np.uint8)
    assert repr(data.image(row["sid"])) == f"<Image sid {row['sid']}: train.rec:{row['key']}, label {row['label']}>"
    undecodable = {row["detail"]: row["sid"] for row in dropped if row["reason"] == "undecodable"}
    for detail, line in (
        ("empty image", "has no image: empty"),
        ("neither JPEG nor PNG", "are no image: neither JPEG nor PNG"),
    ):
        image = data.image(undecodable[detail])
        assert repr(image).endswith("dropped, undecodable>")
        with pytest.raises(faceshards.FaceshardsError, match=line):
            _ = image.pixels


def test_a_dropped_image_needs_its_source(tiny_source, tmp_path):
    source, out = tmp_path / "tiny", tmp_path / "built"
    shutil.copytree(tiny_source, source)
    data = run_build(source, out)
    sid = data.table("dropped", where=ds.field("reason") == "near_duplicate")["sid"][0].as_py()
    kept = faceshards.open(out).image(data.table("images")["sid"][0].as_py())
    shutil.rmtree(source)
    image = faceshards.open(out).image(sid)
    assert image.reason == "near_duplicate"
    with pytest.raises(SourceError, match=rf"train.rec: No such file .*sid {sid}, dropped as near_duplicate"):
        _ = image.encoded
    assert kept.encoded


@pytest.mark.parametrize(
    ("ask", "line"),
    [
        (lambda data: data.to_pandas("faces"), "no table 'faces'; there are images, identities, shards, dropped"),
        (lambda data: data.to_pandas("images", "labl"), "images has no column 'labl'; there are sid, source, key"),
        (lambda data: data.to_pandas("images", ["sid", "s"]), "images has no column 's'; there are sid, source, key"),
        (lambda data: data.to_pandas("images", where=ds.field("labl") == 1), "images has no column 'labl'; there are"),
        (lambda data: data.to_pandas("identities", where=ds.field("n") == 1), "identities has no column 'n'; there"),
        (lambda data: data.to_pandas("images", where="sid < 9"), r"where='sid < 9' is no expression of pyarrow, such"),
        (lambda data: data.to_pandas("images", where=ds.field("sid") == "x"), "images.parquet: Function 'equal' has"),
        (lambda data: list(data.batches("images", where=ds.field("labl") == 1)), "images has no column 'labl'; there"),
        (lambda data: data.image(272), r"no sid 272; they go from 0 to 271"),
        (lambda data: data.image("nobody"), "'nobody' is no sid"),
        (lambda data: data.query("SELECT labl FROM images"), 'Referenced column "labl" not found'),
        (lambda data: faceshards.open(data.path / "shards"), "no dataset published there"),
    ],
)
def test_what_is_not_there_is_one_line(data, ask, line):
    with pytest.raises(faceshards.FaceshardsError, match=line) as error:
        ask(data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("module", "ask"),
    [("pandas", lambda data: data.to_pandas("images")), ("duckdb", lambda data: data.query("FROM images"))],
)
def test_a_missing_extra_is_named(data, module, ask, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)  # import raises ModuleNotFoundError
    with pytest.raises(faceshards.FaceshardsError, match=rf"needs {module}, .*: pip install 'faceshards\[manifest\]'"):
        ask(data)


# --- a build

SCRIPT = """
import sys
import faceshards
data = faceshards.build(sys.argv[1], sys.argv[2], shards=4, workers=2, quiet=True)
print(data, __file__)
print(faceshards.build([sys.argv[1]], sys.argv[2], shards=4).fingerprint)
"""


@pytest.mark.slow
def test_a_script_builds_what_the_command_builds(tiny_source, tiny_digests, data, tmp_path):
    script, out = tmp_path / "script.py", tmp_path / "tiny"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, script, tiny_source, out], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = repr(data).replace(str(data.path), str(out))
    assert done.stdout == f"{said} {script}\n{data.fingerprint}\n"  # once: no worker ran the script too
    assert digests(out) == tiny_digests


@pytest.mark.parametrize(
    ("source", "options", "kind", "line"),
    [
        ("synthetik", {}, SourceError, r"'synthetik' is no known set \(.*synthetic.*\), and no file or folder"),
        ("./synthetic", {}, SourceError, "synthetic: no such file or folder"),
        (Path("synthetic"), {}, SourceError, "synthetic: no such file or folder"),
        ([], {}, SourceError, "no source: give the name of a known set, a path, or several"),
        ("casia", {}, faceshards.FaceshardsError, "casia is not at data/raw/casia; it is to be had from"),
        ("synthetic", {"shard": 8}, ConfigError, "faceshards.build: unknown key 'shard'; known keys: image_size"),
        ("synthetic", {"shards": 2.5}, ConfigError, "faceshards.build: shards: 2.5 is not of type int"),
        ("synthetic", {"workers": -1}, ConfigError, "workers is -1, and has to be 0 at least"),
        ("synthetic", {"exclude": "none.bin"}, faceshards.FaceshardsError, "none.bin: No such file or directory"),
    ],
)
def test_a_build_that_cannot_start_leaves_nothing(source, options, kind, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=line):
        faceshards.build(source, "out", quiet=True, **options)
    assert list(tmp_path.iterdir()) == []


# --- a stream


def test_a_stream_is_the_trainers(data):
    want = TrainersStream(data, Layout(data, 2, 32), 1, seed=5, augment=True, sampling="sqrt", threads=1)
    with faceshards.Stream(data.path, 16, 1, 2, seed=5, augment=True, sampling="sqrt", threads=1) as found:
        pairs = list(zip(found.batches(2), want.batches(2), strict=True))
        assert len(found) == len(pairs) == Layout(data, 2, 32).steps_per_epoch
        for (images, labels), (others, their_labels) in pairs:
            np.testing.assert_array_equal(images, others)
            np.testing.assert_array_equal(labels, their_labels)
        assert found.num_classes == 12
    want.close()


def test_readers_share_the_images_out(data):
    labels: Counter[int] = Counter()
    for rank in range(4):
        with faceshards.Stream(data, 1, rank, 4, mirror=False) as stream:
            labels.update(int(label[0]) for _, label in stream.batches(0))
            count = 4 * len(stream)
    assert labels.total() == count
    assert not labels - Counter(read(data, "images")["label"].to_pylist())


@pytest.mark.parametrize(
    ("numbers", "options", "line"),
    [
        ((0,), {}, "batch_size is 0, and has to be 1 at least"),
        ((8, 0, 0), {}, "world is 0, and has to be 1 at least"),
        ((8, 2, 2), {}, "rank 2 is not one of 2"),
        ((8, 0, 50), {}, "images on 50 ranks give no batch of 400"),
        ((9999,), {}, "give no batch of 9999"),
        ((8,), {"seed": -1}, "seed is -1, and has to be 0 at least"),
        ((8,), {"threads": -1}, "threads is -1, and has to be 0 at least"),
        ((8,), {"sampling": "all"}, "sampling 'all' is not one of"),
    ],
)
def test_a_stream_that_cannot_be_is_one_line(data, numbers, options, line):
    with pytest.raises(faceshards.FaceshardsError, match=line):
        faceshards.Stream(data, *numbers, **options)


def test_a_stream_has_no_epoch_before_the_first_and_none_after_its_end(data):
    with faceshards.Stream(data, 8) as stream:
        for place in ((-1, 0), (0, -1)):
            with pytest.raises(faceshards.FaceshardsError, match="both are counted from 0"):
                next(stream.batches(*place))
    with pytest.raises(faceshards.FaceshardsError, match="the stream is closed"):
        next(stream.batches(0))

"""Every kind of damage to a published dataset is a finding with file, row and identity, and nothing is waited for."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from faceshards.cli.main import main
from faceshards.dataset.manifest import Manifest, ManifestError
from faceshards.dataset.verify import Sample
from tests.pipelines.build_fixtures import flip_bit

SHARD = "shards/shard-00002.mindrecord"
PART = "manifest/images.parquet/part-00002.parquet"


@pytest.fixture
def copy(tiny_dataset: Manifest, tmp_path: Path) -> Path:
    """The folder of a dataset that may be damaged."""
    return shutil.copytree(tiny_dataset.path, tmp_path / "copy")


@pytest.fixture(scope="module")
def rows(tiny_dataset: Manifest) -> list[dict]:
    """The rows of SHARD, as the manifest has them, with the bytes of their images as `image`."""
    found = tiny_dataset.table("images", shard=2).to_pylist()
    for row in found:
        name = str(row["sid"])
        out = tiny_dataset.path.parent / "face"
        assert CliRunner().invoke(main, ["manifest", "image", str(tiny_dataset.path), name, "--out", str(out)])
        row["image"] = out.read_bytes()
        out.unlink()
    return found


@pytest.fixture
def never_waits() -> Iterator[None]:
    """Ends a test that waits."""

    def give_up(*_: object) -> None:
        raise TimeoutError("something waits")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def verify(copy: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["manifest", "verify", str(copy), "--quiet", *options])


def findings(copy: Path, *options: str) -> list[str]:
    """Returns the lines of a dataset that is damaged."""
    result = verify(copy, *options)
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    lines = result.stdout.splitlines()
    assert result.stderr.startswith(f"Error: {copy}: {len(lines)} mismatches")
    return lines


def about(row: dict) -> str:
    return f"row {row['row']} (sid {row['sid']}, label {row['label']}, identity '{row['label_original']}')"


CHANGED = "changed since it was published: its SHA-256 is not the manifest's"


def test_each_damaged_row_is_named(copy: Path, rows: list[dict]) -> None:
    path = copy / SHARD
    data = path.read_bytes()
    second, last = rows[1], rows[-1]
    flip_bit(path, 8 * (data.index(second["image"]) + 50))
    flip_bit(path, 8 * (data.index(last["image"]) - 8))  # its length
    of_rows = [
        f"{path}: {about(second)}: the image's sha256 is not the manifest's",
        f"{path}: {about(last)}: no image of {last['bytes']} bytes, which the manifest says",
    ]
    assert findings(copy) == [f"{path}: {CHANGED}", *of_rows]
    assert findings(copy, "--sample", "100%") == of_rows
    assert findings(copy, "--sample", "9999", "--seed", "5") == of_rows

    said = verify(copy, "--limit", "1")
    assert (said.exit_code, said.stdout) == (1, f"{path}: {CHANGED}\n")
    assert said.stderr == f"(1 of 3 findings; --limit 0 for all)\nError: {copy}: 3 mismatches\n"


def test_rows_of_another_label_or_sid(copy: Path, rows: list[dict]) -> None:
    path, first = copy / SHARD, rows[0]
    mark = b"\x82\xa5label" + bytes([first["label"]]) + b"\xa3sid"  # msgpack
    at = path.read_bytes().index(mark)
    flip_bit(path, 8 * (at + 7))
    line = f"{path}: {about(first)}: the shard has label {first['label'] ^ 1}"
    assert findings(copy) == [f"{path}: {CHANGED}", line]
    assert findings(copy, "--sample", "100%") == [line]


def test_damage_of_some_keeps_no_other_from_being_looked_at(copy: Path, rows: list[dict]) -> None:
    path, last = copy / SHARD, rows[-1]
    data = path.read_bytes()
    flip_bit(path, 8 * (data.index(b"\x82\xa5label") + 3))
    flip_bit(path, 8 * (data.index(last["image"]) + 9))
    lines = findings(copy, "--sample", "100%")
    assert lines[0].startswith(f"{path}: rows 0..{len(rows) - 1} cannot all be read: raw page 1, byte 0: ")
    assert lines[1:] == [f"{path}: {about(last)}: the image's sha256 is not the manifest's"]


def test_all_damage_is_listed(copy: Path) -> None:
    for name in ("manifest/dropped.parquet", "manifest/conflicts.parquet", PART):
        flip_bit(copy / name, 777)
    (copy / "shards/shard-00000.mindrecord").unlink()
    os.truncate(copy / "shards/shard-00001.mindrecord", 5000)
    assert [line.removeprefix(f"{copy}/").split(":")[0] for line in findings(copy)] == [
        *("manifest/conflicts.parquet", "manifest/dropped.parquet", PART, "shards/shard-00000.mindrecord"),
        *("shards/shard-00001.mindrecord", "shards/shard-00001.mindrecord"),
    ]


def test_json(copy: Path, rows: list[dict]) -> None:
    row = rows[3]
    flip_bit(copy / SHARD, 8 * ((copy / SHARD).read_bytes().index(row["image"]) + 50))
    (copy / "notes.txt").touch()
    kept = Manifest(copy).totals["kept"]
    said = json.loads(verify(copy, "--sample", "100%", "--json").stdout)
    assert said == {
        **{"dataset": str(copy), "images": kept, "of": kept, "shards": 4, "sample": {"images": kept, "seed": 0}},
        "findings": [
            {
                **{"file": str(copy / "notes.txt"), "text": "no part of the dataset", "foreign": True},
                **dict.fromkeys(("row", "sid", "label", "label_original")),
            },
            {
                **{"file": str(copy / SHARD), "text": "the image's sha256 is not the manifest's", "foreign": False},
                **{name: row[name] for name in ("row", "sid", "label", "label_original")},
            },
        ],
        **{"mismatches": 1, "foreign": 1},
    }


# What lies in a file's place.


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path has 107 characters at most
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(here)


INSTEAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (os.mkfifo, "no regular file; {where} lists one"),
    "socket": (_socket, "no regular file; {where} lists one"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "no regular file; {where} lists one"),
    "folder": (Path.mkdir, "no regular file; {where} lists one"),
    "link": (lambda path: path.symlink_to("nowhere"), "missing; {where} lists it; {path} is a link that leads nowhere"),
    "loop": (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
}


@pytest.mark.usefixtures("never_waits")
@pytest.mark.parametrize("kind", INSTEAD)
def test_what_lies_in_a_files_place_is_not_waited_for(kind: str, copy: Path) -> None:
    make, text = INSTEAD[kind]
    names = {SHARD: "the manifest", f"{SHARD}.db": "the manifest", "manifest/identities.parquet": "dataset.json"}
    names |= {"manifest/images.parquet/part-00001.parquet": "dataset.json"}
    want = set()
    for name, where in names.items():
        (copy / name).unlink()
        make(copy / name)
        want.add(f"{copy / name}: {text.format(where=where, path=copy / name)}")
    assert set(findings(copy)) == set(findings(copy, "--sample", "50%")) == want

    # Whoever reads a table says the same.
    for command in ("identities", "query"):
        more = ["SELECT count(*) FROM identities"] if command == "query" else []
        said = CliRunner().invoke(main, ["manifest", command, str(copy), *more])
        assert said.exit_code == 1
        file = copy / "manifest/identities.parquet"
        assert said.stderr.splitlines()[-1] == f"Error: {file}: {text.format(where='dataset.json', path=file)}"

    (copy / "dataset.json").unlink()
    make(copy / "dataset.json")
    with pytest.raises(ManifestError, match=r"dataset\.json") as error:
        Manifest(copy)
    assert str(error.value).endswith(
        f"no dataset published there ({copy / 'dataset.json'} is a link that leads nowhere)"
        if kind == "link"
        else text.partition(";")[0]
    )


@pytest.fixture
def open_to_all(tiny_dataset: Manifest) -> Iterator[Path]:
    """The folder of a dataset, where whoever may not read everything gets to."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield shutil.copytree(tiny_dataset.path, Path(folder) / "copy")


@contextmanager
def nobody() -> Iterator[None]:
    """Lets the superuser, who may read everything, be somebody else."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield
    os.seteuid(before)


def test_files_that_must_not_be_read(open_to_all: Path) -> None:
    assert verify(open_to_all).exit_code == 0
    closed = [open_to_all / name for name in ("manifest/dropped.parquet", PART, SHARD, f"{SHARD}.db")]
    for path in closed:
        path.chmod(0)
    with nobody():
        for options in ((), ("--sample", "100%"), ("--sample", "1")):
            assert findings(open_to_all, *options) == [f"{path}: Permission denied" for path in closed]
    (open_to_all / "dataset.json").chmod(0)
    with nobody():
        said = verify(open_to_all)
    assert said.stderr == f"Error: {open_to_all / 'dataset.json'}: Permission denied\n"


def test_files_too_many_are_named(copy: Path) -> None:
    for name in ("notes.txt", ".DS_Store", "shards/.shard-00001.mindrecord.Xy12", "manifest/old.parquet"):
        (copy / name).touch()
    (copy / "report").mkdir()
    (copy / "report" / "page.html").touch()
    os.mkfifo(copy / "shards" / "pipe")
    (copy / "manifest" / "link").symlink_to("nowhere")
    (copy / "new\nline").touch()
    result = verify(copy)
    assert result.exit_code == 0, result.output
    *lines, last = result.stdout.splitlines()
    named = [".DS_Store", "new\\nline", "notes.txt", "report/", "manifest/link", "manifest/old.parquet"]
    named += ["shards/.shard-00001.mindrecord.Xy12", "shards/pipe"]
    assert lines == [f"{copy}/{name}: no part of the dataset" for name in named]
    assert last.endswith("are as the manifest says; 8 files or folders are no part of the dataset")
    assert result.stderr == ""


def test_a_folder_that_readers_take_for_a_part(copy: Path) -> None:
    (copy / "manifest/images.parquet/old").mkdir()
    text = "was not published with the dataset; readers of the folder take it for a part"
    assert findings(copy) == [f"{copy}/manifest/images.parquet/old/: {text}"]


# Samples.


def test_a_sample_takes_each_row_alike() -> None:
    sizes, count, seeds = np.array([10, 0, 35, 5]), 12, 500
    drawn = [np.zeros(size, int) for size in sizes]
    for seed in range(seeds):
        rows = list(Sample(count, seed).rows(sizes))
        assert sum(map(len, rows)) == count
        for tally, chosen in zip(drawn, rows, strict=True):
            assert (np.diff(chosen) > 0).all()
            tally[chosen] += 1
    share = count / sizes.sum()
    spread = (seeds * share * (1 - share)) ** 0.5  # of a binomial
    assert np.abs(np.concatenate(drawn) - seeds * share).max() < 5 * spread


def test_a_sample_looks_where_its_rows_are(copy: Path) -> None:
    kept = Manifest(copy).totals["kept"]
    result = verify(copy, "--sample", "10%", "--seed", "4")
    count = round(kept / 10)
    said = f"10 % = {count} of {kept} images in 4 shards (seed 4)"
    assert (result.exit_code, result.stdout) == (0, f"{copy}: {said} are as the manifest says\n")

    # Of one row, that of another shard's header is no matter; all rows see it.
    (shard,) = np.flatnonzero([len(rows) for rows in Sample(1).rows(Manifest(copy).table("shards")["rows"].to_numpy())])
    other = copy / f"shards/shard-{(shard + 1) % 4:05d}.mindrecord"
    flip_bit(other, 100)
    assert verify(copy, "--sample", "1").exit_code == 0
    assert findings(copy, "--sample", "100%")[0].startswith(f"{other}: not a whole shard: ")
    other.unlink()
    assert findings(copy, "--sample", "1") == [f"{other}: missing; the manifest lists it"]


@pytest.mark.parametrize("text", ["0", "0%", "101%", "-1", "1e3", "1.5", "many", "", "nan%"])
def test_shares_that_are_none(text: str, copy: Path) -> None:
    result = verify(copy, f"--sample={text}")
    assert result.exit_code == 2
    assert f"{text!r} is no percentage above 0 %, such as 1%, and no number of images, such as 1000" in result.stderr


def test_a_seed_without_a_sample(copy: Path) -> None:
    result = verify(copy, "--seed", "0")
    assert result.exit_code == 2
    assert "--seed belongs to --sample" in result.stderr


def test_progress_is_on_stderr(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faceshards.progress._LINE", 0)
    result = CliRunner().invoke(main, ["manifest", "verify", str(copy)])
    kept = Manifest(copy).totals["kept"]
    assert f" {kept}/{kept} " in result.stderr
    assert result.stdout == f"{copy}: {kept} images in 4 shards are as the manifest says\n"

"""WebDataset's .tar files: what its package and ours write is built as from a .rec, and what is wrong has a row."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from faceshards.dataset.manifest import Manifest
from faceshards.dataset.schema import REASONS
from faceshards.errors import SourceError
from faceshards.formats.tar import BLOCK
from pipelines.build import build
from pipelines.config import BuildConfig
from pipelines.sources.find import cut, find_files, set_names
from pipelines.sources.registry import identity_names, labels, read_record, scan
from tests.pipelines.build_fixtures import CONFIG, by_shared_worker, external, read_rec
from tests.pipelines.exports.readers import exported
from tests.recs import jpeg, png

Files = Iterable[tuple[str, bytes]]
IMAGES = [jpeg(seed, 16, 16) for seed in range(8)]


def write(path: Path, files: Files, **more: Any) -> Path:
    """Writes a .tar by tarfile; an entry instead of a name is taken as it is."""
    with tarfile.open(path, "w", **more) as tar:
        for name, data in files:
            entry = tarfile.TarInfo(name) if isinstance(name, str) else name
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def samples(*labels: object, key: str = "{:04d}") -> list[tuple[str, bytes]]:
    """Returns an image and a .cls for each label."""
    files = []
    for i, label in enumerate(labels):
        files += [(f"{key.format(i)}.jpg", IMAGES[i]), (f"{key.format(i)}.cls", str(label).encode())]
    return files


def scanned(work: Path, *sources: Path, step: int = 1 << 30) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns the rows of sources, and warnings; each image is found again by its key."""
    work.mkdir(exist_ok=True)
    files, warnings = find_files(*sources)
    parts, more = cut(files, work, step)
    rows = []
    for part in parts:
        found = scan(part)
        assert found.records == len(found.images)
        for i, image in enumerate(found.images):
            assert (found.reason[i] == 0) == (found.detail[i] is None) == (image is not None)
            assert image is None or len(image) == found.size[i]
            if image is not None:
                assert read_record(dataclasses.asdict(files[part.source]), str(found.key[i])) == bytes(image)
            row = {"key": found.key[i], "label": int(found.label[i]), "original": found.label_original[i]}
            row |= {"reason": REASONS[found.reason[i]], "detail": found.detail[i], "offset": int(found.offset[i])}
            rows.append({**row, "image": None if image is None else bytes(image)})
    return rows, warnings + more


def brief(rows: list[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in names) for row in rows]


def built(out: Path, config: BuildConfig, *sources: Path) -> Manifest:
    files, warnings = find_files(*sources)
    return build("tars", files, out, config, by_shared_worker(200_000), warnings=warnings)


def content(dataset: Manifest, *names: str) -> Counter[tuple[Any, ...]]:
    """Returns how often each image is in a dataset, with what names it."""
    columns = ["sha256", *(names or ("label", "label_original"))]
    return Counter(tuple(row.values()) for row in dataset.table("images", columns).to_pylist())


def by_package(folder: Path, faces: dict[int, tuple[int, bytes]], maxcount: int) -> Path:
    """Writes what a .rec holds by the webdataset package, some labels as .cls, others in .json."""
    wds = pytest.importorskip("webdataset")
    folder.mkdir()
    with wds.ShardWriter(str(folder / "faces-%05d.tar"), maxcount=maxcount, verbose=0) as writer:
        for key, (label, image) in faces.items():
            said = (
                {"cls": label} if key % 3 else {"json": {"label": label}} if key % 2 else {"json": {"identity": label}}
            )
            writer.write({"__key__": f"{key:09d}", "png" if image[:4] == b"\x89PNG" else "jpg": image, **said})
    return folder


# --- the same set, packed otherwise


def test_of_the_package_as_of_the_rec(tiny_source: Path, tiny_dataset: Manifest, tmp_path: Path) -> None:
    tars = by_package(tmp_path / "tars", read_rec(tiny_source / "train.rec"), 100)
    found = built(tmp_path / "out", CONFIG, tars)
    assert content(found) == content(tiny_dataset)
    for name in ("scanned", "kept", "identities", "dropped", "conflicts"):
        assert found.totals[name] == tiny_dataset.totals[name]
    assert {source["kind"] for source in found.info["sources"]} == {"webdataset"}


@pytest.mark.slow
def test_of_real_faces(tmp_path: Path) -> None:
    rec = external("orl/train.rec")
    config = BuildConfig(image_size=(0, 0), shards=2)
    tars = by_package(tmp_path / "tars", read_rec(rec), 150)
    assert content(built(tmp_path / "tar", config, tars)) == content(built(tmp_path / "rec", config, rec))


def test_what_an_export_wrote_is_built_again(tiny_dataset: Manifest, tmp_path: Path) -> None:
    tars = exported(tiny_dataset, tmp_path / "tars", "webdataset", shard_bytes=300_000)
    found = built(tmp_path / "out", CONFIG, tars)
    assert content(found, "label") == content(tiny_dataset, "label")
    assert found.totals["scanned"] == found.totals["kept"] == tiny_dataset.totals["kept"]


@pytest.mark.parametrize("step", [1, 1500, 4000, 1 << 30])
def test_however_it_is_cut(step: int, tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i}.tar", samples(*range(i, 8))) for i in range(3)]
    rows, warnings = scanned(tmp_path / "work", tmp_path, step=step)
    assert brief(rows, "key", "label", "image") == [
        (f"{n:04d}.jpg", i + n, IMAGES[n]) for i in range(len(paths)) for n in range(8 - i)
    ]
    assert warnings == []


# --- samples and their labels


def test_a_sample_is_a_name_up_to_the_first_dot_of_its_last_part(tmp_path: Path) -> None:
    files = [
        *(("./a.b/1.jpg", IMAGES[0]), ("./a.b/1.cls", b"1"), ("a/1.JPEG", IMAGES[1]), ("a/1.CLS", b"2")),
        *(("1.png", png(1, 8, 8)), ("1.v2.txt", b""), ("1.cls", b" 3\n")),
    ]
    rows, _ = scanned(tmp_path / "work", write(tmp_path / "a.tar", files))
    assert brief(rows, "key", "label") == [("./a.b/1.jpg", 1), ("a/1.JPEG", 2), ("1.png", 3)]


def test_the_order_of_members_does_not_matter(tmp_path: Path) -> None:
    files = samples(*range(8))
    expected = brief(scanned(tmp_path / "w", write(tmp_path / "a.tar", files))[0], "key", "original", "image")
    for i, order in enumerate((files[::-1], sorted(files, key=lambda file: file[0][-3:]), files[1:] + files[:1])):
        rows, _ = scanned(tmp_path / f"w{i}", write(tmp_path / f"b{i}.tar", order))
        assert sorted(brief(rows, "key", "original", "image")) == expected


@pytest.mark.parametrize(
    ("suffix", "text", "label"),
    [
        *(
            ("cls", "7", "7"),
            ("cls", " 007\n", "7"),
            ("cls", "7.0", "7"),
            ("cls", "Ann Lee", "Ann Lee"),
            ("cls", "é", "é"),
        ),
        *(("json", '{"label": 7}', "7"), ("json", '{"label": 7.0}', "7"), ("json", '{"label": "007"}', "007")),
        *(("json", '{"identity": "n01"}', "n01"), ("json", '{"label": null, "identity": 3, "x": NaN}', "3")),
        *(("json", '{"identity": "n01", "label": 5}', "5"), ("cls", "123456789012", "123456789012")),
    ],
)
def test_labels(suffix: str, text: str, label: str, tmp_path: Path) -> None:
    files = [("a.jpg", IMAGES[0]), (f"a.{suffix}", text.encode())]
    rows, _ = scanned(tmp_path / "work", write(tmp_path / "a.tar", files))
    assert brief(rows, "original", "reason") == [(label, "kept")]


def test_cls_goes_before_json(tmp_path: Path) -> None:
    files = [
        ("a.json", b'{"label": 1}'),
        ("a.jpg", IMAGES[0]),
        ("a.cls", b"2"),
        ("b.jpg", IMAGES[1]),
        ("b.json", b"{}"),
    ]
    files += [("b.cls", b"3")]
    rows, _ = scanned(tmp_path / "work", write(tmp_path / "a.tar", files))
    assert brief(rows, "original", "label") == [("2", 2), ("3", 3)]


def test_names_are_labels_by_their_order(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", samples("bob", 10, "9", "ann", "bob"))
    files, _ = find_files(path)
    parts, _ = cut(files, tmp_path, 700)
    assert len(parts) > 1
    names = identity_names(parts[-1])
    assert names == ["10", "9", "ann", "bob"]
    found = [
        (int(label), original)
        for part in parts
        for label, original in zip(scan(part).label, scan(part).label_original, strict=True)
    ]
    assert (
        [names[label] for label, _ in found] == [original for _, original in found] == ["bob", "10", "9", "ann", "bob"]
    )
    assert sorted({int(label) for part in parts for label in labels(part)}) == [0, 1, 2, 3]


# --- several files


def test_tars_of_a_folder_are_one_set_and_of_two_folders_two(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for i in range(2):
            write(
                tmp_path / folder / f"{i}.tar",
                [
                    (f"{folder}{i}{n}{end}", data)
                    for n in range(3)
                    for end, data in (
                        (".jpg", jpeg(1000 * i + 10 * n + len(folder) * (folder == "two"), 112, 112)),
                        (".cls", b"ann" if n else b"5"),
                    )
                ],
            )
    one, two = tmp_path / "one", tmp_path / "two"
    for sources in ([one], [one / "0.tar", one / "1.tar"], [one / "{0..1}.tar"]):
        files, _ = find_files(*sources)
        assert [file.name for file in files] == ["0.tar", "1.tar"]
        assert set_names(files) == ["one", "one"]
    config = BuildConfig(shards=1, near_within=-1, near_across=-1)
    found = built(tmp_path / "out", config, one)
    rows = found.table("identities", ["label_original", "kept"]).to_pylist()
    assert {row["label_original"]: row["kept"] for row in rows} == {"5": 2, "ann": 4}
    with pytest.raises(SourceError, match=r"^one, two share 2 labels \(5, ann\), and their people would be mixed"):
        built(tmp_path / "both", config, one, two)
    separate = dataclasses.replace(config, labels="separate", conflict_policy="keep")
    rows = built(tmp_path / "both", separate, one, two).table("identities", ["label_original", "scanned"]).to_pylist()
    assert {row["label_original"]: row["scanned"] for row in rows} == {
        "one:5": 2, "one:ann": 4, "two:5": 2, "two:ann": 4
    }  # fmt: skip


def test_what_lies_beside_the_tars_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("00000.tar", "00001.tar", "val.tar", "._00000.tar"):
        write(folder / name, samples(1))
    for name in ("00000.parquet", "00000_stats.json", "00001_stats.json"):
        (folder / name).touch()
    (folder / "00002.tar").touch()
    files, warnings = find_files(folder)
    assert [file.name for file in files] == ["00000.tar", "00001.tar"]
    assert warnings == [
        f"{folder}: 1 hidden or system files and folders are left aside, rename any that is yours: '._*'",
        f"{folder}: leaves val.tar, held-out sets by their names; --source names what to read",
        f"{folder}: 1 .tar files are empty, left aside: 00002.tar",
        f"{folder}: 3 files that are no .tar, left aside: _stats.json 2, .parquet 1",
    ]
    write(folder / "more-1.tar", samples(1))
    assert find_files(folder)[1][-2].startswith(f"{folder}: reads *.tar, more-*.tar as one set, where a label is one")


def test_an_archive_beside_what_was_unpacked_from_it_is_left(tmp_path: Path) -> None:
    (tmp_path / "set" / "ann").mkdir(parents=True)
    write(tmp_path / "set" / "set.tar", samples(1))
    (tmp_path / "set" / "ann" / "1.jpg").write_bytes(IMAGES[0])
    assert [file.kind for file in find_files(tmp_path / "set")[0]] == ["folder"]


@pytest.mark.parametrize(
    ("name", "mode", "said"),
    [
        *(("a.tar.gz", "w:gz", r"\(gunzip a.tar.gz\)$"), ("a.tgz", "w:gz", r"\(gunzip a.tgz\)$")),
        *(("a.tar", "w:gz", "gunzip"), ("a.tar.xz", "w:xz", "unxz"), ("a.tar.bz2", "w:bz2", "bunzip2")),
    ],
)
def test_compressed_archives_are_refused(name: str, mode: str, said: str, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    with tarfile.open(folder / name, mode):
        pass
    for source in (folder, folder / name):
        with pytest.raises(
            SourceError, match=f"^{folder / name}: compressed; images are read back by their place.*{said}"
        ):
            find_files(source)


@pytest.mark.parametrize(("data", "said"), [(b"", "empty file"), (b"<html>" * 500, "no .tar: no member begins in its")])
def test_what_is_no_archive_is_refused(data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(SourceError, match=f"a.tar: {said}"):
        find_files(tmp_path / "a.tar")


# --- bad input: a row with its reason each

LONG = '{"label": ' + "1" * 5000 + "}"
BAD_LABELS = {
    "no label: its sample has neither a .cls nor a .json": [],
    "label -1 is negative": [("cls", b"-1")],
    "label 0.5 is fractional": [("cls", b"0.5")],
    "label nan is not finite": [("json", b'{"label": NaN}')],
    "label inf is not finite": [("cls", b"inf")],
    "its label is empty": [("cls", b" \n")],
    "its label is no name: 'a\\nb'": [("cls", b"a\nb")],
    "its .cls is no text": [("cls", b"\x80\x04K")],
    "its .cls is of 5000 bytes, more than 4096": [("cls", b"1" * 5000)],
    "its label is a number of more than 63 bits": [("cls", b"1" * 30)],
    "its .json is no object": [("json", b"[1]")],
    "its .json has neither label nor identity": [("json", b'{"label": null}')],
    "its .json cannot be read: nested too deeply": [("json", b"[" * 100_000)],
    "its .json cannot be read: Expecting property name": [("json", b"{")],
    "its .json cannot be read: Exceeds the limit": [("json", LONG.encode())],
    "its .json is of 1048577 bytes, more than 1048576": [("json", b" " * (1048577))],
    "the label in its .json is neither a number nor text: True": [("json", b'{"label": true}')],
    "the label in its .json is neither a number nor text: [1]": [("json", b'{"label": [1]}')],
    "its sample has labels that differ, 1 among them": [("cls", b"1"), ("cls", b"2")],
}


@pytest.mark.parametrize("cause", BAD_LABELS)
def test_bad_labels(cause: str, tmp_path: Path) -> None:
    files = [*samples(0, 1), ("bad.jpg", IMAGES[7]), *((f"bad.{end}", data) for end, data in BAD_LABELS[cause])]
    rows, _ = scanned(tmp_path / "work", write(tmp_path / "a.tar", files))
    assert brief(rows, "reason", "label") == [("kept", 0), ("kept", 1), ("bad_label", -1)]
    assert rows[2]["detail"].startswith(cause)


def special(name: str, **more: Any) -> Any:
    entry = tarfile.TarInfo(name)
    for key, value in more.items():
        setattr(entry, key, value)
    return entry


SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "bad.jpg"}
BAD_MEMBERS = {
    ("/etc/bad.jpg", "undecodable", "not read: its name leads out of the archive"): "/etc/bad.jpg",
    ("../bad.jpg", "undecodable", "not read: its name leads out of the archive"): "../bad.jpg",
    ("a/../../bad.jpg", "undecodable", "not read: its name leads out of the archive"): "a/../../bad.jpg",
    ("bad.jpg", "undecodable", "not read: it is a symbolic link"): special(
        "bad.jpg", type=b"2", linkname="/etc/passwd"
    ),
    ("bad.png", "undecodable", "not read: it is a hard link"): special("bad.png", type=b"1", linkname="0000.jpg"),
    ("bad.jpg", "undecodable", "not read: it is a sparse file"): special("bad.jpg", pax_headers=SPARSE),
}


@pytest.mark.parametrize("wanted", BAD_MEMBERS, ids=str)
def test_members_that_are_not_read(wanted: tuple[str, str, str], tmp_path: Path) -> None:
    bad = BAD_MEMBERS[wanted]
    sample = wanted[0].rpartition(".")[0]
    files = [*samples(0), (bad, b""), (f"{sample}.cls", b"1"), *samples(1, key="later{}")]
    rows, _ = scanned(tmp_path / "work", write(tmp_path / "a.tar", files, format=tarfile.PAX_FORMAT))
    assert brief(rows, "key", "reason", "detail") == [
        ("0000.jpg", "kept", None),
        wanted,
        ("later0.jpg", "kept", None),
    ]
    assert rows[1]["original"] == "1"


def test_samples_that_are_no_one_image(tmp_path: Path) -> None:
    files = [
        *samples(0),
        *(("twice.jpg", IMAGES[1]), ("twice.jpg", IMAGES[2]), ("twice.cls", b"0"), ("twice.cls", b"0")),
        *(("both.jpg", IMAGES[3]), ("both.png", IMAGES[4]), ("both.cls", b"0")),
        *(("other.webp", IMAGES[5]), ("other.cls", b"0"), ("other.txt", b"")),
        *(("README", b""), ("__meta__", b""), ("x/._0000.jpg", b"")),
    ]
    (path,) = [write(tmp_path / "a.tar", files)]
    rows, (warning,) = scanned(tmp_path / "work", path)
    second = rows[2]["key"]
    assert second == f"twice.jpg@{rows[2]['offset']}"
    another = "not read: its sample has another image before it"
    assert brief(rows, "key", "reason", "detail") == [
        *(("0000.jpg", "kept", None), ("twice.jpg", "kept", None), (second, "undecodable", another)),
        *(("both.jpg", "kept", None), ("both.png", "undecodable", another)),
        ("other", "undecodable", "no image: of .jpg, .jpeg, .png it has none, but .cls, .webp, .txt"),
    ]
    assert warning == (
        f"{path}: 3 members that belong to no sample are left aside: 'README' x 1, '__meta__' x 1, '._*' x 1"
    )
    source = dataclasses.asdict(find_files(path)[0][0])
    assert read_record(source, second) == IMAGES[2]  # what was dropped can still be looked at
    with pytest.raises(SourceError, match=r"a.tar: has no image 'other'"):
        read_record(source, "other")


def test_what_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with open(path, "wb") as file:  # sparse on disk
        file.write(special("big.jpg", size=65 << 20).tobuf())
        file.truncate(BLOCK + (65 << 20))
    with open(path, "ab") as file:
        file.write(write(tmp_path / "b", [("big.cls", b"1"), *samples(0)]).read_bytes())
    rows, _ = scanned(tmp_path / "work", path)
    cause = "68157440 encoded bytes are more than 67108864"
    assert brief(rows, "key", "original", "reason", "detail") == [
        ("big.jpg", "1", "too_large", cause),
        ("0000.jpg", "0", "kept", None),
    ]


def test_damage_is_a_row_and_the_rest_is_read(tmp_path: Path) -> None:
    data = bytearray(write(tmp_path / "a.tar", samples(*range(8))).read_bytes())
    whole, _ = scanned(tmp_path / "work", tmp_path / "a.tar")
    data[whole[2]["offset"] + 2] ^= 1
    path = tmp_path / "b.tar"
    path.write_bytes(data)
    rows, warnings = scanned(tmp_path / "work2", path)
    lost = "no header where one should be: the bytes up to the next one are lost"
    assert brief(rows, "key", "reason", "detail")[2:4] == [
        (f"@{whole[2]['offset']}", "damaged", lost),
        ("0002", "undecodable", "no image: of .jpg, .jpeg, .png it has none, but .cls"),
    ]
    assert [row for row in rows if row["reason"] == "kept"] == whole[:2] + whole[3:]
    assert warnings == []
    with pytest.raises(SourceError, match=rf"b.tar: no image at byte {whole[2]['offset']}: {lost}"):
        read_record(dataclasses.asdict(find_files(path)[0][0]), rows[2]["key"])
    path.write_bytes(data[: whole[4]["offset"] + BLOCK + 10])
    rows, warnings = scanned(tmp_path / "work3", path)
    assert rows[-1]["detail"].startswith("cut off: its contents should end at byte ")
    assert warnings == [f"{path}: has no end behind its last member: it may have been cut"]


def test_archives_joined_by_cat_each_have_samples_of_their_own(tmp_path: Path) -> None:
    one, two = (write(tmp_path / name, samples(*own)).read_bytes() for name, own in (("a", (0, 1)), ("b", (2, 3))))
    (tmp_path / "c.tar").write_bytes(one + two)
    rows, (warning,) = scanned(tmp_path / "work", tmp_path / "c.tar")
    assert brief(rows, "label", "image") == [(0, IMAGES[0]), (1, IMAGES[1]), (2, IMAGES[0]), (3, IMAGES[1])]
    assert [row["key"] for row in rows[2:]] == [f"000{i}.jpg@{rows[2 + i]['offset']}" for i in range(2)]
    assert "4 of 8 members lie behind the end of an archive (joined by cat?)" in warning


def test_a_file_that_changes_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", samples(*range(8)))
    files, _ = find_files(path)
    (part,), _ = cut(files, tmp_path, 1 << 30)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(SourceError, match=r"a.tar: changed since it was scanned"):
        scan(part)
    with pytest.raises(SourceError, match=r"a.tar: changed since it was scanned"):
        read_record(dataclasses.asdict(files[0]), "0000.jpg")


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 255)), max_size=12), keep=st.integers(3000, 20_000)
)
def test_whatever_the_bytes_every_image_has_a_row(flips: list[tuple[int, int]], keep: int, tmp_path: Path) -> None:
    files = [*samples(0, "ann", 2), ("x.json", json.dumps({"label": 3}).encode()), ("x.jpg", IMAGES[4])]
    path = write(tmp_path / "a.tar", files)
    data = bytearray(path.read_bytes())
    for at, value in flips:
        data[at % len(data)] = value
    path.write_bytes(data[:keep])
    try:
        rows, _ = scanned(tmp_path / "work", path)
    except SourceError as error:
        if "no .tar: " not in str(error):
            raise
        return
    assert len({row["key"] for row in rows}) == len(rows)
    assert [row["offset"] for row in rows] == sorted(row["offset"] for row in rows)


def test_the_example_in_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    webdataset = pytest.importorskip("webdataset")
    text = (Path(__file__).parents[3] / "docs" / "datasets.md").read_text()
    (tmp_path / "tars").mkdir()
    monkeypatch.chdir(tmp_path)
    photographs = list(zip([3, 3, 1], IMAGES, strict=False))
    exec(text.split("```python\n")[1].split("```")[0], {"webdataset": webdataset, "photographs": photographs})
    rows, _ = scanned(tmp_path / "work", tmp_path / "tars" / "faces-{00000..00000}.tar")
    assert brief(rows, "label", "image") == photographs

"""The synthetic set is what its spec and its defects.csv say, and it can be learned but not looked up."""

from __future__ import annotations

import csv
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from evaluation.models import mxnet_import
from faceshards.errors import ConfigError, FaceshardsError
from pipelines.synthetic import write as synthetic
from pipelines.synthetic.faces import draw_face
from pipelines.synthetic.write import SyntheticSpec, write_set

pytestmark = pytest.mark.numeric

SMALL = SyntheticSpec(identities=30, images=300, defects=3, unseen=12, pairs=60, seed=5)
Records = dict[int, tuple[Any, bytes]]  # key -> (header, image)
Defect = tuple[int, int, str, int]  # key, identity, kind, of_key or 0
FILES = ["defects.csv", "property", "train.idx", "train.rec", "verification.bin"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "small"
    written: list[int] = []
    write_set(out, SMALL, progress=written.append)
    assert sum(written) == SMALL.records == 324
    return out


@pytest.fixture(scope="module")
def records(small: Path) -> Records:
    recordio = mxnet_import.load().recordio
    reader = recordio.MXIndexedRecordIO(str(small / "train.idx"), str(small / "train.rec"), "r")
    return {key: recordio.unpack(reader.read_idx(key)) for key in reader.keys}


@pytest.fixture(scope="module")
def defects(small: Path) -> list[Defect]:
    with (small / "defects.csv").open(newline="") as file:
        return [
            (int(row["key"]), int(row["identity"]), row["kind"], int(row["of_key"] or 0))
            for row in csv.DictReader(file)
        ]


def decode(image: bytes, mode: int = cv2.IMREAD_COLOR) -> Any:
    return cv2.imdecode(np.frombuffer(image, np.uint8), mode) if image else None


def hash_bits(image: bytes) -> np.ndarray:
    """256 bits, by the cosine sums written out."""
    gray = cv2.resize(decode(image, cv2.IMREAD_REDUCED_GRAYSCALE_2), (64, 64), interpolation=cv2.INTER_AREA)
    waves = np.cos(np.pi * np.arange(1, 17)[:, None] * (np.arange(64) + 0.5) / 64)
    block = waves @ gray.astype(np.float64) @ waves.T
    return (block > np.median(block)).ravel()


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_same_spec_same_bytes_whatever_the_workers(small: Path, tmp_path: Path) -> None:
    write_set(tmp_path / "again", SMALL, workers=2)
    assert sorted(bytes_of(small)) == FILES
    assert bytes_of(tmp_path / "again") == bytes_of(small)


def test_another_seed_another_face() -> None:
    assert (draw_face(5, 1, 0)[0] != draw_face(6, 1, 0)[0]).mean() > 0.5
    assert (draw_face(5, 1, 0)[0] != draw_face(5, 1, 1)[0]).mean() > 0.5


def test_mxnet_reads_insightface_layout(small: Path, records: Records) -> None:
    classes, height, width = map(int, (small / "property").read_text().split(","))
    assert (classes, height, width) == (33, 112, 112)
    end = SMALL.records + 1
    assert sorted(records) == list(range(end + classes))
    header, payload = records[0]
    assert (header.flag, header.label.tolist(), payload) == (2, [end, end + classes], b"")
    by_label: dict[int, list[int]] = {label: [] for label in range(classes)}
    for key in range(1, end):
        header, _ = records[key]
        assert (header.flag, header.id) == (0, key)
        by_label[int(header.label)].append(key)
    for label in range(classes):
        header, payload = records[end + label]
        first, last = map(int, header.label)
        assert (header.flag, header.id, payload) == (2, end + label, b"")
        assert by_label[label] == list(range(first, last))


def test_defects_are_what_they_are_called(records: Records, defects: list[Defect]) -> None:
    kinds = Counter(kind for _, _, kind, _ in defects)
    assert kinds == dict.fromkeys((*synthetic.COPIES, *synthetic.BROKEN, synthetic.SINGLE), 3)
    sizes = Counter(int(header.label) for key, (header, _) in records.items() if 1 <= key <= SMALL.records)
    for key, identity, kind, of_key in defects:
        header, image = records[key]
        assert header.label == identity
        if kind in synthetic.COPIES:
            original, source = records[of_key]
            assert (original.label == identity) == kind.endswith("duplicate")
            assert (image == source) == kind.startswith("exact")
            assert np.count_nonzero(hash_bits(image) != hash_bits(source)) <= 16
            assert key > of_key or kind.endswith("conflict")
        elif kind == "wrong_size":
            assert decode(image).shape != (112, 112, 3)
        elif kind == "single_image":
            assert sizes[identity] == 1
            assert decode(image).shape == (112, 112, 3)
        else:
            assert decode(image) is None
            assert image.startswith(b"\xff\xd8") == (kind == "truncated")


def test_nothing_else_is_missing_or_alike(records: Records, defects: list[Defect]) -> None:
    planted = {key for key, _, kind, _ in defects if kind != synthetic.SINGLE}
    clean = [key for key in range(1, SMALL.records + 1) if key not in planted]
    assert len(clean) == SMALL.images + SMALL.defects
    assert all(decode(records[key][1]).shape == (112, 112, 3) for key in clean)
    signs = np.array([hash_bits(records[key][1]) for key in clean]) * 2.0 - 1
    distance = (256 - signs @ signs.T) / 2
    assert distance[~np.eye(len(clean), dtype=bool)].min() > 40  # the pipeline drops at 24


def test_every_identity_outlives_the_conflicts(records: Records, defects: list[Defect]) -> None:
    lost = {key for row in defects for key in (row[0], row[3] if row[2].endswith("conflict") else 0)}
    singles = {identity for _, identity, kind, _ in defects if kind == synthetic.SINGLE}
    left = Counter(int(records[key][0].label) for key in range(1, SMALL.records + 1) if key not in lost)
    assert set(left) == set(range(33)) - singles
    assert min(left.values()) >= 2
    originals = [of_key for _, _, _, of_key in defects if of_key]
    assert len(set(originals)) == len(originals)


def test_counts_are_long_tailed(records: Records) -> None:
    sizes = sorted(Counter(int(records[key][0].label) for key in range(1, SMALL.records + 1)).values())
    assert sizes[-1] > 3 * sizes[len(sizes) // 2]


def test_pairs_are_ten_balanced_folds_of_unseen_identities(small: Path, records: Records) -> None:
    images, same = pickle.loads((small / "verification.bin").read_bytes())
    assert (len(images), len(same)) == (120, 60)
    assert all(type(image) is bytes and decode(image).shape == (112, 112, 3) for image in images)
    assert all(type(flag) is bool for flag in same)
    assert np.reshape(same, (10, 6)).sum(1).tolist() == [3] * 10
    pairs = list(zip(images[::2], images[1::2], strict=True))
    assert all(a != b for a, b in pairs)
    assert not {image for _, image in records.values()} & set(images)


def test_a_killed_run_leaves_nothing(tmp_path: Path) -> None:
    def stop(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_set(tmp_path / "set", SMALL, progress=stop)
    assert not (tmp_path / "set").exists()
    tiny = SyntheticSpec(identities=2, images=4, defects=0, unseen=0, pairs=0)
    write_set(tmp_path / "set", tiny)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]  # the stale temporary folder went, too
    with pytest.raises(FaceshardsError, match="set: exists already"):
        write_set(tmp_path / "set", tiny)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 59}, "59 images for 30 identities: two each are needed"),
        ({"pairs": 50}, "pairs: 50 is no multiple of 20"),
        ({"unseen": 1}, "60 pairs need 2 unseen identities"),
        ({"defects": -1}, "defects: -1 is negative"),
    ],
)
def test_impossible_specs_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SyntheticSpec(**{"identities": 30, "images": 300, "defects": 3, "unseen": 12, "pairs": 60, **changes})


def test_more_conflicts_than_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no room for 2 defects of kind "):
        write_set(tmp_path / "set", SyntheticSpec(identities=5, images=11, defects=2, unseen=0, pairs=0))


def test_mxnet_leaves_numpy_as_it_was() -> None:
    mxnet_import.load()
    assert "bool" not in vars(np)


def accuracy(embedding: np.ndarray, same: np.ndarray) -> float:
    """Ten-fold verification accuracy of (2 P, D) embeddings by their cosine, threshold from the other nine folds."""
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    cosine = (unit[::2] * unit[1::2]).sum(1)
    right = (cosine[:, None] > np.linspace(-1, 1, 401)) == same[:, None]
    fold = np.repeat(np.arange(10), len(same) // 10)
    return float(np.mean([right[fold == k][:, right[fold != k].mean(0).argmax()].mean() for k in range(10)]))


@pytest.mark.slow
def test_unseen_identities_can_be_learned_but_not_read_off_the_pixels(tmp_path: Path) -> None:
    spec = SyntheticSpec(identities=120, images=1200, defects=0, unseen=40, pairs=400, seed=1)
    write_set(tmp_path / "set", spec)
    recordio = mxnet_import.load().recordio
    reader = recordio.MXRecordIO(str(tmp_path / "set" / "train.rec"), "r")
    rows = [recordio.unpack(reader.read()) for _ in range(spec.records + 1)][1:]
    labels = np.array([header.label for header, _ in rows])
    images, same = pickle.loads((tmp_path / "set" / "verification.bin").read_bytes())

    def pixels(picture: np.ndarray) -> np.ndarray:
        return cv2.resize(picture, (16, 16), interpolation=cv2.INTER_AREA).ravel().astype(np.float32)

    pictures = [decode(image) for image in images]
    model = LinearDiscriminantAnalysis(solver="eigen", shrinkage=0.1, n_components=50)
    model.fit(np.array([pixels(decode(image)) for _, image in rows]), labels)
    straight = model.transform(np.array([pixels(picture) for picture in pictures]))
    mirrored = model.transform(np.array([pixels(picture[:, ::-1]) for picture in pictures]))
    raw = accuracy(np.array([picture.ravel() for picture in pictures], np.float32), np.array(same))
    learned = accuracy(straight + mirrored, np.array(same))
    # measured 0.59 and 0.84 (a small convolutional network reaches 0.95 after 200 identities)
    assert 0.5 < raw < 0.65
    assert learned > max(0.74, raw + 0.15)

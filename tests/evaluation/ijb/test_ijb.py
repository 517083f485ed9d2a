"""IJB's template protocol against its equations written as loops, on a small benchmark in the official layout."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from evaluation.during import raw_pixels
from evaluation.ijb.alignment import REFERENCE, AlignmentError, align, similarity
from evaluation.ijb.measure import embed_protocol, measure, pair_scores, template_features
from evaluation.ijb.protocol import IjbError, Protocol, read_protocol
from evaluation.protocol.figures import Figure, by_far, tar_name
from pipelines.synthetic.faces import draw_face
from tests.evaluation.commands import run

pytestmark = pytest.mark.numeric


def literal_features(embeddings, template, media, score):
    """Returns each template's feature by the equations, one image after the other."""
    found = {}
    for t in sorted(set(template.tolist())):
        total = np.zeros(embeddings.shape[1])
        for m in sorted(set(media[template == t].tolist())):
            images = [i for i in range(len(media)) if template[i] == t and media[i] == m]
            mean = np.zeros(embeddings.shape[1])
            for i in images:
                mean += embeddings[i].astype(np.float64) * float(score[i]) / len(images)
            total += mean
        found[t] = total / np.sqrt((total**2).sum())
    return found


def random_protocol(rng, images=60, templates=9, pairs=200):
    template = np.concatenate([np.arange(templates), rng.integers(0, templates, images - templates)]) * 7 + 3
    media = rng.integers(0, 12, images)
    chosen = rng.choice(np.unique(template), (pairs, 2))
    same = rng.random(pairs) < 0.4
    same[:2] = [True, False]
    names = [f"{i}.jpg" for i in range(images)]
    return Protocol(
        name="ijbc",
        images=None,
        names=names,
        template=template,
        media=media,
        points=np.zeros((images, 5, 2), np.float32),
        score=rng.random(images).astype(np.float32) + 0.1,
        pairs=chosen,
        same=same,
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(9, 80), st.integers(1, 9))
def test_features_and_scores_are_the_equations(seed, images, templates):
    rng = np.random.default_rng(seed)
    protocol = random_protocol(rng, images, templates)
    rows = rng.normal(size=(images, 5)).astype(np.float32)
    names, features = template_features(rows, protocol.template, protocol.media, protocol.score)
    want = literal_features(rows, protocol.template, protocol.media, protocol.score)
    assert names.tolist() == list(want)
    np.testing.assert_allclose(features, list(want.values()), rtol=1e-9, atol=1e-12)
    scores = pair_scores(names, features, protocol.pairs)
    np.testing.assert_allclose(scores, [want[a] @ want[b] for a, b in protocol.pairs.tolist()], rtol=1e-9, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 30), st.booleans())
def test_tar_is_read_at_the_nearest_far(seed, ties):
    rng = np.random.default_rng(seed)
    protocol = random_protocol(rng, templates=9 if not ties else 3)
    rows = rng.normal(size=(60, 3))
    got = measure(protocol, rows, fars=(1e-6, 1e-2, 0.1, 0.5))
    names, features = template_features(rows, protocol.template, protocol.media, protocol.score)
    far, tar, _ = roc_curve(protocol.same, pair_scores(names, features, protocol.pairs))
    tars = by_far(got.figures)
    assert tars[1e-6] == Figure(None)  # some hundred impostor pairs cannot show one in a million
    for wanted in (0.1, 0.5):
        best = min(zip(np.abs(far[::-1] - wanted).tolist(), range(len(far)), strict=True))[1]
        assert tars[wanted].value == tar[::-1][best]
        assert 0 <= tars[wanted].interval[0] <= tars[wanted].interval[1] <= 1
    assert got.impostors + int(protocol.same.sum()) == got.pairs == 200


def test_intervals_are_those_of_resampled_pairs():
    rng = np.random.default_rng(4)
    protocol = random_protocol(rng, images=400, templates=40, pairs=1500)
    rows = rng.normal(size=(400, 4)) + (protocol.template[:, None] % 5) * 0.3
    got = measure(protocol, rows, fars=(0.1,))
    names, features = template_features(rows, protocol.template, protocol.media, protocol.score)
    scores, found = pair_scores(names, features, protocol.pairs), []
    for _ in range(400):
        drawn = rng.integers(0, 1500, 1500)
        far, tar, _ = roc_curve(protocol.same[drawn], scores[drawn])
        found.append(tar[::-1][np.abs(far[::-1] - 0.1).argmin()])
    low, high = np.quantile(found, [0.025, 0.975])
    # A quantile of 400 draws is itself uncertain by about a tenth of the interval.
    np.testing.assert_allclose(got.figures[tar_name(0.1)].interval, (low, high), atol=0.2 * (high - low))


def test_images_and_templates_that_are_missing():
    rng = np.random.default_rng(2)
    protocol = random_protocol(rng)
    rows = rng.normal(size=(60, 5))
    gone = protocol.template == protocol.pairs[5, 0]
    rows[gone] = np.nan
    rows[np.flatnonzero(~gone)[0]] = np.nan
    got = measure(protocol, rows)
    lost = int((protocol.pairs == protocol.pairs[5, 0]).any(axis=1).sum())
    assert (got.dropped_images, got.dropped_pairs, got.pairs) == (int(gone.sum()) + 1, lost, 200 - lost)
    with pytest.raises(IjbError, match="59 embeddings for 60 images"):
        measure(protocol, rows[:59])
    odd = rows.copy()
    odd[np.flatnonzero(~gone)[0]] = 1
    odd[np.flatnonzero(~gone)[0], 3] = np.inf  # not all of a row, and not NaN
    assert measure(protocol, odd) == got
    for none in (np.full((60, 5), np.nan), np.zeros((60, 0))):
        with pytest.raises(IjbError, match="none of the 60 images has an embedding"):
            measure(protocol, none)


@settings(max_examples=40, deadline=None)
@given(st.floats(-3, 3), st.floats(0.2, 5), st.floats(-200, 200), st.floats(-200, 200), st.integers(0, 1 << 30))
def test_alignment_is_the_least_squares_similarity(angle, scale, x, y, seed):
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = REFERENCE @ turn.T + [x, y]
    matrix = similarity(points)
    np.testing.assert_allclose(points @ matrix[:, :2].T + matrix[:, 2], REFERENCE, atol=1e-8)
    noisy = points + np.random.default_rng(seed).normal(0, 2 * scale, points.shape)
    # The oracle: the normal equations of (a, b, tx, ty) with x' = a x - b y + tx, y' = b x + a y + ty.
    zero, one = np.zeros(5), np.ones(5)
    left = np.concatenate(
        [np.stack([noisy[:, 0], -noisy[:, 1], one, zero], 1), np.stack([noisy[:, 1], noisy[:, 0], zero, one], 1)]
    )
    a, b, tx, ty = np.linalg.lstsq(left, REFERENCE.T.reshape(-1), rcond=None)[0]
    np.testing.assert_allclose(similarity(noisy), [[a, -b, tx], [b, a, ty]], atol=1e-7 * max(1, abs(tx), abs(ty)))


def test_landmarks_that_fix_nothing():
    for points, message in (
        (np.zeros((5, 2)), "the landmarks lie on one point"),
        (np.full((5, 2), np.nan), "a landmark is not finite"),
        (np.zeros((4, 2)), r"landmarks of shape \[4, 2\], not \[5, 2\]"),
    ):
        with pytest.raises(AlignmentError, match=message):
            similarity(points)


@pytest.fixture
def benchmark(tmp_path):
    """Six persons, two templates each of two media; faces turned and enlarged in loose crops."""
    rng = np.random.default_rng(0)
    (tmp_path / "meta").mkdir()
    (tmp_path / "loose_crop").mkdir()
    faces, marks = [], []
    for number in range(36):
        template = number // 3
        face, _ = draw_face(5, template // 2, number % 3)
        angle, scale = rng.uniform(-0.4, 0.4), rng.uniform(1.5, 2.5)
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        move = np.array([150, 150]) - turn @ [56, 56]
        crop = cv2.warpAffine(face, np.column_stack([turn, move]), (300, 300))
        cv2.imwrite(str(tmp_path / "loose_crop" / f"{number}.jpg"), crop, [cv2.IMWRITE_JPEG_QUALITY, 98])
        points = REFERENCE @ turn.T + move
        faces.append(f"{number}.jpg {template + 1} {number % 3 // 2 + 10 * template}")
        marks.append(f"{number}.jpg {' '.join(f'{value:.4f}' for value in points.ravel())} {rng.uniform(0.7, 1):.4f}")
    pairs = [f"{a + 1} {b + 1} {int(a // 2 == b // 2)}" for a in range(12) for b in range(a)]
    for name, lines in (("face_tid_mid", faces), ("name_5pts_score", marks), ("template_pair_label", pairs)):
        (tmp_path / "meta" / f"ijbc_{name}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_a_benchmark_in_the_official_layout(benchmark):
    protocol = read_protocol(benchmark)
    assert (len(protocol.names), len(protocol.pairs), int(protocol.same.sum())) == (36, 66, 6)
    image = cv2.cvtColor(cv2.imread(str(protocol.images / "4.jpg")), cv2.COLOR_BGR2RGB)
    back = align(image, protocol.points[4]).astype(int)
    face = draw_face(5, 0, 1)[0][..., ::-1].astype(int)
    print(
        np.abs(back - face)[8:-8, 8:-8].mean(),
        [np.abs(back - draw_face(5, i // 3, i % 3)[0][..., ::-1].astype(int))[8:-8, 8:-8].mean() for i in range(18)],
    )
    rows, problems = embed_protocol(protocol, raw_pixels, range(36))
    assert problems == {}
    result = measure(protocol, rows, fars=(0.1, 0.01))
    assert result.figures["auc"].value > 0.9
    assert result.figures[tar_name(0.01)].value is None  # of 60 impostor pairs


def test_from_the_command_line(benchmark, tmp_path):
    (benchmark / "loose_crop" / "3.jpg").write_bytes(b"junk")
    (benchmark / "loose_crop" / "4.jpg").unlink()
    rows, problems = embed_protocol(read_protocol(benchmark), raw_pixels, range(36))
    assert list(problems) == [3, 4]
    assert problems[4] == "4.jpg: No such file or directory"
    np.save(tmp_path / "e.npy", rows)
    options = ("--trained-on", "ms1mv3", "--backbone", "r50", "--out", tmp_path / "out")
    found = run("ijb", benchmark, "--embeddings", tmp_path / "e.npy", *options)
    assert found.exit_code == 0, found.output
    lines = found.stdout.splitlines()
    assert lines[0].split() == ["FAR", "TAR", "%", "95", "%", "arcface_torch"]
    assert lines[-1] == "left out: 2 images, and 0 pairs without any"
    written = json.loads((tmp_path / "out" / "ijb.json").read_text())
    assert (written["dropped_images"], written["published_tar_1e-4"]) == (2, 96.37)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("face_tid_mid", "3.jpg 2 10", "3.jpg two 10", r"face_tid_mid.txt: .*two"),
        ("face_tid_mid", "3.jpg 2 10", "3.jpg 2", r"face_tid_mid.txt: .*(Row #4|Expected 3 columns)"),
        ("name_5pts_score", "4.jpg", "5.jpg", r"name_5pts_score.txt:5: not the image of the same line"),
        ("template_pair_label", "3 1 0", "99 1 0", r"template_pair_label.txt:2: a template without images"),
        ("template_pair_label", "3 1 0", "3 1 7", r"template_pair_label.txt:2: a label that is neither 0 nor 1"),
    ],
)
def test_files_that_are_damaged(benchmark, name, old, new, message):
    path = benchmark / "meta" / f"ijbc_{name}.txt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(IjbError, match=message) as failure:
        read_protocol(benchmark)
    assert "\n" not in str(failure.value)


def test_no_benchmark(tmp_path):
    found = run("ijb", tmp_path, "--embeddings", tmp_path / "e.npy")
    assert found.exit_code == 1
    assert "0 files ijbb_ or ijbc_face_tid_mid.txt" in found.stderr

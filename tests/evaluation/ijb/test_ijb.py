"""IJB's template protocol against its equations written as loops, on a small benchmark in the official layout."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from evaluation.during import raw_pixels
from evaluation.embedder import EmbeddingError
from evaluation.ijb import embeddings
from evaluation.ijb.alignment import REFERENCE, AlignmentError, align, similarity
from evaluation.ijb.embeddings import embed_protocol
from evaluation.ijb.lines import IjbError
from evaluation.ijb.measure import DroppedTemplates, measure, pair_scores, template_features
from evaluation.ijb.protocol import Protocol, read_protocol
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
    assert got.dropped_templates == (DroppedTemplates("none of whose images has an embedding", 1, lost),)
    with pytest.raises(IjbError, match="59 embeddings for 60 images"):
        measure(protocol, rows[:59])
    odd = rows.copy()
    odd[np.flatnonzero(~gone)[0]] = 1
    odd[np.flatnonzero(~gone)[0], 3] = np.inf  # not all of a row, and not NaN
    assert measure(protocol, odd) == got
    for none in (np.full((60, 5), np.nan), np.zeros((60, 0))):
        with pytest.raises(IjbError, match="none of the 60 images has an embedding"):
            measure(protocol, none)


def test_templates_without_a_feature_go_with_their_pairs():
    rng = np.random.default_rng(5)
    whole = random_protocol(rng, images=90, templates=12, pairs=400)
    rows = rng.normal(size=(90, 5))
    names = np.unique(whole.template)
    zero, opposite, unread, unlisted = names[2], names[4], names[6], 10_000
    score, pairs = whole.score.copy(), whole.pairs.copy()
    score[whole.template == zero] = 0
    score[np.flatnonzero(whole.template == names[0])[0]] = 0  # one of a template's images alone: nothing is lost
    two = np.flatnonzero(whole.template == opposite)
    rows[two], score[two] = np.outer((-1.0) ** np.arange(len(two)), np.ones(5)), 0.5
    rows[two[len(two) // 2 * 2 :]] = np.nan
    media = whole.media.copy()
    media[two] = 1
    rows[whole.template == unread] = np.nan
    pairs[-3:, 1] = unlisted
    protocol = dataclasses.replace(whole, score=score, media=media, pairs=pairs)
    got = measure(protocol, rows, fars=(0.1, 0.5))
    # The figures are those of the benchmark without these pairs, and every pair is counted once.
    gone = [np.isin(pairs, part).any(axis=1) for part in ([unlisted], [unread], [zero, opposite])]
    left = ~np.any(gone, axis=0)
    without = dataclasses.replace(protocol, pairs=pairs[left], same=protocol.same[left])
    assert measure(without, rows, fars=(0.1, 0.5)).figures == got.figures
    assert got.dropped_templates == (
        DroppedTemplates("that no image is of", 1, 3),
        DroppedTemplates("none of whose images has an embedding", 1, int((gone[1] & ~gone[0]).sum())),
        DroppedTemplates(
            "whose images, weighted by their scores, add up to nothing", 2, int((gone[2] & ~gone[1] & ~gone[0]).sum())
        ),
    )
    assert sum(part.pairs for part in got.dropped_templates) == got.dropped_pairs == int((~left).sum())
    with pytest.raises(
        IjbError, match=r"the 0 pairs left are all of one kind; 3 pairs .* no image is of; 397 pairs are left out: a"
    ):
        measure(dataclasses.replace(protocol, score=np.zeros(90, np.float32)), np.ones((90, 5)))


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
    found = embed_protocol(protocol, raw_pixels)
    assert found.problems == {}
    result = measure(protocol, found.rows, fars=(0.1, 0.01))
    assert result.figures["auc"].value > 0.9
    assert result.figures[tar_name(0.01)].value is None  # of 60 impostor pairs


def test_from_the_command_line(benchmark, tmp_path):
    (benchmark / "loose_crop" / "3.jpg").write_bytes(b"junk")
    (benchmark / "loose_crop" / "4.jpg").unlink()
    made = embed_protocol(read_protocol(benchmark), raw_pixels)
    assert list(made.problems) == [3, 4]
    assert made.problems[4] == "4.jpg: No such file or directory"
    np.save(tmp_path / "e.npy", made.rows)
    options = ("--trained-on", "ms1mv3", "--backbone", "r50", "--out", tmp_path / "out")
    found = run("ijb", benchmark, "--embeddings", tmp_path / "e.npy", *options)
    assert found.exit_code == 0, found.output
    lines = found.stdout.splitlines()
    assert lines[0].split() == ["FAR", "TAR", "%", "95", "%", "arcface_torch"]
    said = "left out: 2 images without an embedding; in all 0 pairs"
    assert lines[8] == said
    assert lines[9].startswith(f"embeddings {tmp_path / 'e.npy'}: r50, sha256 ")
    assert lines[10] == "trained on ms1mv3, as --trained-on says"
    assert found.stderr == f"ijbc: {said}\n"
    written = json.loads((tmp_path / "out" / "ijb.json").read_text())
    assert (written["dropped_images"], written["published_tar_1e-4"]) == (2, 96.37)
    found = run("ijb", benchmark, "--embeddings", tmp_path / "e.npy", "--far", "0.3", "--far", "0.05")
    assert [line.split()[0] for line in found.stdout.splitlines()[1:3]] == ["0.05", "0.3"]


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("face_tid_mid", "3.jpg 2 10", "3.jpg two 10", r"face_tid_mid.txt:4: template 'two' is no number"),
        ("face_tid_mid", "3.jpg 2 10", "3.jpg 2.5 10", r"face_tid_mid.txt:4: a template that is no whole number"),
        ("face_tid_mid", "3.jpg 2 10", "3.jpg 2 nan", r"face_tid_mid.txt:4: a medium that is no whole number"),
        ("face_tid_mid", "3.jpg 2 10", "3.jpg 2", r"face_tid_mid.txt:4: 2 words, not 3: image template medium"),
        ("face_tid_mid", "3.jpg 2 10", "\n\n3.jpg 2 10 1", r"face_tid_mid.txt:6: 4 words, not 3"),
        ("face_tid_mid", "3.jpg 2 10", "3\0.jpg 2 10", r"face_tid_mid.txt: no text in UTF-8"),
        ("name_5pts_score", "4.jpg", "5.jpg", r"name_5pts_score.txt:5: not the image of ijbc_face_tid_mid.txt:5"),
        ("template_pair_label", "3 1 0", "3 1 7", r"template_pair_label.txt:2: a label that is neither 0 nor 1"),
        ("template_pair_label", "3 1 0", "\n 3  1\t7", r"template_pair_label.txt:3: a label that is neither 0 nor 1"),
        ("template_pair_label", " 1\n", " 0\n", r": of 66 pairs 66 have .* all of one kind: nothing can be measured"),
    ],
)
def test_files_that_are_damaged(benchmark, name, old, new, message):
    path = benchmark / "meta" / f"ijbc_{name}.txt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, -1 if old.endswith("\n") else 1))
    with pytest.raises(IjbError, match=message) as failure:
        read_protocol(benchmark)
    assert "\n" not in str(failure.value)


MESSES = {
    "blanks behind": lambda line: line + b" ",
    "tabs": lambda line: line.replace(b" ", b"\t"),
    "a tab behind": lambda line: line + b"\t",
    "several blanks": lambda line: b" " + line.replace(b" ", b"  \t "),
    "carriage returns": lambda line: line + b" \r",
    "blank lines": lambda line: line + b"\n \t\n",
    "quotation marks": lambda line: b'"' + line.replace(b" ", b'" ', 1),
}


@pytest.mark.parametrize("mess", MESSES.values(), ids=MESSES)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "bom"])
def test_lists_as_editors_leave_them(benchmark, mess, mark):
    want = read_protocol(benchmark)
    for path in (benchmark / "meta").iterdir():
        lines = path.read_bytes().splitlines()
        path.write_bytes(mark + b"\n".join(mess(line) if i % 3 else line for i, line in enumerate(lines)))
    got = read_protocol(benchmark)
    assert got.names == want.names
    for name in ("template", "media", "points", "score", "pairs", "same"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))


def test_whole_numbers_may_be_written_as_floats(benchmark):
    want = read_protocol(benchmark)
    path = benchmark / "meta" / "ijbc_template_pair_label.txt"
    path.write_text("\n".join(line.replace(" ", ".0 ") + ".0" for line in path.read_text().splitlines()))
    np.testing.assert_array_equal(read_protocol(benchmark).pairs, want.pairs)


class Counted:
    """A model that counts the images it is asked for, and dies before a batch."""

    def __init__(self, dies_at=None, wrong=()):
        self.batches, self.dies_at, self.wrong = 0, dies_at, wrong

    def __call__(self, images):
        if self.batches == self.dies_at:
            raise KeyboardInterrupt
        self.batches += 1
        rows = raw_pixels(images)
        rows[list(self.wrong)] = np.nan
        return rows


@pytest.fixture
def kept(benchmark, tmp_path, monkeypatch):
    """The benchmark in parts of 16 images, 3 of them; and what embeds it into a folder, with batches and embeddings."""
    monkeypatch.setattr(embeddings, "PART", 16)

    def embed(model="model", **options):
        forward = Counted(**options)
        found = embed_protocol(read_protocol(benchmark), forward, tmp_path / "kept", model)
        return forward.batches, found

    return embed


def test_no_image_is_embedded_twice(kept, benchmark, caplog):
    caplog.set_level("INFO", "evaluation.ijb")
    with pytest.raises(KeyboardInterrupt):
        kept(dies_at=2)
    batches, found = kept()
    assert batches == 1
    assert "kept: 32 of 36 images were embedded before, and are not again" in caplog.text
    want = embed_protocol(read_protocol(benchmark), raw_pixels)
    np.testing.assert_array_equal(found.rows, want.rows)
    batches, found = kept(dies_at=0)
    assert batches == 0
    np.testing.assert_array_equal(found.rows, want.rows)
    # What only weighs or pairs templates changes no embedding.
    (benchmark / "meta" / "ijbc_template_pair_label.txt").write_text("1 2 1\n1 3 0\n")
    assert kept()[0] == 0


def change_a_landmark(folder):
    path = folder / "meta" / "ijbc_name_5pts_score.txt"
    first, second, *rest = path.read_text().splitlines()
    words = second.split()
    path.write_text("\n".join([first, " ".join([words[0], f"{float(words[1]) + 9}", *words[2:]]), *rest]))


def shorten(folder):
    for name in ("face_tid_mid", "name_5pts_score"):
        path = folder / "meta" / f"ijbc_{name}.txt"
        path.write_text("\n".join(path.read_text().splitlines()[:20]))


@pytest.mark.parametrize(
    ("change", "model", "again"),
    [
        (lambda folder: None, "another", 3),
        (change_a_landmark, "model", 1),
        (shorten, "model", 1),
        (lambda folder: (folder / "loose_crop" / "1.jpg").write_bytes(b"junk"), "model", 1),
        (lambda folder: (folder / "loose_crop" / "20.jpg").unlink(), "model", 1),
        (lambda folder: (folder / "kept" / "part-00001.npz").write_bytes(b"PK"), "model", 1),
    ],
    ids=["model", "landmark", "shorter list", "other image", "lost image", "damaged part"],
)
def test_what_changed_is_embedded_again(kept, benchmark, change, model, again, caplog):
    kept()
    change(benchmark)
    batches, found = kept(model)
    assert batches == again
    assert f"{again} of {3 - (change is shorten)} parts are of another model, list or images, or damaged" in caplog.text
    want = embed_protocol(read_protocol(benchmark), raw_pixels)
    np.testing.assert_array_equal(found.rows, want.rows)
    assert found.problems == want.problems
    assert len(list((benchmark / "kept").iterdir())) == (2 if change is shorten else 3)
    assert kept(model)[0] == 0


def test_no_flipped_bit_of_a_kept_part_is_taken(kept, benchmark):
    kept()
    path, want = benchmark / "kept" / "part-00002.npz", kept()[1].rows
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for bit in rng.integers(0, 8 * len(whole), 12).tolist():
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        np.testing.assert_array_equal(kept()[1].rows, want)


def test_an_image_that_cannot_be_read_now_is_tried_again(kept, benchmark, monkeypatch):
    face = benchmark / "loose_crop" / "20.jpg"
    read = Path.read_bytes

    def refuse(path):
        if path == face:
            raise OSError(errno.EIO, "Input/output error")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert kept()[1].problems == {20: "20.jpg: Input/output error"}
    monkeypatch.undo()
    monkeypatch.setattr(embeddings, "PART", 16)
    batches, found = kept()
    assert (batches, found.problems) == (1, {})


def test_an_embedding_that_is_not_finite_costs_its_image(kept, benchmark):
    found = kept(wrong=[2])[1]
    assert found.problems == dict.fromkeys((2, 18, 34), "the model's embedding of it is not finite")
    assert measure(read_protocol(benchmark), found.rows).dropped_images == 3
    # A model that gives nothing else is told from it at once.
    with pytest.raises(EmbeddingError, match="the model's embeddings of the first 16 images are not finite"):
        kept("broken", wrong=range(128))


def test_a_model_from_the_command_line_twice(benchmark, tiny_weights):
    path = benchmark / "meta" / "ijbc_name_5pts_score.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line.rsplit(" ", 1)[0] + " 0" if i < 3 else line for i, line in enumerate(lines)))
    (benchmark / "loose_crop" / "4.jpg").unlink()
    with (benchmark / "meta" / "ijbc_template_pair_label.txt").open("a") as file:
        file.write("77 78 0\n1 77 1\n")
    options = ("--model", tiny_weights, "--backbone", "mbf_tiny", "--out", benchmark / "out", "--quiet", "--json")
    first = run("ijb", benchmark, *options)
    assert first.exit_code == 0, first.output
    assert first.stderr == (
        "ijbc: left out: 1 images without an embedding; 2 templates that no image is of (2 pairs); 1 templates whose "
        "images, weighted by their scores, add up to nothing (11 pairs); in all 13 pairs; the first image: 4.jpg: No "
        "such file or directory\n"
    )
    result = json.loads(first.stdout)
    assert (result["pairs"], result["dropped_pairs"]) == (55, 13)
    assert result["model"]["sha256"] == hashlib.sha256(tiny_weights.read_bytes()).hexdigest()
    assert json.loads((benchmark / "out" / "ijb.json").read_text())["left_out"] == ["4.jpg: No such file or directory"]
    shutil.copytree(benchmark / "out" / "embeddings", benchmark / "before")
    second = run("ijb", benchmark, *options)
    assert json.loads(second.stdout) | {"date": ""} == result | {"date": ""}
    for part in (benchmark / "before").iterdir():  # copies have other times: none was written
        assert part.stat().st_mtime_ns == (benchmark / "out" / "embeddings" / part.name).stat().st_mtime_ns


def test_no_benchmark(tmp_path):
    found = run("ijb", tmp_path, "--embeddings", tmp_path / "e.npy")
    assert found.exit_code == 1
    assert "0 files ijbb_ or ijbc_face_tid_mid.txt" in found.stderr

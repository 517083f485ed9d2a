"""Signatures against integers and scipy, and against bytes that are no image or are too much of one."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import scipy.fft
from hypothesis import example, given, settings
from hypothesis import strategies as st

from faceshards.dataset.schema import REASONS
from faceshards.formats.encoded_image import image_size
from pipelines.config import BuildConfig
from pipelines.dedupe.hamming import MIRROR
from pipelines.sources.base import Partition, Scanned
from pipelines.sources.registry import scan
from pipelines.stages import signatures
from pipelines.stages.signatures import perceptual_hash, sign
from tests.recs import encode, jpeg, png, texture, with_orientation, with_scans

pytestmark = pytest.mark.numeric

ANY_SIZE = BuildConfig(image_size=(0, 0))


def rows_of(images):
    n = len(images)
    return Scanned(
        offset=np.zeros(n, np.int64),
        header=np.zeros(n, np.int64),
        size=np.array([len(image or b"") for image in images], np.int64),
        parts=np.ones(n, np.int32),
        ordinal=np.arange(n, dtype=np.int32),
        key=[None] * n,
        label=np.zeros(n, np.int32),
        label_original=["0"] * n,
        reason=np.zeros(n, np.uint8),
        detail=[None] * n,
        images=[None if image is None else np.frombuffer(image, np.uint8) for image in images],
        records=n,
        structural=0,
    )


def signed(images, config=ANY_SIZE, skip=frozenset()):
    rows = rows_of(images)
    columns = sign(rows, config, skip)
    assert all((reason == 0) == (detail is None) for reason, detail in zip(rows.reason, rows.detail, strict=True))
    assert (columns["hashed"] == (rows.reason == 0)).all()
    return [REASONS[code] for code in rows.reason], rows.detail, columns


def hash_of(image):
    reasons, details, columns = signed([image])
    assert reasons == ["kept"], details
    return columns["phash"][0]


def bits(a, b):
    return int(np.unpackbits(a ^ b).sum())


# ------------------------------------------------------------------------------------------------------- the hash


def transform(gray):
    """Returns the 256 sums in Python's integers, which cannot overflow or round."""
    height, width = gray.shape
    if height % 2 == width % 2 == 0 and min(height, width) >= 48:  # large ones are halved first
        four = gray.astype(int)
        gray = four[::2, ::2] + four[::2, 1::2] + four[1::2, ::2] + four[1::2, 1::2] + 2 >> 2
        height, width = height // 2, width // 2
    rows, columns = (
        [[round(1024 * float(np.cos(np.pi * k * (x + 0.5) / side))) for x in range(side)] for k in range(1, 17)]
        for side in (height, width)
    )
    pixels = gray.tolist()
    half = [[sum(c * pixels[y][x] for y, c in enumerate(row)) for x in range(width)] for row in rows]
    return [sum(c * value for c, value in zip(column, line, strict=True)) for line in half for column in columns]


def pack_bits(sums):
    middle = sorted(sums)[127]
    return np.packbits([value > middle for value in sums], bitorder="little")


@pytest.mark.parametrize(("height", "width"), [(56, 56), (16, 16), (5, 40), (1, 1), (2, 3), (48, 56), (65, 80)])
def test_the_hash_is_exact(height, width):
    rng = np.random.default_rng(height * width)
    pictures = [
        rng.integers(0, 256, (height, width), dtype=np.uint8),
        rng.integers(0, 2, (height, width), dtype=np.uint8) * 255,
        np.full((height, width), 255, np.uint8),
        np.zeros((height, width), np.uint8),
    ]
    found = perceptual_hash(np.stack(pictures, axis=1))
    for picture, phash in zip(pictures, found, strict=True):
        assert (phash == pack_bits(transform(picture))).all()


def test_the_hash_of_a_large_image_is_exact():
    worst = np.full((2047, 2047), 255, np.uint8)  # what max_pixels allows, odd so that it is not halved
    worst[::3, ::5] = 3
    rows = signatures._cosines(2047).astype(np.int64)
    sums = rows @ worst.astype(np.int64) @ rows.T
    assert (perceptual_hash(worst[:, None])[0] == pack_bits(sums.ravel().tolist())).all()


def test_the_hash_depends_on_neither_batch_nor_order():
    rng = np.random.default_rng(0)
    gray = np.stack([cv2.cvtColor(texture(n, 56, 56), cv2.COLOR_BGR2GRAY) for n in range(40)], axis=1)
    alone = np.stack([perceptual_hash(gray[:, n : n + 1])[0] for n in range(40)])
    for _ in range(20):
        chosen = rng.permutation(40)[: rng.integers(1, 41)]
        assert (perceptual_hash(np.ascontiguousarray(gray[:, chosen])) == alone[chosen]).all()
        assert (perceptual_hash(gray[:, chosen]) == alone[chosen]).all()


@pytest.mark.parametrize("sort_is_faster", [False, True])
def test_the_hash_is_the_same_however_numpy_finds_the_middle(monkeypatch, sort_is_faster):
    monkeypatch.setattr(signatures, "_SORT_IS_FASTER", sort_is_faster)
    pictures = [np.random.default_rng(n).integers(0, 256, (56, 56), dtype=np.uint8) for n in range(5)]
    found = perceptual_hash(np.stack(pictures, axis=1))
    assert (found == np.stack([pack_bits(transform(picture)) for picture in pictures])).all()


def test_the_hash_agrees_with_scipys_cosine_transform():
    for seed in range(40):
        gray = cv2.cvtColor(texture(seed, 56, 56), cv2.COLOR_BGR2GRAY)
        sums = scipy.fft.dctn(gray.astype(np.float64), type=2)[1:17, 1:17].ravel()
        assert 256 - bits(perceptual_hash(gray[:, None])[0], pack_bits(sums.tolist())) >= 250


def test_half_the_bits_are_set_and_images_differ():
    hashes = [hash_of(jpeg(seed)) for seed in range(30)]
    assert all(np.unpackbits(phash).sum() == 128 for phash in hashes)
    assert min(bits(a, b) for i, a in enumerate(hashes) for b in hashes[:i]) > 60


@pytest.mark.parametrize("seed", range(5))
def test_copies_are_near(seed):
    picture = texture(seed)
    small = cv2.resize(picture, (96, 96), interpolation=cv2.INTER_AREA)
    original = hash_of(encode(picture, ".png"))
    copies = {
        "q95": jpeg(seed, quality=95),
        "q75": jpeg(seed, quality=75),
        "q30": jpeg(seed, quality=30),
        "96 and back": encode(cv2.resize(small, (112, 112), interpolation=cv2.INTER_CUBIC)),
        "brighter": encode(cv2.convertScaleAbs(picture, alpha=1.0, beta=12)),
        "gray": encode(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)),
    }
    for name, copy in copies.items():
        assert bits(original, hash_of(copy)) <= 24, name


def test_more_images_than_a_batch_of_two_sizes():
    images = [jpeg(n, *((64, 48) if n % 3 else (48, 64)), quality=60) for n in range(60)] * 10
    reasons, _, columns = signed(images)
    assert set(reasons) == {"kept"}
    assert (columns["phash"] == np.tile(columns["phash"][:60], (10, 1))).all()
    for n in (0, 1, 59):
        assert (columns["phash"][n] == hash_of(images[n])).all()
        assert columns["sha256"][n].tobytes() == hashlib.sha256(images[n]).digest()


# ------------------------------------------------------------------------------------------------------ image_size


def segment(marker, body):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def png_header(height, width, depth=8, colour=0):
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def png_of(height, width):
    data = zlib.compress(bytes((width + 1) * height), 9)
    chunks = b""
    for kind, body in ((b"IDAT", data), (b"IEND", b"")):
        chunks += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return png_header(height, width) + chunks


def frame(height, width, marker=0xC0):
    return segment(marker, struct.pack(">BHHB", 8, height, width, 1) + b"\x01\x11\x00")


def size_of(data):
    return image_size(memoryview(data))


def size_or_none(data):
    try:
        return size_of(data)
    except ValueError:
        return None


@pytest.mark.parametrize(("height", "width"), [(112, 112), (1, 1), (7, 300), (300, 7), (257, 4099)])
def test_size_as_encoded(height, width):
    picture = np.zeros((height, width, 3), np.uint8)
    progressive = (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    for data in (
        encode(picture),
        encode(picture, ".jpg", *progressive),
        encode(picture[..., 0]),
        encode(picture, ".png"),
    ):
        assert size_of(data) == (height, width)


def test_size_behind_other_segments():
    data = jpeg(1, 40, 30)
    thumbnail = jpeg(2, 8, 9)  # a whole JPEG with its own frame header, as Exif has it
    exif = segment(0xE1, b"Exif\0\0" + thumbnail + bytes(65_533 - 6 - len(thumbnail)))
    for extra in (exif, exif * 3, segment(0xFE, b""), segment(0xFE, b"\xff\xc0\x00\x11"), b"\xff" * 9, b"\xff\x01"):
        assert size_of(data[:2] + extra + data[2:]) == (40, 30)
        assert signed([data[:2] + extra + data[2:]])[0] == ["kept"]


def test_size_of_every_truncated_header():
    for data in (jpeg(1, 40, 30), png(1, 40, 30)):
        sizes = {size_or_none(data[:cut]) for cut in range(len(data))}
        assert sizes == {None, (40, 30)}


@settings(max_examples=1500, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=64),
        st.binary(max_size=40).map(lambda tail: b"\xff\xd8" + tail),
        st.binary(max_size=40).map(lambda tail: b"\x89PNG\r\n\x1a\n" + tail),
        st.lists(st.sampled_from([b"\xff", b"\xd8", b"\xc0", b"\xc4", b"\xe1", b"\0", b"\x04", b"\x08"]), max_size=40)
        .map(b"".join)
        .map(lambda tail: b"\xff\xd8" + tail),
    )
)
@example(b"")
@example(b"\xff\xd8")
def test_any_bytes_have_a_size_or_a_cause(data):
    size = size_or_none(data)
    if size is not None:
        assert [type(side) for side in size] == [int, int]
        assert 0 <= min(size) <= max(size) < 1 << 31


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_what_is_decoded_has_the_size_that_was_read(data):
    """A header that reads one size to us and another to the decoder would lead a bomb past max_pixels."""
    marker = st.integers(0, 255)
    pieces = st.one_of(
        st.binary(max_size=5),
        marker.map(lambda code: b"\xff" + bytes([code])),
        st.builds(segment, marker, st.binary(max_size=6)),
        st.just(frame(24, 24)),
    )
    raw = jpeg(3, 16, 20)
    raw = raw[:2] + b"".join(data.draw(st.lists(pieces, max_size=4))) + raw[2:]
    decoded = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
    size = size_or_none(raw)
    if size is None:
        return  # never decoded
    assert decoded is None or decoded.shape == size


@pytest.mark.parametrize("code", [0x00, 0x01, 0xD0, 0xD7])
def test_a_bomb_cannot_hide_behind_a_marker_without_length(code):
    # Read as a segment, the marker's "length" would be the real frame header's marker, and lead to the decoy.
    real = frame(20_000, 20_000)
    decoy = frame(112, 112)
    raw = b"\xff\xd8\xff" + bytes([code]) + real
    raw += bytes(4 + 0xFFC0 - len(raw)) + decoy + bytes(20)
    assert size_of(raw) == (20_000, 20_000)


# ------------------------------------------------------------------------------------------------------------ sign


@pytest.fixture
def no_decoding(monkeypatch):
    def refuse(*_):
        raise AssertionError("it was decoded")

    monkeypatch.setattr(signatures.cv2, "imdecode", refuse)


GIF = (
    b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"
)


@pytest.mark.parametrize(
    "image",
    [b"", b"\0", b"text, not an image", GIF, b"\xff\xd8", b"\xff\xd8\xff\xd9", b"\xff\xd8\xff", bytes(5000)]
    + [encode(texture(1), suffix) for suffix in (".bmp", ".webp", ".tiff")],
)
def test_what_is_neither_jpeg_nor_png_is_not_decoded(no_decoding, image):
    reasons, details, columns = signed([image])
    assert reasons == ["undecodable"]
    assert details[0]
    assert columns["signed"][0]
    assert columns["sha256"][0].tobytes() == hashlib.sha256(image).digest()
    assert not columns["hashed"][0]


@pytest.mark.parametrize("header", [png_header(20_000, 20_000), b"\xff\xd8" + frame(20_000, 20_000)])
@pytest.mark.parametrize("config", [BuildConfig(), ANY_SIZE, BuildConfig(image_size=(20_000, 20_000))])
def test_a_bomb_is_refused_by_its_header(no_decoding, header, config):
    reasons, details, columns = signed([header + bytes(100)], config)
    assert reasons == ["too_large"]
    assert "20000 x 20000" in details[0]
    assert (columns["height"][0], columns["width"][0]) == (20_000, 20_000)


@pytest.mark.parametrize(("height", "width"), [(1 << 31, 1), ((1 << 32) - 1, (1 << 32) - 1), (1, 1 << 31)])
def test_a_png_beyond_the_formats_own_limit(no_decoding, height, width):
    reasons, _, columns = signed([png_header(height, width) + bytes(100)])
    assert reasons == ["undecodable"]
    assert (columns["height"][0], columns["width"][0]) == (0, 0)


@pytest.mark.parametrize("place", [8, 33])
def test_a_chunk_that_claims_gigabytes_is_not_decoded(no_decoding, place):
    data = bytearray(png(1, 24, 24))
    data[place] = 0x7F
    reasons, details, _ = signed([bytes(data)])
    assert reasons == ["undecodable"]
    assert "chunk" in details[0]


def test_bytes_behind_the_image_do_no_harm():
    images = [kind(1, 24, 24) + tail for kind in (jpeg, png) for tail in (b"\0", b"junk" * 9, bytes(500), b"\xff" * 99)]
    assert set(signed(images)[0]) == {"kept"}


def test_wrong_size_is_not_decoded(no_decoding):
    reasons, details, columns = signed([jpeg(1, 112, 96), png(1, 96, 112)], BuildConfig())
    assert reasons == ["wrong_size"] * 2
    assert details == ["112 x 96 pixels, not 112 x 112", "96 x 112 pixels, not 112 x 112"]
    assert columns["height"].tolist() == [112, 96]
    assert columns["signed"].all()


def test_any_size_takes_all():
    reasons, _, columns = signed([jpeg(1, 112, 96), png(1, 16, 300), jpeg(1)])
    assert reasons == ["kept"] * 3
    assert columns["height"].tolist() == [112, 16, 112]
    assert columns["width"].tolist() == [96, 300, 112]


def test_every_usable_kind_is_kept():
    from PIL import Image

    cmyk = io.BytesIO()
    Image.fromarray(texture(1)[..., ::-1]).convert("CMYK").save(cmyk, "JPEG")
    palette = io.BytesIO()
    Image.fromarray(texture(1)[..., ::-1]).convert("P").save(palette, "PNG")
    gray = cv2.cvtColor(texture(1), cv2.COLOR_BGR2GRAY)
    deep = encode(gray.astype(np.uint16) * 257, ".png")
    alpha = encode(np.dstack([texture(1), gray]), ".png")
    images = [encode(gray), encode(gray, ".png"), deep, alpha, palette.getvalue(), cmyk.getvalue()]
    reasons, details, columns = signed(images, BuildConfig())
    assert reasons == ["kept"] * 6, details
    assert max(bits(columns["phash"][0], phash) for phash in columns["phash"]) <= 24


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 2), (2, 1), (3, 3), (1, 500), (500, 1)])
def test_the_smallest_images_have_a_row(height, width):
    for data in (png(1, height, width), jpeg(1, height, width)):
        reasons, _, columns = signed([data])
        assert reasons[0] in ("kept", "undecodable")
        assert (columns["height"][0], columns["width"][0]) == (height, width)


def test_truncated_images_never_crash():
    whole = [jpeg(1, 40, 40), png(1, 40, 40)]
    images = [data[:cut] for data in whole for cut in range(0, len(data), 41)] + whole
    reasons, _, columns = signed(images)
    assert set(reasons) == {"undecodable", "kept"}
    assert reasons[-2:] == ["kept", "kept"]
    assert reasons.count("undecodable") > len(images) // 2
    assert columns["signed"].all()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_damage_in_an_image_has_a_row(data):
    raw = bytearray(data.draw(st.sampled_from([jpeg(5, 24, 24), png(5, 24, 24), png_of(9, 9)])))
    for _ in range(data.draw(st.integers(1, 5))):
        raw[data.draw(st.integers(2, len(raw) - 1))] = data.draw(st.integers(0, 255))
    reasons, _, _ = signed([bytes(raw)], BuildConfig(image_size=(0, 0), max_pixels=10_000))
    assert reasons[0] in ("kept", "undecodable", "too_large")


def test_the_decoders_error_is_a_reason(monkeypatch):
    def fail(*_):
        raise cv2.error("no")

    monkeypatch.setattr(signatures.cv2, "imdecode", fail)
    assert signed([jpeg(1)])[0] == ["undecodable"]


def test_rows_without_image_and_skipped_rows():
    images = [jpeg(1), None, jpeg(2), jpeg(3)]
    rows = rows_of(images)
    rows.drop(1, "missing", "not there")
    columns = sign(rows, BuildConfig(), frozenset([2]))
    assert [REASONS[code] for code in rows.reason] == ["kept", "missing", "quarantined", "kept"]
    assert columns["signed"].tolist() == [True, False, True, True]
    assert columns["hashed"].tolist() == [True, False, False, True]
    for n in (0, 2, 3):
        assert columns["sha256"][n].tobytes() == hashlib.sha256(images[n]).digest()
    assert not columns["sha256"][1].any()


def test_no_rows_have_no_signatures():
    _, _, columns = signed([])
    assert all(len(column) == 0 for column in columns.values())


def test_a_row_with_a_bad_label_keeps_its_first_reason():
    rows = rows_of([jpeg(1), b"text"])
    for row in (0, 1):
        rows.drop(row, "bad_label", "label nan is not finite")
    sign(rows, BuildConfig())
    assert [REASONS[code] for code in rows.reason] == ["bad_label"] * 2


# --- mirrored pictures


def turned(phash):
    """Returns (B, 32) uint8 hashes as those of the mirrored pictures are to be."""
    return (phash.view(np.uint64) ^ MIRROR).view(np.uint8)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from([(56, 56), (48, 64), (31, 33)]), st.integers(0, 8))
def test_a_mirrored_picture_turns_the_bits_of_odd_frequencies(seed, size, blur):
    noise = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    gray = cv2.GaussianBlur(noise, (0, 0), blur) if blur else noise
    found = perceptual_hash(gray[:, None])
    flipped = perceptual_hash(np.ascontiguousarray(gray[:, None, ::-1]))
    assert np.array_equal(turned(turned(found)), found)
    # A value that changes its sign changes its bit, unless it lies between the median and its opposite.
    height, width = size
    if height % 2 == 0:
        gray = cv2.resize(gray, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        height, width = gray.shape
    rows, columns = signatures._cosines(height).astype(float), signatures._cosines(width).astype(float)
    values = rows @ gray.astype(float) @ columns.T  # exact
    signs = np.where(np.arange(1, 17) % 2, -1, 1)
    medians = [np.partition(block.ravel(), 127)[127] for block in (values, values * signs)]
    between = np.abs(values).ravel() <= max(map(abs, medians))
    bits_apart = np.unpackbits(turned(found)[0] ^ flipped[0], bitorder="little").astype(bool)
    assert not (bits_apart & ~between).any()
    assert bits_apart.sum() <= 64  # and those are few


def test_mirrored_real_faces_are_near_their_turned_hashes_and_no_other(face_data):
    rec = face_data / "orl" / "train.rec"
    images = scan(Partition(0, 0, "recordio", str(rec), 0, rec.stat().st_size, None, True)).images[::4]
    gray = np.stack([cv2.imdecode(image, cv2.IMREAD_GRAYSCALE) for image in images], axis=1)
    saved = [cv2.imencode(".jpg", gray[:, i, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 75])[1] for i in range(len(images))]
    flipped = [cv2.imdecode(image, cv2.IMREAD_REDUCED_GRAYSCALE_2) for image in saved]
    upright = [cv2.imdecode(image, cv2.IMREAD_REDUCED_GRAYSCALE_2) for image in images]
    one, two = (perceptual_hash(np.stack(pictures, axis=1)) for pictures in (upright, flipped))
    apart = np.unpackbits(turned(one)[:, None] ^ two[None], axis=2).sum(2)
    assert np.diag(apart).max() <= 24  # the default of near_across; the others are beyond it
    assert (apart + 256 * np.eye(len(apart), dtype=int)).min() > 24


def test_an_exif_orientation_changes_no_signature():
    plain = jpeg(1, 40, 60)
    reasons, _, columns = signed([plain, with_orientation(plain)])
    assert reasons == ["kept"] * 2
    assert (columns["height"].tolist(), columns["width"].tolist()) == ([40] * 2, [60] * 2)
    assert (columns["phash"][0] == columns["phash"][1]).all()


def test_a_jpeg_of_a_thousand_scans_is_not_decoded(no_decoding):
    image = encode(texture(1), ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    assert signed([with_scans(image, 1000)])[:2] == (["undecodable"], ["JPEG of more than 100 scans"])

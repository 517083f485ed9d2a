"""Decoding, scaling and augmentations."""

from __future__ import annotations

import colorsys
import struct

import cv2
import numpy as np
import pytest

from tests.recs import encode, texture, with_scans
from training.data.transforms import Augmentation, ImageError, augment, decode, scaled

pytestmark = pytest.mark.numeric


def test_decoded_is_rgb_and_scaled_is_channels_first():
    picture = texture(1)
    got = decode(encode(picture, ".png"))
    np.testing.assert_array_equal(got, picture[:, :, ::-1])  # encode takes BGR
    out = np.empty((3, 112, 112), np.float32)
    scaled(got, out)
    np.testing.assert_array_equal(out, ((got.transpose(2, 0, 1) / 255 - 0.5) / 0.5).astype(np.float32))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes are no image"),
        (b"junk" * 9, "36 bytes are no image"),
        (encode(texture(2, 50, 40), ".png"), "an image of 50 x 40 pixels among 112 x 112"),
    ],
)
def test_what_is_no_image(data, message):
    with pytest.raises(ImageError, match=message):
        decode(data, (112, 112))


MANY = 20_000


@pytest.fixture(scope="module")
def drawn():
    """Many augmentations, each of an image's own generator, as a stream seeds them."""
    return [Augmentation.draw(np.random.default_rng((0, 0, 0, place))) for place in range(MANY)]


def test_augmentations_are_as_probable_as_arcface_torchs(drawn):
    # dataset.py, dali_data_iter: down-up resize 0.1, blur 0.2, hue and saturation 0.2, gray 0.1, each by itself.
    wanted = np.array([0.1, 0.2, 0.2, 0.1])
    found = np.array(
        [(one.factor is not None, one.window is not None, one.color is not None, one.gray) for one in drawn]
    )
    deviation = np.sqrt(wanted * (1 - wanted) / MANY)
    assert (np.abs(found.mean(axis=0) - wanted) < 5 * deviation).all()
    pairs = (found.T @ found.astype(float)) / MANY  # of two together
    for i, j in zip(*np.triu_indices(4, 1), strict=True):
        both = wanted[i] * wanted[j]
        assert abs(pairs[i, j] - both) < 5 * np.sqrt(both / MANY)


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        (lambda one: one.factor, 0.5, 0.8),
        (lambda one: one.color and one.color[0], 0.0, 20.0),
        (lambda one: one.color and one.color[1], 1.0, 1.2),
    ],
)
def test_augmentations_fill_arcface_torchs_ranges(drawn, value, low, high):
    found = np.array([value(one) for one in drawn if value(one) is not None])
    assert low <= found.min() < found.max() <= high
    # Evenly: every tenth of the range has a tenth of them, within five deviations.
    share = np.histogram(found, 10, (low, high))[0] / len(found)
    assert np.abs(share - 0.1).max() < 5 * np.sqrt(0.09 / len(found))


def test_the_windows_of_the_blur(drawn):
    found = [one.window for one in drawn if one.window]
    assert set(found) == {3, 5}
    assert abs(found.count(3) / len(found) - 0.5) < 5 * np.sqrt(0.25 / len(found))


ALL = Augmentation(factor=0.6, window=5, color=(20.0, 1.2), gray=True)
STEPS = [Augmentation(factor=0.6), Augmentation(window=5), Augmentation(color=(20.0, 1.2)), Augmentation(gray=True)]


def in_turn(picture, steps):
    for step in steps:
        picture = step.apply(picture)
    return picture


def test_augmentations_come_in_arcface_torchs_order():
    picture = texture(3)
    np.testing.assert_array_equal(ALL.apply(picture), in_turn(picture, STEPS))
    first, second, third = STEPS[:3]
    for steps in ([second, first, third], [first, third, second]):  # gray last: before hue it would be all the same
        assert not np.array_equal(in_turn(picture, steps), in_turn(picture, STEPS[:3]))


def test_nothing_is_done_to_most_images(drawn):
    picture = texture(3)
    assert Augmentation().apply(picture) is picture
    assert abs(drawn.count(Augmentation()) / MANY - 0.9 * 0.8 * 0.8 * 0.9) < 0.02


def test_what_an_augmentation_does():
    picture = texture(4)
    # Gray is the luma of ITU-R BT.601, as OpenCV has it.
    gray = Augmentation(gray=True).apply(picture)
    assert (gray == gray[..., :1]).all()
    assert np.abs(gray[..., 0].astype(int) - cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)).max() <= 1
    # Of a window's weights, exp(-x^2 / 2 sigma^2), the deviation is 0.3 (w / 2 - 1.5) + 0.8: a bright point shows them.
    point = np.zeros((9, 9, 3), np.uint8)
    point[4, 4] = 255
    for window, sigma in ((3, 0.8), (5, 1.1)):
        weights = np.exp(-((np.arange(window) - window // 2) ** 2) / (2 * sigma**2))
        weights /= weights.sum()
        blurred = Augmentation(window=window).apply(point)[..., 0].astype(float)
        rim = (9 - window) // 2
        np.testing.assert_allclose(blurred[rim : 9 - rim, rim : 9 - rim], 255 * np.outer(weights, weights), atol=1.5)
        assert blurred.sum() == blurred[rim : 9 - rim, rim : 9 - rim].sum()
    # In the plane of colour (colorsys' YIQ, other digits) the hue turns by its degrees and the saturation grows.
    soft = (picture // 2 + 64).astype(np.uint8)  # no channel is cut off at 0 or 255
    turned = Augmentation(color=(20.0, 1.2)).apply(soft)

    def plane(image):
        yiq = [colorsys.rgb_to_yiq(*color) for color in image.reshape(-1, 3)[::50] / 255]
        return np.array(yiq)[:, 0], np.array([complex(i, q) for _, i, q in yiq])

    (luma, before), (same, after) = plane(soft), plane(turned)
    assert np.abs(luma - same).max() < 0.01
    strong = abs(before) > 0.1  # where rounding to bytes does not blur an angle
    assert strong.sum() > 20
    ratio = after[strong] / before[strong]
    assert np.median(np.abs(ratio)) == pytest.approx(1.2, abs=0.02)
    assert np.median(np.degrees(np.angle(ratio))) == pytest.approx(-20, abs=1)  # from I towards -Q, as DALI turns


def test_augmentations_follow_from_the_generator():
    picture = cv2.resize(texture(3), (24, 24))
    results = [[augment(picture, np.random.default_rng(place)) for place in range(50)] for _ in range(2)]
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.shape == picture.shape
        assert one.dtype == np.uint8
    assert any(not np.array_equal(one, picture) for one in results[0])


@pytest.mark.parametrize("size", [None, (112, 112)])
def test_a_bomb_is_refused_by_its_header(monkeypatch, size):
    def refuse(*_):
        raise AssertionError("it was decoded")

    monkeypatch.setattr(cv2, "imdecode", refuse)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBBI", 13, b"IHDR", 32000, 32000, 8, 2, 0, 0, 0, 0)
    with pytest.raises(ImageError, match="an image of 32000 x 32000 pixels"):
        decode(bomb, size)
    scans = with_scans(encode(texture(1), ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1), 3000)
    with pytest.raises(ImageError, match="JPEG of more than 100 scans"):
        decode(scans, size)


def test_images_may_be_larger_where_the_build_let_them_in():
    image = encode(texture(1, 20, 30))
    assert decode(image, max_pixels=600).shape == (20, 30, 3)
    with pytest.raises(ImageError, match="20 x 30 pixels, more than max_pixels 599"):
        decode(image, max_pixels=599)

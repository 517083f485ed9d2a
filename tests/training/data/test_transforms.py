"""Decoding, scaling and augmentations."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from tests.recs import encode, texture
from training.data.transforms import RATE, ImageError, augment, decode, scaled

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


def test_augmentations_come_at_their_rate():
    picture = cv2.resize(texture(3), (24, 24))
    rng = np.random.default_rng(0)
    many = 4000
    results = [augment(picture, rng) for _ in range(many)]
    assert all(result.shape == picture.shape and result.dtype == np.uint8 for result in results)
    same = sum(np.array_equal(result, picture) for result in results) / many
    gray = sum((result == result[..., :1]).all() for result in results) / many
    assert same == pytest.approx((1 - RATE) ** 4, abs=0.03)
    assert gray == pytest.approx(RATE, abs=0.02)
    again = np.random.default_rng(0)
    for result in results[:50]:
        np.testing.assert_array_equal(augment(picture, again), result)

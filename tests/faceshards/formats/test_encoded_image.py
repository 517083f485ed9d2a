"""The gate before decoders: sizes and scans are read first, and an EXIF orientation turns nothing."""

from __future__ import annotations

import re

import cv2
import numpy as np
import pytest

from faceshards.formats.encoded_image import MOST_SCANS, decode, image_size, too_large
from pipelines.config import BuildConfig
from tests.recs import encode, texture, with_orientation, with_scans

PROGRESSIVE = encode(texture(1, 40, 60), ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
OWN = PROGRESSIVE.count(b"\xff\xda")


def comment(payload):
    return b"\xff\xfe" + (2 + len(payload)).to_bytes(2, "big") + payload


def test_a_progressive_jpeg_has_scans():
    assert 1 < OWN < 20


@pytest.mark.parametrize("scans", [0, MOST_SCANS - OWN])
def test_as_many_scans_as_are_allowed(scans):
    assert image_size(with_scans(PROGRESSIVE, scans)) == (40, 60)


@pytest.mark.parametrize("scans", [MOST_SCANS - OWN + 1, 3000])
def test_more_scans_are_refused_before_any_is_decoded(scans):
    with pytest.raises(ValueError, match=f"JPEG of more than {MOST_SCANS} scans"):
        image_size(with_scans(PROGRESSIVE, scans))


def test_no_marker_hides_scans():
    """What ends the image for a careless reader, inside a comment or an entropy-coded segment, ends it for nobody."""
    last = PROGRESSIVE.rindex(b"\xff\xda")
    for between in (comment(b"\xff\xd9"), b"\xff\xff\xff", b"\xff\xd0", b"\xff\x00", b"\xff\x01"):
        hidden = PROGRESSIVE[:last] + (between + PROGRESSIVE[last:-2]) * 200 + PROGRESSIVE[-2:]
        with pytest.raises(ValueError, match="scans"):
            image_size(hidden)


def test_a_frame_header_inside_a_comment_is_none():
    """Whatever has been seen before: beginnings that are alike are not walked twice."""
    lies = comment(b"\xff\xc0\x00\x11\x08\x00\x08\x00\x08\x03\x01")
    for data in (PROGRESSIVE, PROGRESSIVE[:2] + lies + PROGRESSIVE[2:], PROGRESSIVE[:2] + lies * 500 + PROGRESSIVE[2:]):
        for _ in range(2):
            assert image_size(data) == (40, 60)
    with pytest.raises(ValueError, match="without a frame header"):
        image_size(PROGRESSIVE[:2] + lies + b"\xff\xd9")


@pytest.mark.parametrize("quality", [1, 100])  # few bytes that may be markers, and many
@pytest.mark.parametrize("form", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_OPTIMIZE, 1)])
def test_sizes_of_jpegs_that_begin_alike_are_told_apart(form, quality):
    for height, width in ((112, 112), (112, 113), (113, 112), (400, 300), (112, 112)):
        image = encode(texture(height, height, width), ".jpg", cv2.IMWRITE_JPEG_QUALITY, quality, *form)
        assert image_size(image) == image_size(memoryview(image)) == (height, width)


@pytest.mark.parametrize("where", ["before the frame", "between scans", "behind the image"])
def test_what_looks_like_a_scan_and_is_none(where):
    payload = b"\xff\xda" * 200  # a thumbnail, a profile, a film
    first = re.search(rb"\xff\xda", PROGRESSIVE).start()
    data = {
        "before the frame": PROGRESSIVE[:2] + comment(payload) + PROGRESSIVE[2:],
        "between scans": PROGRESSIVE[:first] + comment(payload) + PROGRESSIVE[first:],
        "behind the image": PROGRESSIVE + payload,
    }[where]
    assert image_size(data) == (40, 60)
    np.testing.assert_array_equal(decode(data, cv2.IMREAD_COLOR), decode(PROGRESSIVE, cv2.IMREAD_COLOR))


@pytest.mark.parametrize("mode", [cv2.IMREAD_COLOR_RGB, cv2.IMREAD_COLOR, cv2.IMREAD_REDUCED_GRAYSCALE_2])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_exif_orientation_turns_nothing(mode, orientation):
    turned = with_orientation(PROGRESSIVE, orientation)
    if orientation > 4:  # the test's own picture is one that OpenCV would turn
        assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape == (60, 40, 3)
    np.testing.assert_array_equal(decode(turned, mode), decode(PROGRESSIVE, mode))
    assert image_size(turned) == (40, 60)


def test_what_is_damaged_has_no_pixels():
    for data in (b"", b"junk", PROGRESSIVE[:300]):
        assert decode(data, cv2.IMREAD_COLOR) is None


def test_pixels_are_limited_as_in_builds():
    limit = BuildConfig().max_pixels
    assert too_large((1, limit)) == ""
    assert too_large((limit + 1, 1)) == f"{limit + 1} x 1 pixels, more than max_pixels {limit}"

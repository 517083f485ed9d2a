"""The gate before every decoder: what an encoded image says of itself, and whether it may be decoded.

A header of a hundred bytes can ask for gigabytes, and a JPEG of 200 kB for a minute: each of its scans goes over all
of its pixels. So size and scans are read first, and nothing is decoded elsewhere.

An EXIF orientation is ignored. MindSpore's Decode does not know it, and an aligned face has none: a picture that one
reader turned and another did not would be two.
"""

from __future__ import annotations

import functools
import re
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

MAX_PIXELS = 4096 * 4096  # of an image that is decoded where no setting says otherwise
MOST_SCANS = 100  # of a JPEG; encoders write 1, progressive ones about 10

_SOF = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)))
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # by colour type; a palette holds colours
_FRAME = re.compile(rb"\xff[\xc0-\xc2].{7}", re.DOTALL)  # what nearly always is the frame header
_ALIKE = 4096  # bytes, at most, of a beginning that is kept to know it again
_SCAN = re.compile(rb"\xff\xda")  # a pattern is found in half the time that bytes.count() takes
_MARKER = re.compile(rb"\xff+[^\x00\xff]")  # what is no stuffed byte; libjpeg looks for the next one likewise


class Header(NamedTuple):
    """What a header says."""

    format: str  # jpeg or png
    channels: int  # as stored: 1 gray, 2 gray and alpha, 3 colour, 4 colour and alpha, or CMYK; 0 unknown


def decode(image: Any, mode: int) -> np.ndarray | None:
    """Returns the pixels of an image whose size image_size() has said and the caller admits; None if it is damaged.

    Args:
        image: encoded, a bytes-like object.
        mode: of cv2.imdecode; an EXIF orientation is ignored in each.
    """
    import cv2  # here, as the settings of a build, which know MAX_PIXELS, are shown without it

    try:
        data = image if isinstance(image, np.ndarray) else np.frombuffer(image, np.uint8)
        found = cv2.imdecode(data, mode | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
    return None if found is None or found.size == 0 else found


def too_large(size: tuple[int, int], max_pixels: int = MAX_PIXELS) -> str:
    """Returns why an image of this height and width is not to be decoded; "" if it may be."""
    if size[0] * size[1] > max_pixels:
        return f"{size[0]} x {size[1]} pixels, more than max_pixels {max_pixels}"
    return ""


def image_header(data: bytes | memoryview) -> Header:
    """Returns what the header says besides the size.

    Raises:
        ValueError: as image_size().
    """
    if data[:8] == _PNG:
        image_size(data)
        return Header("png", _PNG_CHANNELS.get(data[25] if len(data) > 25 else -1, 0))
    at = _frame(data) + 9
    return Header("jpeg", data[at] if at < len(data) else 0)


def image_size(data: bytes | memoryview) -> tuple[int, int]:
    """Returns height and width in pixels as a JPEG or PNG header says them, without decoding.

    Raises:
        ValueError: not JPEG or PNG, no size in it, or more scans than MOST_SCANS; the message is the cause.
    """
    if data[:8] == _PNG:
        if data[12:16] != b"IHDR" or len(data) < 24:
            raise ValueError("PNG without a header chunk")
        height, width = int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
        if max(height, width) >= 1 << 31:
            raise ValueError(f"PNG of {height} x {width} pixels, beyond the format's own limit")
        # cv2 4.11 allocates what a chunk says it holds, up to 2 GiB, before it reads it.
        at = 8
        while at + 12 <= len(data) and data[at + 4 : at + 8] != b"IEND":
            at += 12 + int.from_bytes(data[at : at + 4], "big")
        if at > len(data):
            raise ValueError(f"PNG cut off: a chunk should end at byte {at}, the data at {len(data)}")
        return height, width
    at = _frame(data)
    _check_scans(data, at)
    return data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]


def _frame(data: bytes | memoryview) -> int:
    """Returns the byte at which a JPEG's frame header begins; at least nine bytes of it are there."""
    # The images of a set begin alike, so that their markers are walked once.
    likely = _FRAME.search(data)
    at = _frame_of(bytes(data[: likely.end()])) if likely and likely.end() <= _ALIKE else -1
    return _walk_to_frame(data) if at < 0 else at


@functools.lru_cache(maxsize=256)
def _frame_of(beginning: bytes) -> int:
    """Returns where the frame header is in the first bytes of a JPEG, -1 if it is not wholly in them."""
    try:
        return _walk_to_frame(beginning)
    except ValueError:
        return -1


def _walk_to_frame(data: bytes | memoryview) -> int:
    """Returns what `_frame` does, from marker to marker."""
    if data[:2] != b"\xff\xd8":
        raise ValueError("empty image" if not len(data) else "neither JPEG nor PNG")
    at, end = 2, len(data) - 9
    while at <= end:
        if data[at] != 0xFF:
            break
        marker = data[at + 1]
        if marker in _SOF:
            return at
        # Fill bytes and markers without a length are one and two bytes long. To miss one is to look for the size
        # elsewhere than the decoder, and to let a bomb in.
        if marker == 0xFF:
            at += 1
        elif marker <= 0x01 or 0xD0 <= marker <= 0xD8:
            at += 2
        else:
            at += 2 + (data[at + 2] << 8 | data[at + 3])
    raise ValueError("JPEG without a frame header")


def _check_scans(data: bytes | memoryview, start: int) -> None:
    """Raises ValueError if a JPEG, from its frame header at `start` on, has more than MOST_SCANS scans.

    Counted as libjpeg meets them: what looks like a scan inside a segment (a thumbnail, a colour profile) or after the
    image's end (a film that a telephone appends) is none.
    """
    # Nearly always there are too few bytes that begin a marker, or else too few scans: nothing need be walked.
    if len(data) - np.count_nonzero(np.invert(np.frombuffer(data, np.uint8))) <= MOST_SCANS:
        return
    if sum(1 for _ in islice(_SCAN.finditer(data), MOST_SCANS + 1)) <= MOST_SCANS:
        return
    raw, scans, at = bytes(data), 0, start
    while found := _MARKER.search(raw, at):
        at, marker = found.end(), raw[found.end() - 1]
        if marker == 0xD9:
            return
        scans += marker == 0xDA
        if scans > MOST_SCANS:
            raise ValueError(f"JPEG of more than {MOST_SCANS} scans")
        if marker > 0x01 and not 0xD0 <= marker <= 0xD8:
            at += int.from_bytes(raw[at : at + 2], "big")

"""What the header of a JPEG or PNG says of the image, without decoding it."""

from __future__ import annotations

from typing import NamedTuple

_SOF = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)))
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # by colour type; a palette holds colours


class Header(NamedTuple):
    """What a header says."""

    format: str  # jpeg or png
    channels: int  # as stored: 1 gray, 2 gray and alpha, 3 colour, 4 colour and alpha, or CMYK; 0 unknown


def image_header(data: memoryview) -> Header:
    """Returns what the header says besides the size.

    Raises:
        ValueError: as image_size().
    """
    if data[:8] == _PNG:
        image_size(data)
        return Header("png", _PNG_CHANNELS.get(data[25] if len(data) > 25 else -1, 0))
    at = _frame(data) + 9
    return Header("jpeg", data[at] if at < len(data) else 0)


def image_size(data: memoryview) -> tuple[int, int]:
    """Returns height and width in pixels as a JPEG or PNG header says them, without decoding.

    Raises:
        ValueError: not JPEG or PNG, or no size in it; the message is the cause.
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
    return data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]


def _frame(data: memoryview) -> int:
    """Returns the byte at which a JPEG's frame header begins; at least nine bytes of it are there."""
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

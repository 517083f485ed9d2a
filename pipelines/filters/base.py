"""What a filter is, and what it gets to see of an image."""

from __future__ import annotations

import functools
import math
from typing import ClassVar, Protocol

import cv2
import numpy as np

from faceshards.formats.encoded_image import Header, decode, image_header

Verdict = tuple[str, str] | None
"""A drop reason and its detail, or None: the image stays."""


class UndecodableError(Exception):
    """The colours of an image cannot be decoded: the record is undecodable, the filter is not at fault."""


class Image:
    """One decoded image, as filters see it; its arrays cannot be written.

    Args:
        encoded: the JPEG or PNG, (bytes,) uint8.
        size: height and width in pixels, as the header says them.
        gray: the half-size decode that is made for the hash anyway, (about height / 2, about width / 2) uint8; an
            EXIF orientation is ignored.

    Attributes:
        measured: what filters measured of it, by name.
    """

    def __init__(self, encoded: np.ndarray, size: tuple[int, int], gray: np.ndarray) -> None:
        self.encoded, self.gray = _locked(encoded), _locked(gray)
        self.height, self.width = (int(side) for side in size)
        self.measured: dict[str, float] = {}

    @functools.cached_property
    def header(self) -> Header:
        """What else the header says: format (jpeg, png) and channels as stored."""
        return image_header(memoryview(self.encoded))  # type: ignore[arg-type]

    @functools.cached_property
    def bgr(self) -> np.ndarray:
        """The half-size colour decode, (about height / 2, about width / 2, 3) uint8, blue first; made when it is first
        asked for, which costs about as much as signing (docs/cleaning.md)."""
        found = decode(self.encoded, cv2.IMREAD_REDUCED_COLOR_2)
        if found is None:
            raise UndecodableError
        return _locked(found)

    def measure(self, name: str, value: float) -> float:
        """Returns the value, once it is noted down for the table of quantiles.

        Raises:
            ValueError: it is no finite number.
        """
        value = float(value)
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}")
        self.measured[name] = value
        return value


class Filter(Protocol):
    """A frozen dataclass whose fields are the filter's settings, each with a default; a line in FILTERS brings it in.

    Its __post_init__ refuses values out of range with a ConfigError.
    """

    REASONS: ClassVar[tuple[str, ...]]
    """The drop reasons it may give: names that no other filter has, of a to z, digits and _."""

    def check(self, image: Image) -> Verdict:
        """Returns why an image leaves: one of REASONS, and the detail with the value measured; None if it stays."""


def below(name: str, value: float, limit: float) -> str:
    """Returns the detail "NAME VALUE < LIMIT" if the value is below the limit, else nothing."""
    return f"{name} {_told(value, limit)} < {limit:g}" if value < limit else ""


def above(name: str, value: float, limit: float) -> str:
    """Returns the detail "NAME VALUE > LIMIT" if the value is above the limit, else nothing."""
    return f"{name} {_told(value, limit)} > {limit:g}" if value > limit else ""


def _told(value: float, limit: float) -> str:
    """Returns a value in as many digits as tell it from the limit; its whole ones, and three at least."""
    least = max(3, len(str(int(abs(value)))))
    texts = [f"{value:.{digits}g}" for digits in range(least, 18)]
    return next((text for text in texts if float(text) != float(f"{limit:g}")), texts[-1])


def _locked(array: np.ndarray) -> np.ndarray:
    array = array.view()
    array.flags.writeable = False
    return array

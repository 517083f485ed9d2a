"""From encoded images to the arrays a backbone takes, and the augmentations on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from faceshards.errors import FaceshardsError
from faceshards.formats import encoded_image
from faceshards.formats.encoded_image import MAX_PIXELS

SIZE = (112, 112)  # height and width in pixels of the faces that every backbone takes

# (x / 255 - 0.5) / 0.5 for every byte: RGB in [-1, 1], as InsightFace feeds its backbones.
SCALED = ((np.arange(256) / 255 - 0.5) / 0.5).astype(np.float32)  # (256,)

# Of arcface_torch's DALI pipeline (dataset.py, dali_data_iter): how probable an augmentation is, and its range.
RESIZE, FACTOR = 0.1, (0.5, 0.8)  # of the side
BLUR, WINDOWS = 0.2, (3, 5)  # pixels
COLOR, HUE, SATURATION = 0.2, (0.0, 20.0), (1.0, 1.2)  # degrees; a factor
GRAY = 0.1

# RGB to luma and the two axes of colour (YIQ), in whose plane DALI's hsv turns the hue and scales the saturation, and
# back, to DALI's digits (dali/operators/image/color/color_twist.h).
TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
TO_RGB = np.array([[1, 0.956, 0.621], [1, -0.272, -0.647], [1, -1.107, 1.705]])


class ImageError(FaceshardsError):
    """An image cannot be decoded, or has another size than the others."""


def decode(image: Any, size: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Returns an image as (H, W, 3) uint8, RGB; an EXIF orientation is ignored.

    Args:
        image: encoded, JPEG or PNG, a bytes-like object.
        size: height and width wanted, in pixels; None takes any.
        max_pixels: larger images are not decoded.

    Raises:
        ImageError: not an image, or of another size. The caller knows which one it is.
    """
    data = np.frombuffer(image, np.uint8)
    header_size(data, size, max_pixels)
    found = encoded_image.decode(data, cv2.IMREAD_COLOR_RGB)
    if found is None:
        raise ImageError(f"{len(data)} bytes are no image that OpenCV decodes")
    return found


def header_size(image: Any, size: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Returns height and width of an image that decode() would take, as its header says; raises as it does."""
    data = memoryview(image)
    try:
        found = encoded_image.image_size(data)
    except ValueError as error:
        raise ImageError(f"{len(data)} bytes are no image: {error}") from None
    if size is not None and found != size:
        raise ImageError(f"an image of {found[0]} x {found[1]} pixels among {size[0]} x {size[1]}")
    if cause := encoded_image.too_large(found, max_pixels):
        raise ImageError(f"an image of {cause}")
    return found


def scaled(image: np.ndarray, out: np.ndarray) -> None:
    """Writes (H, W, 3) uint8 into `out` (3, H, W) float32 as (x / 255 - 0.5) / 0.5.

    A table over the three channels side by side takes 14 us an image of 112 x 112, one per channel 17 us, a product
    and a difference 18 us, np.take 38 us (on a machine where decoding takes 76 us).
    """
    height, width = image.shape[:2]
    planes = np.empty((3, height, width), np.uint8)
    cv2.split(image, list(planes))
    cv2.LUT(planes.reshape(-1, width), SCALED, out.reshape(-1, width))


@dataclass(frozen=True)
class Augmentation:
    """What is done to an image, in this order; what is None or False is left out.

    Args:
        factor: of the side that it is resized to, and back (a low-resolution face).
        window: of a Gaussian blur, pixels.
        color: degrees that the hue turns by, and the saturation's factor.
        gray: whether its colour is taken away.
    """

    factor: float | None = None
    window: int | None = None
    color: tuple[float, float] | None = None
    gray: bool = False

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Augmentation:
        """Returns one as probable as the constants of this module say; always the same number of draws."""
        chosen = rng.random(4) < (RESIZE, BLUR, COLOR, GRAY)
        factor, hue, saturation = rng.uniform(*np.transpose((FACTOR, HUE, SATURATION)))
        window = WINDOWS[rng.integers(len(WINDOWS))]
        return cls(
            float(factor) if chosen[0] else None,
            window if chosen[1] else None,
            (float(hue), float(saturation)) if chosen[2] else None,
            bool(chosen[3]),
        )

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Returns (H, W, 3) uint8, RGB, of an image that is the like."""
        height, width = image.shape[:2]
        if self.factor is not None:
            low = (max(1, round(width * self.factor)), max(1, round(height * self.factor)))  # columns, rows
            small = cv2.resize(image, low, interpolation=cv2.INTER_AREA)
            image = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
        if self.window is not None:
            sigma = 0.3 * ((self.window - 1) / 2 - 1) + 0.8  # what DALI and OpenCV take for a window
            image = cv2.GaussianBlur(image, (self.window, self.window), sigma)
        if self.color is not None:
            image = cv2.transform(image, _color_matrix(*self.color))
        if self.gray:
            image = cv2.transform(image, _color_matrix(0.0, 0.0))
        return image


def _color_matrix(hue: float, saturation: float) -> np.ndarray:
    """Returns the (3, 3) matrix of a turn by `hue` degrees and a factor of the saturation, RGB to RGB."""
    turn = np.deg2rad(hue)
    plane = saturation * np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    whole = np.eye(3)
    whole[1:, 1:] = plane  # the luma stays
    return TO_RGB @ whole @ TO_YIQ


def augment(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns an image (H, W, 3) uint8, RGB, after the augmentations that `rng` draws for it."""
    return Augmentation.draw(rng).apply(image)

"""From encoded images to the arrays a backbone takes, and the augmentations on the way."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from faceshards.errors import FaceshardsError

SIZE = (112, 112)  # height and width in pixels of the faces that every backbone takes

# (x / 255 - 0.5) / 0.5 for every byte: RGB in [-1, 1], as InsightFace feeds its backbones.
SCALED = ((np.arange(256) / 255 - 0.5) / 0.5).astype(np.float32)  # (256,)

# Probability of each augmentation; arcface_torch's DALI pipeline uses these four, each on a tenth of the images.
RATE = 0.1


class ImageError(FaceshardsError):
    """An image cannot be decoded, or has another size than the others."""


def decode(image: Any, size: tuple[int, int] | None = None) -> np.ndarray:
    """Returns an image as (H, W, 3) uint8, RGB.

    Args:
        image: encoded, a bytes-like object.
        size: height and width wanted, in pixels; None takes any.

    Raises:
        ImageError: not an image, or of another size. The caller knows which one it is.
    """
    data = np.frombuffer(image, np.uint8)
    try:
        found = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if len(data) else None
    except cv2.error:
        found = None
    if found is None:
        raise ImageError(f"{len(data)} bytes are no image that OpenCV decodes")
    if size is not None and found.shape[:2] != size:
        raise ImageError(f"an image of {found.shape[0]} x {found.shape[1]} pixels among {size[0]} x {size[1]}")
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


def augment(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns an image after the augmentations of arcface_torch's DALI pipeline, each with probability RATE.

    Down-up resize to 0.2-0.8 of the side (a low-resolution face), Gaussian blur of sigma 0.5-2 pixels, gray, and hue
    (up to 10 of OpenCV's 180) and saturation (factor 0.7-1.3). The ranges are ours.

    Args:
        image: (H, W, 3) uint8, RGB.
        rng: all randomness; always the same number of draws.
    """
    chosen = rng.random(4) < RATE
    side, sigma, hue, saturation = rng.random(4)
    height, width = image.shape[:2]
    if chosen[0]:
        factor = 0.2 + 0.6 * side
        low = (max(1, round(width * factor)), max(1, round(height * factor)))  # columns, rows
        small = cv2.resize(image, low, interpolation=cv2.INTER_AREA)
        image = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    if chosen[1]:
        image = cv2.GaussianBlur(image, (0, 0), 0.5 + 1.5 * sigma)
    if chosen[2]:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if chosen[3]:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(np.float32)
        hsv[..., 0] = (hsv[..., 0] + 20 * hue - 10) % 180
        hsv[..., 1] = np.clip(hsv[..., 1] * (0.7 + 0.6 * saturation), 0, 255)
        image = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
    return image

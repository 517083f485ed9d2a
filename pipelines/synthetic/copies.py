"""Other files of a photograph: re-encoded, resized or toned, or mirrored too; near it by a hash of their own."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from faceshards.errors import FaceshardsError
from pipelines.synthetic.faces import SIZE, encode_jpeg

NEAR_BITS = 16
"""A planted near copy is at most this far from its original; the pipeline's default limit is 24."""


def near_copy(rng: np.random.Generator, original: bytes, *, mirrored: bool = False) -> bytes:
    """Returns another file of the same photograph, within NEAR_BITS of it, or of its mirror image."""
    pixels = cv2.imdecode(np.frombuffer(original, np.uint8), cv2.IMREAD_COLOR)
    pixels = cv2.flip(pixels, 1) if mirrored else pixels
    aim = _hash(original, mirrored)
    small = cv2.resize(cv2.resize(pixels, (96, 96), interpolation=cv2.INTER_AREA), (SIZE, SIZE))
    tone = int(rng.choice([-18, 18]))
    toned, small_toned = (np.clip(image.astype(np.int16) + tone, 0, 255) for image in (pixels, small))
    variants = [(pixels, 40), (pixels, 55), (small, 90), (toned, 80), (small_toned, 70)]
    order = [variants[i] for i in rng.permutation(len(variants))]
    for picture, quality in [*order, (pixels, 97)]:  # the last is hardly a change: always near
        copy = encode_jpeg(np.asarray(picture, np.uint8), quality)
        if copy != original and np.count_nonzero(_hash(copy) != aim) <= NEAR_BITS:
            return copy
    raise FaceshardsError("synthetic: a re-encoded photograph is further from itself than it can be")


def _hash(image: bytes, mirrored: bool = False) -> NDArray[np.bool_]:
    """Returns (256,) bits: the 16 x 16 lowest frequencies of the half-size gray image, above their median or not."""
    gray = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_2)
    gray = cv2.flip(gray, 1) if mirrored else gray
    waves = cv2.dct(cv2.resize(gray, (64, 64), interpolation=cv2.INTER_AREA).astype(np.float32))[1:17, 1:17]
    return np.asarray(waves > np.median(waves)).ravel()

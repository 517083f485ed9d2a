"""Stage 2, sign: one reduced decode per image gives validity, size, sha256 and a 256-bit perceptual hash.

The hash takes the 16 x 16 lowest frequencies of a cosine transform of the half-size gray image, without the constant
ones, and sets the bits of those above the median. (Calibration on real faces: docs/deduplication.md.) The cosines are
rounded to integers small enough that every sum is exact in floating point, so the bits depend on neither the batch,
the machine, nor the linear algebra library.
"""

from __future__ import annotations

import functools
import hashlib

import cv2
import numpy as np

from faceshards.formats.encoded_image import decode, image_size, too_large
from pipelines.config import BuildConfig
from pipelines.filters.base import Image
from pipelines.filters.screen import MEASURED, Screen
from pipelines.sources.base import Scanned

SIDE = 16
_SCALE = 1024  # of the integer cosines: 255 * 56 * 1024 < 2**24, exact in float32 for faces of 112 x 112
_BATCH = 64  # images transformed at once: within the second-level cache
_HALF_GRAY = cv2.IMREAD_REDUCED_GRAYSCALE_2  # always this one: another moves the hash by up to 32 bits
# numpy 1 selects without vectors, 3.3 us for 256 numbers; with AVX-512 it sorts them all in 1.0, without in 8. numpy 2
# selects in 0.7.
_AVX512_SKX = 256  # as cvdef.h of OpenCV has it
_SORT_IS_FASTER = np.__version__.startswith("1.") and cv2.checkHardwareSupport(_AVX512_SKX)
_HELD = 16 << 20  # bytes of decoded images that may wait for others of their size


@functools.lru_cache(maxsize=64)
def _cosines(side: int) -> np.ndarray:
    """Returns (SIDE, side) integer-valued cosines of 1..SIDE half periods over `side` pixels."""
    k = np.arange(1, SIDE + 1)[:, None]
    exact = np.rint(_SCALE * np.cos(np.pi * k * (np.arange(side) + 0.5) / side))
    return exact.astype(np.float32 if 255 * np.abs(exact).sum(1).max() < 1 << 24 else np.float64)


def perceptual_hash(gray: np.ndarray) -> np.ndarray:
    """Returns (B, 32) uint8, 256 bits an image, of gray images of one size.

    Args:
        gray: (height, B, width) uint8; the rows of all images side by side, so that each transform is one product.
            Averaged 2 x 2 first where the sides are even and large enough: the frequencies used stay below half of
            what is left, and the products shrink fourfold.
    """
    height, batch, width = gray.shape
    if height % 2 == 0 and width % 2 == 0 and min(height, width) >= 3 * SIDE:
        height, width = height // 2, width // 2
        gray = cv2.resize(gray.reshape(2 * height, -1), (batch * width, height), interpolation=cv2.INTER_AREA).reshape(
            height, batch, width
        )
    rows, columns = _cosines(height), _cosines(width).astype(np.float64)
    half = rows @ gray.reshape(height, -1).astype(rows.dtype)  # (SIDE, B * width), exact
    full = half.astype(np.float64).reshape(-1, width) @ columns.T  # (SIDE * B, SIDE), exact
    block = np.ascontiguousarray(full.reshape(SIDE, batch, SIDE).transpose(1, 0, 2)).reshape(batch, SIDE * SIDE)
    middle = _select(block, SIDE * SIDE // 2 - 1)
    return np.packbits(block > middle[:, None], axis=1, bitorder="little")


def _select(values: np.ndarray, place: int) -> np.ndarray:
    """Returns what stands at a place of each row of (B, n) once it is in order, (B,)."""
    ordered = np.sort(values, axis=1) if _SORT_IS_FASTER else np.partition(values, place, axis=1)
    return ordered[:, place]


def sign(rows: Scanned, config: BuildConfig, skip: frozenset[int] = frozenset()) -> dict[str, np.ndarray]:
    """Returns the signature columns of scanned rows, and drops from `rows` those that are no usable image, or that a
    filter sorts out.

    Args:
        rows: a scanned partition; its reasons and details are filled in.
        config: image_size, max_pixels and filters.
        skip: rows not to be touched, because decoding them killed a worker.

    Returns:
        height, width (N,) int32 pixels (0: unknown); sha256, phash (N, 32) uint8; signed, hashed (N,) bool, where
        these are valid; and of each value that a filter measured a column "measured.FILTER.NAME", (N,) float32.

    Raises:
        BrokenFilterError: a filter failed.
    """
    n = len(rows.images)
    sizes, sha = [(0, 0)] * n, np.zeros((n, 32), np.uint8)
    signed = np.array([image is not None for image in rows.images], bool)
    hasher = _Hasher(n)
    screen = Screen(config.filters, n) if config.filters else None
    digests: list[bytes] = []
    refused = functools.cache(lambda size: _refused(size, config))  # most images are of one size
    for i, image in enumerate(rows.images):
        if image is None:
            continue
        data = memoryview(image)  # type: ignore[arg-type]
        digests.append(hashlib.sha256(data).digest())
        if i in skip:
            rows.drop(i, "quarantined", "decoding it killed the worker, alone and repeatedly")
            continue
        try:
            size = sizes[i] = image_size(data)
        except ValueError as error:
            rows.drop(i, "undecodable", str(error))
            continue
        if why := refused(size):
            rows.drop(i, *why)
            continue
        gray = decode(image, _HALF_GRAY)
        if gray is None:
            rows.drop(i, "undecodable", "the decoder refuses it")
            continue
        hasher.add(i, gray)
        if screen and rows.reason[i] == 0 and (found := screen.check(i, Image(image, size, gray))):
            rows.reason[i], rows.detail[i] = found
    hasher.finish()
    sha[signed] = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
    height, width = np.array(sizes, np.int32).reshape(n, 2).T.copy()
    return {
        "height": height,
        "width": width,
        "sha256": sha,
        "phash": hasher.phash,
        "signed": signed,
        "hashed": hasher.hashed,
        **({f"{MEASURED}{name}": values for name, values in screen.measured.items()} if screen else {}),
    }


def _refused(size: tuple[int, int], config: BuildConfig) -> tuple[str, str] | None:
    """Returns reason and detail if an image of this height and width is not to be decoded."""
    if cause := too_large(size, config.max_pixels):
        return "too_large", cause
    wanted = config.image_size
    if wanted not in ((0, 0), size):
        return "wrong_size", f"{size[0]} x {size[1]} pixels, not {wanted[0]} x {wanted[1]}"
    return None


class _Hasher:
    """Hashes decoded images in batches of one size; some wait for others of their size.

    Args:
        n: rows.
    """

    def __init__(self, n: int) -> None:
        self.phash = np.zeros((n, 32), np.uint8)
        self.hashed = np.zeros(n, bool)
        self._waiting: dict[tuple[int, ...], tuple[list[int], list[np.ndarray]]] = {}  # by shape: rows and images
        self._held = 0  # bytes that wait

    def add(self, row: int, gray: np.ndarray) -> None:
        """Takes the decoded image of a row, (height, width) uint8."""
        group = self._waiting.get(gray.shape)
        if group is None:
            group = self._waiting[gray.shape] = ([], [])
        rows, images = group
        rows.append(row)
        images.append(gray)
        self._held += gray.size
        # Sets of one size fill batches; where sizes differ, what waits for its like must not fill the worker.
        if len(rows) == _BATCH:
            self._hash(rows, images)
        elif self._held > _HELD:
            self.finish()

    def finish(self) -> None:
        """Hashes all that still wait."""
        for group in self._waiting.values():
            self._hash(*group)

    def _hash(self, rows: list[int], images: list[np.ndarray]) -> None:
        """Hashes and empties a group of images of one size."""
        if not rows:
            return
        height, width = images[0].shape
        gray = np.concatenate(images, axis=1)  # (height, B * width)
        self.phash[rows] = perceptual_hash(gray.reshape(height, len(rows), width))
        self.hashed[rows] = True
        self._held -= gray.size
        rows.clear()
        images.clear()

"""The page and header size of a set's shards: one for all of them, because MindSpore reads no others together."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from faceshards.formats.mindrecord.layout import HEADER_SIZES, PAGE_SIZES

DEFAULT_PAGE = 4 << 20  # bytes; what a reader holds that takes a page whole
_HEADER_REST, _HEADER_PAGE = 1024, 224  # bytes of the header's JSON: besides its pages, and at most for a blob page


class Geometry(NamedTuple):
    """Bytes of each page, and of the header. (4 MiB, the least) is what shards of several pages once had."""

    page_size: int = DEFAULT_PAGE
    header_size: int = HEADER_SIZES[0]


def geometry(shards: Sequence[np.ndarray], wanted: int = DEFAULT_PAGE) -> Geometry:
    """Returns the least page size with which no shard fills more blob pages than with the one wanted, and its header.

    A page is empty from its last image on. With a page size that does not know the images, half a page of every shard
    is; with this one it is half an image of every page, and as much as a shard is smaller than the largest.

    Args:
        shards: bytes of each image, (n,) int, in order of rows, of one shard after the other.
        wanted: bytes; the largest image is taken for it if that needs more.
    """
    largest = max(int(sizes.max()) for sizes in shards) + 8
    high = bisect_left(PAGE_SIZES, max(largest, wanted))
    low = most = 0
    for sizes in shards:
        ends = np.cumsum(sizes, dtype=np.int64) + 8 * np.arange(1, len(sizes) + 1)  # (n,)
        count = _blob_pages(ends, PAGE_SIZES[high])
        most = max(most, count)
        low = max(low, bisect_left(PAGE_SIZES, min(largest, int(ends[-1]))))
        if _blob_pages(ends, PAGE_SIZES[low]) > count:
            low = bisect_left(PAGE_SIZES, True, low, high, key=lambda size: _blob_pages(ends, size) <= count)
    need = _HEADER_REST + _HEADER_PAGE * most
    return Geometry(PAGE_SIZES[low], next((size for size in HEADER_SIZES if size >= need), HEADER_SIZES[-1]))


def _blob_pages(ends: np.ndarray, page_size: int) -> int:
    """Returns how many pages blobs fill.

    Args:
        ends: (n,) int64, their bytes up to and including each; none is larger than a page.
        page_size: bytes.
    """
    count = base = 0
    while base < ends[-1]:
        base = int(ends[ends.searchsorted(base + page_size, "right") - 1])
        count += 1
    return count

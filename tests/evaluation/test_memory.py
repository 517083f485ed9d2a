"""A verification set of CFP-FP's size never lies decoded in memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from evaluation.embedder import Embedder
from evaluation.protocol.verification import verify
from faceshards.formats.verification_bin import read_bin, write_bin
from tests.recs import jpeg

PAIRS, DIM = 7000, 512


def forward(images):
    """Returns 512 of the pixels."""
    return images.reshape(len(images), -1)[:, : 72 * DIM : 72].copy()


@pytest.mark.slow
def test_seven_thousand_pairs(tmp_path):
    pictures = [jpeg(i) for i in range(40)]
    # A comment behind the end of each image makes 14,000 different ones.
    images = [pictures[i % 40] + i.to_bytes(4, "little") for i in range(2 * PAIRS)]
    encoded = sum(map(len, images))
    path = tmp_path / "cfp_fp.bin"
    write_bin(path, images, np.arange(PAIRS) % 2 == 0)
    del images
    # What Python and NumPy allocate, pixels that OpenCV decodes into included; a process's resident memory would be
    # that of other tests, of the allocator and of the machine's pages, too.
    tracemalloc.start()
    try:
        entry = read_bin(path)
        views, problems = Embedder(forward).views(entry.images)
        result = verify(views[0] + views[1], entry.same, bootstrap=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (views.shape, problems, result.pairs) == ((2, 2 * PAIRS, DIM), {}, PAIRS)
    # The encoded images; the embeddings, for a moment in parts and whole; and some batches as a model takes them, of 64
    # images and their mirror images. Decoded, the set has 502 MiB, and 4,019 MiB as both views in float32.
    batch = 2 * 64 * 3 * 112 * 112 * 4  # bytes
    assert peak < encoded + 2 * views.nbytes + 3 * batch

"""The verification set of what a split holds out, and who is in which of its pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from faceshards.dataset.manifest import Manifest
from faceshards.dataset.shard_images import blocks
from faceshards.files import write_parquet
from faceshards.formats.verification_bin import write_bin
from pipelines.config import BuildConfig
from pipelines.split.plan import FOLDS
from pipelines.split.rows import held_rows

SET, PAIRS = "unseen.bin", "unseen.parquet"
"""Their files, beside the tables and shards."""


def write_set(manifest: Manifest, held: Sequence[Path], sids: np.ndarray, same: np.ndarray, out: Path) -> list[str]:
    """Returns warnings after writing both files; the images are those of the shards, byte for byte.

    Args:
        manifest: the dataset that is split.
        held: what `route` wrote of rows that do not stay.
        sids: (P, 2) of the pairs' pictures.
        same: (P,) bool, whether a pair shows one person.
        out: folder to write to.

    Raises:
        ShardError: an image is not the manifest's.
        SetError: the disk refuses.
    """
    for left in out.glob(".unseen*"):  # of one that was killed
        left.unlink()
    every, at = np.unique(sids, return_inverse=True)
    rows = held_rows(held, every)
    images = [image for _, some in blocks(manifest, rows) for image in some]
    at = at.reshape(sids.shape)
    write_bin(out / SET, [images[place] for place in at.ravel().tolist()], same)
    columns = {
        "pair": pa.array(np.arange(len(same))),
        "fold": pa.array(np.arange(len(same)) // (len(same) // FOLDS)),
        "same": pa.array(same),
    }
    for side, places in zip("ab", at.T, strict=True):
        for name in ("sid", "label_original", "sha256"):
            columns[f"{name}_{side}"] = rows[name].take(pa.array(places))
    write_parquet(pa.table(columns), out / PAIRS)
    return _odd_sizes(rows, at)


def _odd_sizes(rows: pa.Table, at: np.ndarray) -> list[str]:
    """Returns a warning if backbones do not take some of the pictures, as `make-bin` has it."""
    height, width = BuildConfig.image_size
    odd = (rows["height"].to_numpy() != height) | (rows["width"].to_numpy() != width)
    if not odd.any():
        return []
    pairs = int(odd[at].any(axis=1).sum())
    counts = f"{int(odd.sum()):,} of {len(odd):,} pictures are not {height} x {width}"
    return [f"{SET}: {counts}, eval leaves their {pairs:,} of {len(at):,} pairs out"]

"""How the images of an export are cut into pieces: between identities, within shards, or by the size of files."""

from __future__ import annotations

import numpy as np

from faceshards.dataset.manifest import Manifest
from pipelines.exports.base import Request


def kept(manifest: Manifest) -> np.ndarray:
    """Returns the images of each identity by label, (C,) int64."""
    return manifest.table("identities", ["label", "kept"]).drop_null().sort_by("label")["kept"].to_numpy()


def shard_starts(manifest: Manifest) -> np.ndarray:
    """Returns the place of the first image of each shard in the order of the shards, and the end: (S + 1,) int64."""
    return np.concatenate([[0], np.cumsum(manifest.table("shards", ["rows"])["rows"].to_numpy())]).astype(np.int64)


def between_identities(manifest: Manifest, _: Request, step: int) -> np.ndarray:
    """Returns the bounds of pieces of whole identities; see Format."""
    starts = np.concatenate([[0], np.cumsum(kept(manifest))])
    share = manifest.totals["image_bytes"] / max(1, manifest.totals["kept"])
    fresh = np.flatnonzero(np.diff((starts[:-1] * share // step), prepend=-1))
    return np.append(starts[fresh], starts[-1])


def within_shards(manifest: Manifest, _: Request, step: int) -> np.ndarray:
    """Returns the bounds of pieces of one shard each; see Format."""
    starts = shard_starts(manifest).tolist()
    sizes = manifest.table("shards", ["bytes"])["bytes"].to_pylist()
    bounds = [0]
    for first, stop, size in zip(starts, starts[1:], sizes, strict=False):
        pieces = min(max(1, size // step), stop - first)
        bounds += [first + (stop - first) * (i + 1) // pieces for i in range(pieces)]
    return np.array(bounds, np.int64)


def by_size(manifest: Manifest, limit: int, beside: int) -> np.ndarray:
    """Returns the bounds of pieces of at most `limit` bytes, in the order of the shards; every one has an image.

    Args:
        manifest: the dataset.
        limit: bytes.
        beside: what an image adds besides its own bytes, which are filled up to blocks of 512.
    """
    sizes = np.concatenate([batch["bytes"].to_numpy() for batch in manifest.batches("images", ["bytes"])])
    ends = np.concatenate([[0], np.cumsum(-(-sizes // 512) * 512 + beside)])
    bounds = [0]
    while bounds[-1] < len(sizes):
        stop = int(np.searchsorted(ends, ends[bounds[-1]] + limit, "right")) - 1
        bounds.append(max(stop, bounds[-1] + 1))
    return np.array(bounds, np.int64)

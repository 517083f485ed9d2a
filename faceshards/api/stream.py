"""Batches for any framework."""

from __future__ import annotations

import os
from types import TracebackType

from faceshards.dataset.manifest import Manifest
from faceshards.storage.location import StoredPath, as_location
from training.config import WINDOW
from training.data import stream
from training.data.layout import Layout, StreamError
from training.data.shard_cache import ShardCache


class Stream(stream.Stream):
    """A rank's images in batches of NumPy arrays, epoch after epoch; what the trainer reads, for any framework.

    ``for images, labels in stream.batches(epoch)`` gives images (B, 3, H, W) float32, RGB, (x / 255 - 0.5) / 0.5, and
    labels (B,) int32 in 0..C-1. `len()` is the number of batches of an epoch, the same on every rank; images that fill
    no whole batch on all ranks come in another epoch. The order follows from seed and epoch alone. It is closed by
    close(), or by ``with``.

    Args:
        data: the dataset's folder or its address in a bucket, or the dataset.
        batch_size: images of a batch on this rank.
        rank: this reader's number, 0..world-1.
        world: readers that share out the images; each opens only the shards of its own part.
        seed: of order, mirroring and augmentation.
        sampling: ``instance``: each image once an epoch; ``identity`` or ``sqrt``: drawn so that identities come
            equally often, or by the square root of their images.
        order: ``global`` shuffles all images of a lane (eight a set, or one a reader); ``window`` takes its shards in
            random order and shuffles the images of `window` shards at a time, which are read whole, front to back.
        window: shards of a window.
        mirror: mirrors each image with probability 1/2.
        augment: the augmentations of arcface_torch's DALI pipeline.
        threads: that decode; 0: one per core.
        check_shards: compares the files with their checksums: ``background`` beside the first batches, True first,
            False never. With a cache, what is fetched is always compared.
        cache: a folder for copies of shards, on a disk of this machine, which several readers may share. A dataset in
            a bucket needs one. Order ``global`` fetches all shards of this reader before its first batch, ``window``
            those of the first windows.
        cache_bytes: that they may take; 0: no limit. Of each reader of the folder two windows have to fit, or, in order
            ``global``, all its shards.

    Raises:
        CacheError: the cache is too small, or cannot be used.
        ManifestError: nothing published there, or a table is damaged.
        StreamError: numbers that cannot be, fewer images than a batch for each rank, or a shard is missing or changed.
        ShardError: a file is no shard of ours.
    """

    def __init__(
        self,
        data: str | os.PathLike[str] | Manifest,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        *,
        seed: int = 0,
        sampling: str = "instance",
        order: str = "global",
        window: int = WINDOW,
        mirror: bool = True,
        augment: bool = False,
        threads: int = 0,
        check_shards: bool | str = "background",
        cache: str | os.PathLike[str] | None = None,
        cache_bytes: int = 0,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("world", world, 1),
            ("seed", seed, 0),
            ("threads", threads, 0),
            ("cache_bytes", cache_bytes, 0),
        ):
            if value < least:
                raise StreamError(f"{name} is {value}, and has to be {least} at least")
        folder = None if cache is None else as_location(os.fspath(cache))
        if isinstance(folder, StoredPath):
            raise StreamError(f"cache={folder}: is in a bucket, and has to be on a disk here")
        found = data if isinstance(data, Manifest) else Manifest(os.fspath(data))
        layout = Layout(found, world, batch_size * world)
        super().__init__(
            found,
            layout,
            rank,
            seed=seed,
            sampling=sampling,
            order=order,
            window=window,
            mirror=mirror,
            augment=augment,
            threads=threads,
            check_shards=check_shards,
            cache=None if folder is None else ShardCache(folder, cache_bytes),
        )
        self._steps = layout.steps_per_epoch
        self.num_classes = int(found.totals["identities"])

    def __len__(self) -> int:
        return self._steps

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

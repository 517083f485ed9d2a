"""Batches of a rank's own part of a published dataset, decoded in threads."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from functools import partial
from threading import Event
from typing import NoReturn

import cv2
import numpy as np

from faceshards.dataset.manifest import Manifest
from faceshards.errors import ShardError
from faceshards.files import bytes_text
from faceshards.formats.mindrecord.reader import Shard
from training.config import CHECKS, CHOICES, WINDOW
from training.data.layout import LaneOrder, Layout, StreamError, lane_order
from training.data.read_ahead import too_large
from training.data.shard_cache import ShardCache
from training.data.shard_check import ShardCheck, Written
from training.data.shelves import CachedShelf, LocalShelf, Run, Shelf
from training.data.transforms import ImageError, augment, decode, scaled
from training.data.windows import Windows

log = logging.getLogger(__name__)

_OF_ONE_PROCESS = (
    "a Stream's files and threads do not pass between processes: make one in each, with a rank of its own, as "
    "examples/torch_dataloader.py does"
)

_ASKED = 8  # shards at once, of those that a cache will keep

SAMPLING, ORDERS = CHOICES["sampling"], CHOICES["order"]


class Stream:
    """A rank's images, epoch after epoch.

    Of every own row it keeps 8 bytes of offset, 4 of length and 4 of label, and in an epoch 4 of order and 1 of
    mirroring. benchmarks/bench_stream.py compares it with MindDataset and others.

    Args:
        data: the dataset.
        layout: of the dataset on the run's ranks.
        rank: this one.
        seed: of order, mirroring and augmentation.
        sampling: see training.data.layout.lane_order.
        order: ``global`` shuffles all rows of a lane, ``window`` those of a few shards at a time: see there too.
        window: shards of a window.
        mirror: mirrors each image with probability 1/2.
        augment: see training.data.transforms.augment.
        threads: that decode; 0: one per core.
        check_shards: compares the files with their checksums: ``background`` beside the first batches, True first,
            False never.
        cache: keeps copies of what is read now and next, compared with their checksums; of a bucket it needs one.

    Raises:
        CacheError: the cache is too small, or cannot be used.
        StreamError: an unknown `sampling` or `order`, a shard is missing or changed, a label names no identity.
        ManifestError: a table is missing or changed.
        ShardError: a file is no shard of ours.
    """

    def __init__(
        self,
        data: Manifest,
        layout: Layout,
        rank: int = 0,
        *,
        seed: int = 0,
        sampling: str = "instance",
        order: str = "global",
        window: int = WINDOW,
        mirror: bool = True,
        augment: bool = False,
        threads: int = 0,
        check_shards: bool | str = "background",
        cache: ShardCache | None = None,
    ) -> None:
        if check_shards not in CHECKS:
            raise StreamError(f"check_shards {check_shards!r} is not one of {', '.join(map(repr, CHECKS))}")
        if sampling not in SAMPLING:
            raise StreamError(f"sampling '{sampling}' is not one of {', '.join(SAMPLING)}")
        if order not in ORDERS:
            raise StreamError(f"order '{order}' is not one of {', '.join(ORDERS)}")
        if window < 1:
            raise StreamError(f"window is {window}, and has to be 1 at least")
        if not 0 <= rank < layout.world:
            raise StreamError(f"rank {rank} is not one of {layout.world}")
        self._layout, self._rank, self._seed, self._sampling = layout, rank, seed, sampling
        self._window = window if order == "window" else 0
        self._mirror, self._augment = mirror, augment
        self._threads = threads or len(os.sched_getaffinity(0))
        self._start, end = layout.span(rank)
        self._files = layout.files(rank)
        self._size: tuple[int, int] | None = None
        self._max_pixels = data.max_pixels
        # Of row `start + i`: where its frame begins in its file, the bytes of its image, its identity.
        self._offsets = np.empty(end - self._start, np.int64)
        self._lengths, self.labels = np.empty((2, end - self._start), np.int32)
        self._closed, self._process = False, os.getpid()
        self._check: ShardCheck | None = None
        where = data.shard_path if cache else data.disk_path
        written = {i: Written(where(layout.names[i]), layout.bytes[i], layout.sha256[i]) for i in self._files}
        local = LocalShelf(written, self._window > 0, too_large(sum(layout.bytes)))
        self._shelf: Shelf = CachedShelf(cache, written) if cache else local
        if cache:
            need = layout.bytes_at_once([rank], self._window)
            cache.check(need, layout.bytes_read([rank]))
            log.info("rank %d: reads its shards from %s, %s at once", rank, cache.folder, bytes_text(need))
        try:
            # Most of it is the checksums of the tables' parts, or waiting for a store.
            with ThreadPoolExecutor(max(self._threads, _ASKED if cache else 0), "open") as pool:
                for _ in pool.map(partial(self._open, data), self._files):
                    pass
            if check_shards and not cache:  # which compares what it gives
                self._check = ShardCheck([*written.values()])
                if check_shards != "background":
                    self.wait_for_check()
        except BaseException:
            self.close()
            raise
        wrong = (self.labels < 0) | (self.labels >= data.totals["identities"])
        if wrong.any():
            row = int(wrong.argmax())
            raise StreamError(
                f"{data.path}: row {self._start + row} has label {self.labels[row]} of {data.totals['identities']}"
            )

    @property
    def nbytes(self) -> int:
        """Bytes kept about the own rows while an epoch runs."""
        return self._offsets.nbytes + self._lengths.nbytes + self.labels.nbytes + 5 * len(self.labels)

    def wait_for_check(self) -> None:
        """Returns once every own shard was compared with its checksum, if that was asked for.

        Raises:
            StreamError: one is not what was published.
        """
        if self._check is not None and self._check.busy:
            log.info("rank %d: waiting until its shards are compared with their checksums", self._rank)
            self._check.wait()
        self._refuse_damage()

    def _refuse_damage(self) -> None:
        """Raises StreamError if a shard is known to be damaged."""
        if self._check is not None and self._check.problem:
            raise StreamError(self._check.problem)

    def _open(self, data: Manifest, number: int) -> None:
        """Opens a shard and notes where the images of its own rows lie."""
        layout = self._layout
        path = self._shelf.opened(number)
        first, end = (int(row) for row in layout.shard_bounds[number : number + 2])
        labels, lengths = np.full(end - first, -1, np.int32), np.zeros(end - first, np.int32)
        for batch in data.batches("images", ["row", "label", "bytes"], shard=number):
            rows = batch["row"].to_numpy()
            if len(rows) and not (rows.min() >= 0 and rows.max() < end - first):
                raise StreamError(f"{data.path}: the manifest has rows of {path.name} that its table shards has not")
            labels[rows], lengths[rows] = batch["label"].to_numpy(), batch["bytes"].to_numpy()
        with Shard(path) as shard:
            if len(shard) != end - first:
                raise StreamError(f"{path}: {len(shard)} rows, the manifest says {end - first}")
            offsets = shard.frame_offsets(lengths)
        own = slice(max(first, self._start) - self._start, min(end, self._start + len(self.labels)) - self._start)
        part = slice(own.start + self._start - first, own.stop + self._start - first)
        self._offsets[own], self._lengths[own], self.labels[own] = offsets[part], lengths[part], labels[part]

    def __reduce__(self) -> NoReturn:
        raise StreamError(_OF_ONE_PROCESS)

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the batches of an epoch from step `start` on, at once wherever that is.

        Yields:
            images (B, 3, H, W) float32, RGB, (x / 255 - 0.5) / 0.5; labels (B,) int32.

        Raises:
            ShardError: an image cannot be read or decoded; the message names file and row.
            StreamError: a shard was found to be damaged; an epoch does not end before all were compared. Or the stream
                is closed or another process's, or there is no such epoch or step.
        """
        if os.getpid() != self._process:  # after a fork, which threads do not survive: it would wait for ever
            raise StreamError(_OF_ONE_PROCESS)
        if epoch < 0 or start < 0:
            raise StreamError(f"epoch {epoch} from step {start} on: both are counted from 0")
        if self._closed:
            raise StreamError("the stream is closed")
        layout = self._layout
        lanes = layout.own_lanes(self._rank)
        bounds = layout.bounds[lanes.start : lanes.stop + 1] - self._start
        orders = []
        for i, lane in enumerate(lanes):
            labels, edges = self.labels[bounds[i] : bounds[i + 1]], layout.edges(lane)
            orders.append(lane_order(self._seed, epoch, lane, labels, self._sampling, edges, self._window))

        def load(step: int) -> tuple[np.ndarray, np.ndarray]:
            items = np.arange(step * layout.batch, (step + 1) * layout.batch)
            which, places = items % len(lanes), items // len(lanes)  # (B,) own lane, position in it
            rows, mirrored = np.empty(len(items), np.int64), np.empty(len(items), bool)
            for i, order in enumerate(orders):
                mine = which == i
                rows[mine] = bounds[i] + order.rows[places[mine]]
                mirrored[mine] = order.mirrored[places[mine]]
            seeds = [(self._seed, epoch, lanes[i], int(place)) for i, place in zip(which, places, strict=True)]
            if self._shelf.waits:
                windows.wait(step)
            return self._load(rows, mirrored, seeds)

        steps = iter(range(start, layout.steps_per_epoch))
        waiting: deque[Future[tuple[np.ndarray, np.ndarray]]] = deque()
        with self._windows(orders, start) as windows, ThreadPoolExecutor(self._threads, "decode") as pool:

            def oldest() -> tuple[np.ndarray, np.ndarray]:
                self._refuse_damage()
                if self._closed:
                    raise StreamError("the stream was closed in mid-epoch")
                batch = waiting.popleft().result()
                windows.step_done()
                return batch

            try:
                for step in steps:
                    waiting.append(pool.submit(load, step))
                    if len(waiting) > self._threads + 1:
                        yield oldest()
                while waiting:
                    yield oldest()
                self.wait_for_check()
            finally:  # also when the caller leaves in the middle
                windows.cancel()
                for future in waiting:
                    future.cancel()

    def _windows(self, orders: list[LaneOrder], start: int) -> AbstractContextManager[Windows]:
        """Returns the windows of an epoch, which the shelf has ready when they are read."""
        layout, shelf, lanes = self._layout, self._shelf, self._layout.own_lanes(self._rank)
        edges = [layout.edges(lane) + layout.bounds[lane] - self._start for lane in lanes]  # own rows

        def runs(lane: int, window: int) -> Iterator[Run]:
            for piece in sorted(orders[lane].pieces[window]):
                first, last = edges[lane][piece], edges[lane][piece + 1] - 1
                end = int(self._offsets[last]) + 8 + int(self._lengths[last])
                yield Run(int(self._shards(first)), int(self._offsets[first]), end)

        def ready(lane: int, window: int, ended: Event) -> None:
            shelf.ready([*runs(lane, window)], ended)

        return closing(
            Windows(layout, orders, start, ready, lambda *window: shelf.done([*runs(*window)]), shelf.at_once)
        )

    def _load(
        self, rows: np.ndarray, mirrored: np.ndarray, seeds: list[tuple[int, int, int, int]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the images (B, 3, H, W) and labels (B,) of own rows."""
        images: np.ndarray | None = None
        shards = self._shards(rows).tolist()
        places, sizes = self._offsets[rows].tolist(), self._lengths[rows].tolist()
        for i, row in enumerate(rows.tolist()):
            try:
                image = decode(self._frame(shards[i], places[i], sizes[i]), self._size, self._max_pixels)
            except ImageError as error:
                raise ShardError(*self._name(row, str(error))) from None
            except OSError as error:
                raise ShardError(*self._name(row, f"cannot be read: {error.strerror}")) from None
            if self._size is None:
                self._size = (image.shape[0], image.shape[1])
            if images is None:
                images = np.empty((len(rows), 3, *image.shape[:2]), np.float32)
            if self._augment:
                image = augment(image, np.random.default_rng(seeds[i]))
            if self._mirror and mirrored[i]:
                image = cv2.flip(image, 1)
            scaled(image, images[i])
        assert images is not None
        return images, self.labels[rows]

    def _shards(self, rows: np.ndarray) -> np.ndarray:
        """Returns the numbers of the shards that own rows (n,) are in."""
        return np.searchsorted(self._layout.shard_bounds, self._start + rows, side="right") - 1

    def _frame(self, shard: int, offset: int, length: int) -> memoryview:
        """Returns an encoded image of an open shard.

        Raises:
            OSError: it cannot be read.
            ImageError: it has another length.
        """
        data = os.pread(self._shelf.handle(shard), length + 8, offset)
        if len(data) != length + 8 or int.from_bytes(data[:8], "little") != length:
            raise ImageError(f"no image of {length} bytes, which the manifest says")
        return memoryview(data)[8:]

    def _name(self, row: int, cause: str) -> tuple[str, str]:
        """Returns the shard's name, and the cause with the row in the shard."""
        number = int(self._shards(np.array(row)))
        return self._layout.names[number], f"row {self._start + row - self._layout.shard_bounds[number]}: {cause}"

    def close(self) -> None:
        """Closes the files, and gives up a check that goes on."""
        if self._check is not None:
            self._check.close()
        self._closed = True
        self._shelf.close()

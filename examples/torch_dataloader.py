"""Feeds a PyTorch DataLoader from shards, on any number of ranks and workers.

    python examples/torch_dataloader.py data/shards/synthetic --batch-size 64 --workers 2
    torchrun --nproc-per-node 2 examples/torch_dataloader.py data/shards/synthetic

A worker of a rank is a reader of its own: it opens only the shards of its part, and no two of them give the same image.
So there have to be as many shards as ranks x workers (`faceshards build ... --set shards=64`). A Stream decodes in
threads, so that one worker does what several would of datasets that do not. Needs torch beside faceshards.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import faceshards


class Shards(IterableDataset):
    """Batches of a published dataset: images (B, 3, H, W) float32 in -1..1, RGB; labels (B,) int64.

    Args:
        path: of the dataset.
        batch_size: images of a batch.
        rank: of this process.
        world: ranks.
        options: of faceshards.Stream, such as seed, sampling, threads.
    """

    def __init__(self, path: str, batch_size: int, rank: int = 0, world: int = 1, **options: Any) -> None:
        super().__init__()
        self.path, self.batch_size, self.rank, self.world, self.options = path, batch_size, rank, world, options
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that live on see it change
        self._stream: faceshards.Stream | None = None

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order and mirroring the next iteration has."""
        self.epoch.fill_(epoch)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        if self._stream is None:  # opened once in each worker: files and threads do not pass between processes
            self._stream = faceshards.Stream(
                self.path, self.batch_size, self.rank * workers + number, self.world * workers, **self.options
            )
        for images, labels in self._stream.batches(int(self.epoch)):
            yield torch.from_numpy(images), torch.from_numpy(labels).long()


def make_loader(dataset: Shards, workers: int = 1) -> DataLoader:
    """Returns a loader that hands batches on as they are. With workers, they are spawned: threads do not survive a
    fork."""
    if not workers:
        return DataLoader(dataset, batch_size=None)
    return DataLoader(
        dataset, batch_size=None, num_workers=workers, persistent_workers=True, multiprocessing_context="spawn"
    )


def main() -> None:
    """Reads two epochs and says what came."""
    parser = argparse.ArgumentParser(description="Feeds a PyTorch DataLoader from shards.")
    parser.add_argument("path", help="a published dataset")
    parser.add_argument("--batch-size", type=int, default=64, help="images of a batch (default: 64)")
    parser.add_argument("--workers", type=int, default=1, help="processes that read, for each rank (default: 1)")
    parser.add_argument("--epochs", type=int, default=2)
    given = parser.parse_args()
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    print(faceshards.open(given.path))
    dataset = Shards(given.path, given.batch_size, rank, world, seed=1)
    loader = make_loader(dataset, given.workers)
    for epoch in range(given.epochs):
        dataset.set_epoch(epoch)
        batches = images = 0
        for pixels, _labels in loader:  # here: loss(model(pixels), _labels).backward(), and so on
            batches, images = batches + 1, images + len(pixels)
        print(f"rank {rank} epoch {epoch}: {batches} batches, {images} images")


if __name__ == "__main__":
    try:
        main()
    except faceshards.FaceshardsError as error:
        raise SystemExit(f"Error: {error}") from None

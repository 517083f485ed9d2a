"""What a run will do and hold, worked out from settings and manifest before anything is allocated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from pipelines.errors import ConfigError
from pipelines.manifest import Manifest
from training.backbones.registry import BACKBONES
from training.config import TrainConfig
from training.layout import Layout
from training.sampling import Sampler, slice_of


@dataclass(frozen=True)
class Plan:
    """A run's numbers.

    Args:
        config: the settings.
        classes: identities of the dataset.
        fingerprint: of the dataset.
        world: ranks.
        layout: which rows of which files each rank reads.
        slices: first class and number of classes of each rank.
        sample: class centres of each rank in a step.
    """

    config: TrainConfig
    classes: int
    fingerprint: str
    world: int
    layout: Layout
    slices: tuple[tuple[int, int], ...]
    sample: tuple[int, ...]

    # Settings that may change when a run goes on: they change no loss.
    FREE: ClassVar = frozenset(
        ("device", "threads", "check_shards", "log_steps", "checkpoint_steps", "keep", "verify", "verify_steps")
    )

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in an epoch, on every rank."""
        return self.layout.steps_per_epoch

    @property
    def steps(self) -> int:
        """Optimiser steps of the run."""
        return self.config.epochs * self.steps_per_epoch

    def due(self, done: int, every: int) -> bool:
        """Returns whether something done every so many steps (0: every epoch) is due after `done` steps."""
        return done == self.steps or done % (every or self.steps_per_epoch) == 0

    def lines(self) -> Iterator[str]:
        """Yields the plan as a user wants to read it."""
        config, gib = self.config, 2**30
        yield f"{config.epochs} epochs of {self.steps_per_epoch:,} steps of {config.global_batch:,} images"
        yield f"learning rate up to {config.peak_lr():g} ({config.optimizer}, {config.schedule})"
        slots = 2 if config.optimizer == "sgd" else 3  # arrays of a centre: weight and what the optimiser keeps
        for rank, (start, count) in enumerate(self.slices):
            whole = count * config.embedding_size * 4 * slots / gib
            step = self.sample[rank] * config.embedding_size * 4 * 2 / gib  # rows and their gradient
            batch = 2 * config.global_batch // config.accumulate * self.sample[rank] * 4 / gib  # cosines, gradient
            yield (
                f"rank {rank}: {config.global_batch // self.world:,} images a step from {len(self.layout.files(rank))} "
                f"files with {self.layout.rows(rank):,} images; centres {count:,} of {self.classes:,} from {start:,} "
                f"on, {self.sample[rank]:,} in a step; {whole:.2f} GiB in {config.centers}, {step + batch:.2f} GiB "
                f"in a step"
            )


def make_plan(config: TrainConfig, data: Manifest, world: int) -> Plan:
    """Returns the plan of a run on `world` ranks.

    Raises:
        ConfigError: settings, dataset and ranks do not go together.
        StreamError: more ranks than shards, or fewer images than a global batch.
    """
    if config.global_batch % (world * config.accumulate):
        raise ConfigError(
            f"global_batch: {config.global_batch} images are not equal parts for {world} ranks x "
            f"{config.accumulate} parts (accumulate)"
        )
    if config.backbone not in BACKBONES:
        raise ConfigError(f"backbone: '{config.backbone}' is not one of {', '.join(BACKBONES)}")
    classes = data.totals["identities"]
    slices = tuple(slice_of(rank, world, classes) for rank in range(world))
    samplers = [
        Sampler(start, count, config.sample_rate, config.seed, rank) for rank, (start, count) in enumerate(slices)
    ]
    for sampler in samplers:
        sampler.check(config.global_batch)
    layout = Layout(data, world, config.global_batch)
    return Plan(config, classes, data.fingerprint, world, layout, slices, tuple(sampler.size for sampler in samplers))

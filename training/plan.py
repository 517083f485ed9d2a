"""What a run will do and hold, worked out from settings and manifest before anything is allocated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from faceshards.dataset.manifest import Manifest
from faceshards.errors import ConfigError, FaceshardsError
from faceshards.files import differences
from training.backbones.registry import find_spec
from training.centers.class_centers import slice_of
from training.centers.rules import RULES
from training.config import TrainConfig
from training.data.layout import Layout
from training.head.margins.registry import make_margin
from training.head.sampling import Sampler


class OtherRunError(FaceshardsError):
    """A checkpoint is of another dataset or of other settings."""


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

    # Settings that may change when a run goes on: they change no loss, or (checkpoint_steps) its rounding only.
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

    def check_same(self, path: Path, fingerprint: str, settings: Mapping[str, Any]) -> None:
        """Refuses to go on from a checkpoint of another dataset, or of settings that make another training.

        Args:
            path: of the checkpoint, for messages.
            fingerprint: of its dataset.
            settings: it was made with, as JSON has them.

        Raises:
            OtherRunError: names what differs.
        """
        if fingerprint != self.fingerprint:
            raise OtherRunError(
                f"{path}: made with the dataset {fingerprint[:12]}, this one is {self.fingerprint[:12]}; "
                f"--finetune takes over its backbone only"
            )
        for name, then, value in differences(settings, vars(self.config)):
            scaled = name != "loss_scale" or self.config.amp != "O0"  # float32 is not scaled
            if name not in self.FREE and scaled:
                raise OtherRunError(f"{path}: made with {name} {then}, now {value}; choose another --out for a new run")

    def lines(self) -> Iterator[str]:
        """Yields the plan as a user wants to read it."""
        config, gib = self.config, 2**30
        yield f"{config.epochs} epochs of {self.steps_per_epoch:,} steps of {config.global_batch:,} images"
        yield f"learning rate up to {config.peak_lr():g} ({config.optimizer}, {config.schedule})"
        if config.amp != "O0":
            scale = f"{config.loss_scale:.10g}" if config.loss_scale else "found as it goes"
            yield f"backbone in float16 (amp {config.amp}), loss scale {scale}; weights, head and centres in float32"
        slots = 1 + len(RULES[config.optimizer].slots)  # arrays of a centre: weight and what the optimiser keeps
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
    if config.amp == "O0" and config.loss_scale not in (0, 1):
        raise ConfigError(
            f"loss_scale: {config.loss_scale:.10g} is for float16: amp is O0, float32; leave one of them out"
        )
    find_spec(config.backbone)  # refuses an unknown one
    make_margin(config)  # refuses what none can be
    size = tuple(data.info["config"]["image_size"])
    if size not in ((112, 112), (0, 0)):
        raise ConfigError(f"{data.path}: images of {size[0]} x {size[1]} pixels; the backbones take 112 x 112")
    classes = data.totals["identities"]
    slices = tuple(slice_of(rank, world, classes) for rank in range(world))
    samplers = [
        Sampler(start, count, config.sample_rate, config.seed, rank, classes)
        for rank, (start, count) in enumerate(slices)
    ]
    for sampler in samplers:
        sampler.check(config.global_batch)
    layout = Layout(data, world, config.global_batch)
    return Plan(config, classes, data.fingerprint, world, layout, slices, tuple(sampler.size for sampler in samplers))

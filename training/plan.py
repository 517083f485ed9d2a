"""What a run will do and hold, worked out from settings and manifest before anything is allocated."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from faceshards.dataset.manifest import Manifest
from faceshards.errors import ConfigError, FaceshardsError
from faceshards.files import bytes_text, differences
from training.backbones.registry import find_spec
from training.centers.class_centers import slice_of
from training.centers.rules import RULES
from training.config import WINDOW, TrainConfig
from training.data.layout import Layout
from training.data.transforms import SIZE
from training.head.margins.registry import make_margin
from training.head.sampling import Sampler

# Arrays that MindSpore's optimiser keeps of a backbone's weights: accum and stat; exp_avg, exp_avg_sq, max_exp_avg_sq.
KEPT = {"sgd": 2, "adamw": 3}


class OtherRunError(FaceshardsError):
    """A checkpoint is of another dataset or of other settings."""


@dataclass(frozen=True)
class Plan:
    """A run's numbers.

    Args:
        config: the settings.
        classes: identities of the dataset.
        images: of the dataset.
        fingerprint: of the dataset.
        world: ranks.
        layout: which rows of which files each rank reads.
        slices: first class and number of classes of each rank.
        sample: class centres of each rank in a step.
    """

    config: TrainConfig
    classes: int
    images: int
    fingerprint: str
    world: int
    layout: Layout
    slices: tuple[tuple[int, int], ...]
    sample: tuple[int, ...]

    # Settings that may change when a run goes on: they change no loss, or (checkpoint_steps) its rounding only.
    FREE: ClassVar = frozenset(
        (
            "device",
            "threads",
            "check_shards",
            "loggers",
            "log_steps",
            "checkpoint_steps",
            "keep",
            "verify",
            "verify_steps",
        )
    )

    # What settings were, of releases that had not made them settings yet.
    SILENT: ClassVar = {"order": "global", "window": WINDOW}

    @property
    def window(self) -> int:
        """Shards of a window; 0: all of a lane."""
        return self.config.window if self.config.order == "window" else 0

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

    @classmethod
    def binds(cls, name: str, amp: str) -> bool:
        """Returns whether a run keeps a setting when it goes on; float32 (amp O0) has no loss to scale."""
        return name not in cls.FREE and (name != "loss_scale" or amp != "O0")

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
        settings = {**self.SILENT, **settings}
        found = [entry for entry in differences(settings, vars(self.config)) if self.binds(entry.name, self.config.amp)]
        if found:
            name, then, value = found[0]
            known = [entry for entry in found if None not in entry[1:]]  # by that release and by this one
            began = " ".join(f"--set {shlex.quote(f'{entry.name}={json.dumps(entry.before)}')}" for entry in known)
            raise OtherRunError(
                f"{path}: made with {name} {then}, now {value}; choose another --out for a new run, or go on as it "
                f"began: {began}"
            )

    @property
    def row_size(self) -> int:
        """Components of what is kept and moved of a class: its centre, or all its sub-centres."""
        return self.config.embedding_size * make_margin(self.config).centers

    @property
    def row_bytes(self) -> int:
        """Bytes of a class's row with what the optimiser keeps of it."""
        return self.row_size * 4 * (1 + len(RULES[self.config.optimizer].slots))

    def touched(self, rank: int) -> int:
        """Class centres of a rank that the run can sample at all; on disk the others take no room."""
        return min(self.slices[rank][1], self.steps * self.sample[rank])

    def step_bytes(self, rank: int) -> int:
        """Bytes that a rank's head takes in a step: rows and their gradient, cosines and theirs."""
        config = self.config
        cosines = config.global_batch // config.accumulate * (self.row_size // config.embedding_size)
        return 8 * self.sample[rank] * (self.row_size + cosines)

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of a checkpoint at the end of the run: backbone, optimiser and the class centres of all ranks."""
        fixed, each = find_spec(self.config.backbone).values
        backbone = 4 * (fixed + each * self.config.embedding_size) * (1 + KEPT[self.config.optimizer])
        return backbone + sum((self.row_bytes + 12) * self.touched(rank) for rank in range(self.world))

    @property
    def checkpoints(self) -> int:
        """Most checkpoints that lie on disk at once: the last, the best, and the one being written."""
        made = -(-self.steps // (self.config.checkpoint_steps or self.steps_per_epoch))
        return min(made, self.config.keep + bool(self.config.verify) + 1)

    def lines(self, cached: bool = False) -> Iterator[str]:
        """Yields the plan as a user wants to read it.

        Args:
            cached: copies of the shards are kept on this host.
        """
        config = self.config
        yield f"{config.epochs} epochs of {self.steps_per_epoch:,} steps of {config.global_batch:,} images"
        yield f"device {config.device}"
        yield f"learning rate up to {config.peak_lr():g} ({config.optimizer}, {config.schedule})"
        yield (
            f"up to {self.checkpoints:,} checkpoints of {bytes_text(self.checkpoint_bytes)} at once "
            f"(keep {config.keep:,}{', the best' if config.verify else ''}, the one being written)"
        )
        if config.amp != "O0":
            scale = f"{config.loss_scale:.10g}" if config.loss_scale else "found as it goes"
            yield f"backbone in float16 (amp {config.amp}), loss scale {scale}; weights, head and centres in float32"
        for rank, (start, count) in enumerate(self.slices):
            yield (
                f"rank {rank}: {config.global_batch // self.world:,} images a step from {len(self.layout.files(rank))} "
                f"files with {self.layout.rows(rank):,} images; centres {count:,} of {self.classes:,} from {start:,} "
                f"on, {self.sample[rank]:,} in a step; {bytes_text(count * self.row_bytes)} in {config.centers}, "
                f"{bytes_text(self.step_bytes(rank))} in a step"
            )
        yield self._checks(cached)

    def to_json(self) -> dict[str, Any]:
        """Returns the plan as JSON has it; sizes in bytes."""
        ranks = [
            {
                **{"rank": rank, "files": len(self.layout.files(rank)), "images": self.layout.rows(rank)},
                **{"first_class": start, "classes": count, "sample": self.sample[rank]},
                **{"centre_bytes": count * self.row_bytes, "step_bytes": self.step_bytes(rank)},
            }
            for rank, (start, count) in enumerate(self.slices)
        ]
        return {
            **{"fingerprint": self.fingerprint, "images": self.images, "identities": self.classes},
            **{"steps_per_epoch": self.steps_per_epoch, "steps": self.steps, "peak_lr": self.config.peak_lr()},
            **{"checkpoints": self.checkpoints, "checkpoint_bytes": self.checkpoint_bytes, "ranks": ranks},
            "settings": asdict(self.config),
        }

    def _checks(self, cached: bool) -> str:
        """Returns what of the dataset is compared with its checksums, and when."""
        if cached:
            return "compared with their checksums: the dataset's tables; shards when they come into the cache"
        sizes = (sum(self.layout.bytes[i] for i in self.layout.files(rank)) for rank in range(self.world))
        largest = f"up to {max(sizes) / 2**30:.2f} GiB of shards on each rank"
        shards = {
            "background": f"{largest}, beside the first epoch and before any checkpoint",
            True: f"{largest}, before the first step",
            False: "no shards",
        }[self.config.check_shards]
        return f"compared with their checksums: the dataset's tables; {shards} (check_shards)"

    def doubts(self) -> Iterator[str]:
        """Yields what a user may not have meant, though it can be done."""
        config, drawn = self.config, sum(self.sample)
        if self.images == self.classes:
            yield "every identity has one image: nothing shows what two pictures of one person have in common"
        if config.sample_rate < 1 and drawn <= config.global_batch:
            yield (
                f"sample_rate: {config.sample_rate:g} takes {drawn:,} class centres a step, which may all be those of "
                f"its {config.global_batch:,} images: no other is then drawn as a negative"
            )
        if config.milestones and config.schedule != "multistep":
            yield f"milestones: {list(config.milestones)} are those of schedule=multistep, this is {config.schedule}"
        if config.schedule == "multistep" and not config.milestones:
            yield "schedule: multistep without milestones never lowers the learning rate"


def make_plan(config: TrainConfig, data: Manifest, world: int) -> Plan:
    """Returns the plan of a run on `world` ranks.

    Raises:
        ConfigError: settings, dataset and ranks do not go together, or would train nothing.
        StreamError: fewer images than a global batch.
    """
    if config.amp == "O0" and config.loss_scale not in (0, 1):
        raise ConfigError(
            f"loss_scale: {config.loss_scale:.10g} is for float16: amp is O0, float32; leave one of them out"
        )
    find_spec(config.backbone)  # refuses an unknown one
    make_margin(config)  # refuses what none can be
    _check_batch(config, world)
    _check_dataset(config, data, world)
    classes = data.totals["identities"]
    slices = tuple(slice_of(rank, world, classes) for rank in range(world))
    samplers = [
        Sampler(start, count, config.sample_rate, config.seed, rank, classes)
        for rank, (start, count) in enumerate(slices)
    ]
    for sampler in samplers:
        sampler.check(config.global_batch)
    layout = Layout(data, world, config.global_batch)
    _check_schedule(config, layout.steps_per_epoch)
    sample = tuple(sampler.size for sampler in samplers)
    return Plan(config, classes, data.totals["kept"], data.fingerprint, world, layout, slices, sample)


def _check_batch(config: TrainConfig, world: int) -> None:
    """Refuses a global batch that ranks and parts cannot share, or of which one image stands alone."""
    if config.global_batch % (world * config.accumulate):
        raise ConfigError(
            f"global_batch: {config.global_batch} images are not equal parts for {world} ranks x "
            f"{config.accumulate} parts (accumulate)"
        )
    apart = config.accumulate * (1 if config.sync_bn else world)  # each with a mean and a variance of its own
    if config.global_batch < 2 * apart:
        raise ConfigError(
            f"global_batch: {config.global_batch} is one image for each of {world} ranks x {config.accumulate} parts "
            f"(accumulate), and the batch norm of one image is 0: {2 * apart} at least"
        )


def _check_dataset(config: TrainConfig, data: Manifest, world: int) -> None:
    """Refuses a dataset whose images the backbones do not take, or whose identities do not make a training."""
    size, classes = tuple(data.info["config"]["image_size"]), data.totals["identities"]
    if size not in (SIZE, (0, 0)):
        raise ConfigError(
            f"{data.path}: images of {size[0]} x {size[1]} pixels; the backbones take {SIZE[0]} x {SIZE[1]}: resize "
            f"the pictures and build again"
        )
    if classes < 2:
        count = "one identity" if classes else "no identity"
        raise ConfigError(f"{data.path}: {count}; training tells identities apart, so it takes two at least")
    if classes < world:
        raise ConfigError(
            f"{data.path}: {classes} identities on {world} ranks: each rank needs at least one; choose fewer --devices"
        )
    if config.sampling != "instance" and data.totals["kept"] == classes:
        raise ConfigError(
            f"sampling: {config.sampling} evens out identities with many images and with few, and each of "
            f"{data.path} has one: choose sampling=instance"
        )


def _check_schedule(config: TrainConfig, steps_per_epoch: int) -> None:
    """Refuses a learning rate that is always 0, never reaches its peak before the end, or never comes to its steps."""
    if config.lr == 0:
        raise ConfigError("lr: 0 trains nothing")
    if config.warmup_epochs and round(config.warmup_epochs * steps_per_epoch) >= config.epochs * steps_per_epoch:
        raise ConfigError(
            f"warmup_epochs: {config.warmup_epochs:g} is all of the run's {config.epochs} epochs (epochs): choose less"
        )
    late = [milestone for milestone in config.milestones if milestone >= config.epochs]
    if late and config.schedule == "multistep":
        raise ConfigError(
            f"milestones: epoch {late[0]} never begins, the run has {config.epochs} epochs (epochs), from 0 on"
        )

"""What a rank trains with, and how it takes over where another run, or this one, has come to."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import mindspore as ms
import numpy as np
import yaml

from faceshards.dataset.manifest import Manifest
from faceshards.files import replacing
from training import checkpoint
from training.backbones.registry import create_backbone
from training.centers.class_centers import ClassCenters
from training.centers.rules import RULES
from training.config import TrainConfig
from training.data.shard_cache import ShardCache
from training.data.stream import Stream
from training.device.distributed import Group
from training.device.prepare import prepare
from training.head.margins.registry import make_margin
from training.head.partial_fc import Head
from training.head.sampling import Sampler
from training.plan import Plan
from training.state import Meta, RunState
from training.step import Step
from training.weights.assign import load_weights

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What a rank trains with.

    Args:
        stream: its images.
        sampler: which class centres a step trains.
        centers: its slice of them.
        backbone: adapted to the device.
        weights: the backbone's parameters, by the names of checkpoints.
        step: an optimiser step.
        twin: of mixed precision: another backbone, float32, to measure in place of the one that trains.
    """

    stream: Stream
    sampler: Sampler
    centers: ClassCenters
    backbone: ms.nn.Cell
    weights: dict[str, ms.Parameter]
    step: Step
    twin: ms.nn.Cell | None = None

    def measurable(self) -> ms.nn.Cell:
        """Returns a backbone in float32, with the present weights: what a checkpoint holds, whatever trains it."""
        if self.twin is None:
            return self.backbone
        for name, parameter in self.twin.parameters_dict().items():
            ms.ops.assign(parameter, self.weights[name])  # set_data() would not reach a graph that is compiled
        return self.twin

    def close(self) -> None:
        """Closes files and gives memory back."""
        self.stream.close()
        self.centers.close()


def set_up(
    plan: Plan, data: Manifest, out: Path, group: Group, start: Path | None, cache: ShardCache | None = None
) -> Parts:
    """Returns what a rank trains with, at the first step.

    Args:
        plan: of the run.
        data: its dataset.
        out: the run's folder.
        group: the ranks.
        start: a checkpoint or a file of weights whose backbone is taken over; None begins with the seed's.
        cache: keeps copies of the shards that this rank reads.

    Raises:
        WeightsError, CheckpointError: `start` is damaged or of another backbone.
    """
    config, rank = plan.config, group.rank
    log.info("device %s", group.device)
    stream = Stream(
        data,
        plan.layout,
        rank,
        seed=config.seed,
        sampling=config.sampling,
        order=config.order,
        window=config.window,
        mirror=config.mirror,
        augment=config.augment,
        threads=config.threads,
        check_shards=config.check_shards,
        cache=cache,
    )
    first, count = plan.slices[rank]
    sampler = Sampler(first, count, config.sample_rate, config.seed, rank, plan.classes)
    centers = ClassCenters(
        plan.classes,
        plan.row_size,
        rank=rank,
        world=group.world,
        seed=config.seed,
        store=config.centers,
        rule=RULES[config.optimizer].from_config(config),
        folder=out / "centers",
    )
    for name, part in enumerate(group.gather_object((centers.start, centers.count))):
        log.info("rank %d: centres %s of %s from %s on", name, f"{part[1]:,}", f"{plan.classes:,}", f"{part[0]:,}")
    backbone = create_backbone(config.backbone, config.embedding_size, config.recompute, config.seed)
    weights = backbone.parameters_dict()
    if start is not None:
        take_over(start, backbone, weights)
    prepare(backbone, config, group)
    measured_apart = config.amp != "O0" and config.verify and rank == 0
    twin = create_backbone(config.backbone, config.embedding_size) if measured_apart else None
    step = Step(config, backbone, Head(group, make_margin(config)), group)
    return Parts(stream, sampler, centers, backbone, weights, step, twin)


def take_over(start: Path, backbone: ms.nn.Cell, weights: dict[str, ms.Parameter]) -> None:
    """Sets a backbone, as it was created, from a checkpoint (of whatever dataset) or a file of weights."""
    if start.is_file():
        load_weights(start, backbone)  # goes by the cells' names, which a device's layers change
    else:
        checkpoint.set_from(start, checkpoint.read_meta(start), "backbone", weights)
    log.info("backbone of %s", start)


def restore(path: Path, plan: Plan, parts: Parts) -> RunState:
    """Returns the state of the run in a checkpoint, after bringing back weights, optimiser and class centres.

    Raises:
        OtherRunError: the checkpoint is of another dataset or other settings.
        CheckpointError: it is damaged.
    """
    meta = checkpoint.read_meta(path)
    plan.check_same(path, meta.fingerprint, meta.config)
    checkpoint.set_from(path, meta, "backbone", parts.weights)
    checkpoint.set_from(path, meta, "optimizer", parts.step.slots)
    checkpoint.restore_rank(path, meta, parts.centers)
    state = meta.state
    if parts.step.scale.dynamic and state.loss_scale is not None:
        parts.step.scale.value, parts.step.scale.good = state.loss_scale
    log.info("going on from %s, written by %d ranks", path, meta.world)
    lanes, steps = plan.layout.lanes, plan.steps_per_epoch
    order = meta.lanes != lanes or (meta.world != plan.world and plan.config.global_batch % lanes)
    if order or state.step != state.epoch * steps + state.batch:
        log.warning(
            "%d ranks read in another order than %d, %d steps an epoch: some images of epoch %d come twice or not",
            *(plan.world, meta.world, steps, state.epoch),
        )
    if state.batch >= steps:
        state.epoch, state.batch = state.epoch + 1, 0
    return state


def save(state: RunState, plan: Plan, parts: Parts, data: Manifest, folder: Path, group: Group) -> Path:
    """Returns the checkpoint of a state, written by all ranks; rank 0 removes those that are not to stay."""
    meta = Meta(
        state=state,
        lanes=plan.layout.lanes,
        fingerprint=data.fingerprint,
        classes=plan.classes,
        world=group.world,
        config=vars(plan.config),
        dataset=str(data.info["name"]),
    )
    path = checkpoint.save(folder, meta, group, _arrays(parts.weights), _arrays(parts.step.slots), parts.centers)
    if group.rank == 0:
        checkpoint.prune(folder, plan.config.keep)
    return path


def write_config(config: TrainConfig, path: Path) -> None:
    """Writes the settings of a run as YAML."""
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(config).items()}
    with replacing(path) as temporary:
        temporary.write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")


def _arrays(parameters: dict[str, ms.Parameter]) -> dict[str, np.ndarray]:
    return {name: parameter.asnumpy() for name, parameter in parameters.items()}

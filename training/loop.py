"""The training loop: one optimiser step after the other, the same on one rank and on many."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import yaml

from faceshards.dataset.manifest import Manifest
from faceshards.errors import FaceshardsError
from faceshards.files import replacing
from training import checkpoint
from training.backbones.registry import create_backbone
from training.centers.class_centers import ClassCenters
from training.centers.rules import CenterUpdate
from training.config import TrainConfig
from training.data.stream import Stream
from training.device.distributed import Group
from training.device.prepare import prepare
from training.head.margins.registry import make_margin
from training.head.partial_fc import Head
from training.head.sampling import Sampler
from training.metrics import Progress
from training.plan import Plan
from training.schedule import learning_rate
from training.step import Step
from training.weights.assign import load_weights

log = logging.getLogger(__name__)

Verify = Callable[[ms.nn.Cell], dict[str, tuple[float, float]]]


class TrainingError(FaceshardsError):
    """Training cannot go on."""


def train(
    plan: Plan,
    data: Manifest,
    out: Path,
    group: Group,
    *,
    resume: bool = False,
    finetune: Path | None = None,
    verify: Verify | None = None,
) -> dict[str, Any]:
    """Trains as planned and returns what came of it: steps, first and last loss, accuracies, and, as paths below `out`,
    the last checkpoint and the best.

    Args:
        plan: settings and what follows from them and the dataset.
        data: the dataset.
        out: the run's folder, on a disk that all hosts share.
        group: the ranks.
        resume: go on from the last checkpoint in `out`, if there is one.
        finetune: a checkpoint whose backbone is taken over, whatever its dataset; or a file of weights
            (training.weights.read).
        verify: gives accuracy and threshold (a cosine) by set for a backbone; called on rank 0.

    Raises:
        TrainingError: a loss is not finite.
        OtherRunError: the checkpoint is of another dataset or other settings.
        CheckpointError: a checkpoint is damaged, or cannot be written.
    """
    config, rank, world = plan.config, group.rank, group.world
    stream = Stream(
        data, plan.layout, rank, seed=config.seed, sampling=config.sampling, mirror=config.mirror,
        augment=config.augment, threads=config.threads, check_shards=config.check_shards,
    )  # fmt: skip
    start, count = plan.slices[rank]
    sampler = Sampler(start, count, config.sample_rate, config.seed, rank, plan.classes)
    centers = ClassCenters(
        plan.classes, config.embedding_size, rank=rank, world=world, seed=config.seed, store=config.centers,
        update=CenterUpdate(config.optimizer, config.momentum, config.weight_decay), folder=out / "centers",
    )  # fmt: skip
    backbone = create_backbone(config.backbone, config.embedding_size, config.recompute, config.seed)
    weights = backbone.parameters_dict()
    folder, done, epoch, batch = out / "checkpoints", 0, 0, 0
    losses, pending = [math.nan, math.nan], list[float]()
    accuracies: dict[str, float] = {}
    saved = checkpoint.known(folder)[-1:] if resume else []
    if finetune is not None and not saved:
        if finetune.is_file():
            load_weights(finetune, backbone)
        else:
            _load(finetune, checkpoint.read_meta(finetune), "backbone", weights)
        log.info("backbone of %s", finetune)
    prepare(backbone, config, group)
    step = Step(config, backbone, Head(group, make_margin(config)), group)
    for name, part in enumerate(group.gather_object((centers.start, centers.count))):
        log.info("rank %d: centres %s of %s from %s on", name, f"{part[1]:,}", f"{plan.classes:,}", f"{part[0]:,}")

    if saved:
        meta = checkpoint.read_meta(saved[0])
        plan.check_same(saved[0], meta.fingerprint, meta.config)
        _load(saved[0], meta, "backbone", weights)
        _load(saved[0], meta, "optimizer", _by_name(step.optimizer))
        checkpoint.restore_rank(saved[0], meta, centers)
        step.scale, step.good = meta.loss_scale
        done, epoch, batch = meta.step, meta.epoch, meta.batch
        losses, pending, accuracies = list(meta.losses), list(meta.pending), dict(meta.verification)
        log.info("going on from %s, written by %d ranks", saved[0], meta.world)
        order = meta.lanes != plan.layout.lanes or (meta.world != world and config.global_batch % plan.layout.lanes)
        if order or done != epoch * plan.steps_per_epoch + batch:
            log.warning(
                "%d ranks read in another order than %d, %d steps an epoch: some images of epoch %d come twice or not",
                *(world, meta.world, plan.steps_per_epoch, epoch),
            )
        if batch >= plan.steps_per_epoch:
            epoch, batch = epoch + 1, 0

    if rank == 0:
        with replacing(out / "config.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(_plain(config), sort_keys=False), encoding="utf-8")
    progress = Progress(out if rank == 0 else None, plan.steps, plan.steps_per_epoch, config.global_batch,
                        config.log_steps, done, pending)  # fmt: skip
    rows = None
    try:
        while done < plan.steps:
            for images, labels in stream.batches(epoch, batch):  # (B, 3, H, W), (B,)
                everyone = group.gather(ms.Tensor(labels)).asnumpy()  # (G,), rank by rank
                parts = everyone.reshape(world, config.accumulate, -1).swapaxes(0, 1)  # (A, W, b)
                ids, targets = sampler.sample(parts.reshape(-1), done)  # (S,), (G,)
                rows = centers.gather(ids, None if config.centers == "device" else rows)  # (S, D), in the same place
                lr = learning_rate(config, done, plan.steps_per_epoch)
                loss, norm, d_rows = step(images, rows, targets.reshape(config.accumulate, -1), lr, done)
                if not math.isfinite(loss) or (d_rows is not None and not math.isfinite(norm)):
                    raise TrainingError(
                        f"step {done + 1}: loss {loss}, gradient norm {norm}: not finite; lr {lr:.5g}. Checkpoints are "
                        f"as they were; a lower lr, a longer warm-up or a lower clip may help"
                    )
                if d_rows is not None:
                    centers.update(ids, d_rows if config.centers == "device" else d_rows.asnumpy(), lr)
                done, batch = done + 1, batch + 1
                if batch == plan.steps_per_epoch:
                    epoch, batch = epoch + 1, 0
                losses = [loss if math.isnan(losses[0]) else losses[0], loss]
                progress.step(done, loss, lr, norm, step.scale)

                began = time.perf_counter()
                measured: dict[str, tuple[float, float]] = {}
                if config.verify and plan.due(done, config.verify_steps):
                    if rank == 0 and verify is not None:
                        measured = verify(backbone)
                        backbone.set_train()
                        progress.write(done, {f"accuracy/{name}": part[0] for name, part in measured.items()})
                    group.barrier()
                accuracies = {name: part[0] for name, part in measured.items()}
                if plan.due(done, config.checkpoint_steps):
                    meta = checkpoint.Meta(
                        done, epoch, batch, plan.layout.lanes, data.fingerprint, plan.classes, world,
                        dataclasses.asdict(config), (step.scale, step.good), accuracies,
                        {name: part[1] for name, part in measured.items()}, str(data.info["name"]),
                        (losses[0], losses[1]), progress.pending,
                    )  # fmt: skip
                    saved = [checkpoint.save(folder, meta, group, _arrays(weights), _arrays(_by_name(step.optimizer)),
                                             centers)]  # fmt: skip
                    if rank == 0:
                        checkpoint.prune(folder, config.keep)
                progress.pause(time.perf_counter() - began)
                if batch == 0 or done == plan.steps:
                    break
    finally:
        progress.close()
        stream.close()
        centers.close()
    best = checkpoint.best(folder) if rank == 0 else None  # which may be pruning while another rank looks
    return {
        "steps": done, "first_loss": losses[0], "last_loss": losses[1], "accuracies": accuracies,
        "checkpoint": str(saved[0].relative_to(out)) if saved else None,
        "best": str(best.relative_to(out)) if best else None,
    }  # fmt: skip


def _plain(config: TrainConfig) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(config).items()}


def _by_name(optimizer: Any) -> dict[str, ms.Parameter]:
    """Returns the optimiser's own parameters, without the weights."""
    weights = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    return {parameter.name: parameter for parameter in optimizer.get_parameters() if id(parameter) not in weights}


def _arrays(parameters: dict[str, ms.Parameter]) -> dict[str, np.ndarray]:
    return {name: parameter.asnumpy() for name, parameter in parameters.items()}


def _load(path: Path, meta: checkpoint.Meta, name: str, parameters: dict[str, ms.Parameter]) -> None:
    """Sets parameters from a checkpoint's file."""
    wanted = {key: tuple(parameter.shape) for key, parameter in parameters.items()}
    for key, array in checkpoint.read_arrays(path, meta, name, wanted).items():
        parameters[key].set_data(ms.Tensor(array, parameters[key].dtype))

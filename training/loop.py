"""The training loop: one optimiser step after the other, the same on one rank and on many."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mindspore as ms

from faceshards.dataset.manifest import Manifest
from faceshards.errors import FaceshardsError
from training import checkpoint
from training.config import TrainConfig
from training.data.layout import StreamError
from training.data.shard_cache import ShardCache
from training.device.distributed import Group
from training.loggers.base import Run
from training.loggers.registry import open_loggers
from training.metrics import RunLog
from training.plan import Plan
from training.schedule import learning_rate
from training.setup import Parts, restore, save, set_up, write_config
from training.state import RunState
from training.step import LossScale

# Accuracy, threshold (a cosine) and SHA-256 of the pairs by set.
Verify = Callable[[ms.nn.Cell], dict[str, tuple[float, float, str]]]


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
    cache: ShardCache | None = None,
) -> dict[str, Any]:
    """Trains as planned and returns what came of it.

    Args:
        plan: settings and what follows from them and the dataset.
        data: the dataset.
        out: the run's folder, on a disk that all hosts share.
        group: the ranks.
        resume: go on from the last checkpoint in `out`, if there is one.
        finetune: a checkpoint whose backbone is taken over, whatever its dataset; or a file of weights
            (training.weights.read).
        verify: measures a backbone; called on rank 0.
        cache: keeps copies of the shards that this rank reads.

    Returns:
        steps, skipped_steps (of mixed precision), first_loss, last_loss, accuracies; checkpoint (the last) and best, as
        paths below `out`; best_steps and best_accuracies, of the best.

    Raises:
        TrainingError: a loss is not finite, or all steps were skipped.
        StreamError: a shard is not what was published; see TrainConfig.check_shards.
        OtherRunError: the checkpoint is of another dataset or other settings.
        CheckpointError: a checkpoint is damaged, or cannot be written.
    """
    config, folder = plan.config, out / "checkpoints"
    saved = next(iter(checkpoint.known(folder)[-1:] if resume else []), None)
    parts = set_up(plan, data, out, group, None if saved else finetune, cache)
    state = restore(saved, plan, parts) if saved else RunState()
    if group.rank == 0:
        write_config(config, out / "config.yaml")
    loggers = open_loggers(config.loggers, Run(out, vars(config), state.step)) if group.rank == 0 else {}
    log = RunLog(
        out if group.rank == 0 else None,
        total=plan.steps,
        steps_per_epoch=plan.steps_per_epoch,
        images=config.global_batch,
        every=config.log_steps,
        start=state.step,
        pending=state.pending,
        loggers=loggers,
    )
    try:
        while state.step < plan.steps:
            for images, labels in parts.stream.batches(state.epoch, state.batch):  # (B, 3, H, W), (B,)
                # Which centres: the labels of all ranks decide, the same on every rank.
                everyone = group.gather(ms.Tensor(labels)).asnumpy()  # (G,), rank by rank
                by_part = everyone.reshape(group.world, config.accumulate, -1).swapaxes(0, 1)  # (A, W, b)
                ids, targets = parts.sampler.sample(by_part.reshape(-1), state.step)  # (S,), (G,)
                rows = parts.centers.gather(ids)  # (S, D)

                # Forward, backward, and the backbone's update.
                lr = learning_rate(config, state.step, plan.steps_per_epoch)
                targets = targets.reshape(config.accumulate, -1)
                loss, norm, d_rows = parts.step(images, rows, targets, lr, state.step)
                skipped = d_rows is None  # the loss scale proved too large, on all ranks alike
                if not math.isfinite(loss) or not (skipped or math.isfinite(norm)):
                    raise _not_finite(config, state.step + 1, loss, norm, lr, parts.step.scale)

                # The centres' update. Skipped, a step moves neither them nor the history that others catch up with.
                if not skipped:
                    parts.centers.update(ids, d_rows, lr)

                # What came of it.
                state.count(loss, plan.steps_per_epoch, skipped)
                scaling = (parts.step.scale.value, state.skipped)
                log.step(state.step, loss, lr, norm, None if config.amp == "O0" else scaling)
                began = time.perf_counter()
                measures = config.verify and plan.due(state.step, config.verify_steps)
                saves = plan.due(state.step, config.checkpoint_steps)
                if measures or saves:
                    _wait_for_checks(parts, group)
                if measures:
                    _measure(state, parts, group, verify, log)
                if saves:
                    state.loss_scale, state.pending = parts.step.scale.state, log.pending
                    saved = save(state, plan, parts, data, folder, group)
                log.pause(time.perf_counter() - began)
                if state.batch == 0 or state.step == plan.steps:
                    break
        if state.skipped == state.step:
            raise TrainingError(
                f"all {state.step} steps were skipped, so nothing was trained: their gradients were too large for "
                f"float16 down to a loss scale of {parts.step.scale.value:,.0f}; more steps, --set loss_scale=N with a "
                f"smaller N, or --set amp=O0 (float32)"
            )
    finally:
        log.close()
        parts.close()
    best = checkpoint.best(folder) if group.rank == 0 else None  # which may be pruning while another rank looks
    highest = checkpoint.read_meta(best).state if best else None
    return {
        "steps": state.step,
        "skipped_steps": state.skipped,
        "first_loss": state.losses[0],
        "last_loss": state.losses[1],
        "accuracies": state.verification,
        "checkpoint": str(saved.relative_to(out)) if saved else None,
        "best": str(best.relative_to(out)) if best else None,
        "best_steps": highest.step if highest else None,
        "best_accuracies": highest.verification if highest else {},
    }


def _wait_for_checks(parts: Parts, group: Group) -> None:
    """Returns once all ranks know their shards to be whole: nothing is measured or saved of damaged ones.

    Raises:
        StreamError: on every rank, if one found damage.
    """
    try:
        parts.stream.wait_for_check()
        mine = ""
    except StreamError as error:
        mine = str(error)
    for problem in group.gather_object(mine):
        if problem:
            raise StreamError(problem)


def _not_finite(config: TrainConfig, step: int, loss: float, norm: float, lr: float, scale: LossScale) -> TrainingError:
    """Returns what to say of a step whose loss or gradient is not finite, and cannot be skipped."""
    at, more = "", ""
    if config.amp != "O0":
        at = f", loss scale {scale.value:.10g}" + (", the least there is" if scale.dynamic and scale.value <= 1 else "")
        more = ", amp O0 (float32)" + ("" if scale.dynamic else ", a lower loss_scale or 0, which finds one")
    return TrainingError(
        f"step {step}: loss {loss}, gradient norm {norm}: not finite; lr {lr:.5g}{at}. "
        f"Checkpoints are as they were; a lower lr, a longer warm-up, a lower clip{more} may help"
    )


def _measure(state: RunState, parts: Parts, group: Group, verify: Verify | None, log: RunLog) -> None:
    """Has rank 0 verify the backbone, while the others wait."""
    if group.rank == 0 and verify is not None:
        found = verify(parts.measurable())
        parts.backbone.set_train()
        state.verification = {name: accuracy for name, (accuracy, _, _) in found.items()}
        state.thresholds = {name: threshold for name, (_, threshold, _) in found.items()}
        state.digests = {name: digest for name, (_, _, digest) in found.items()}
        log.write(state.step, {f"accuracy/{name}": value for name, value in state.verification.items()})
    group.barrier()

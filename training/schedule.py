"""The learning rate of every step, as a pure function of the step."""

from __future__ import annotations

import math

from training.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Returns the learning rate of a step.

    Args:
        config: the run's settings.
        step: 0-based, counted over all epochs.
        steps_per_epoch: steps in an epoch.

    During warm-up the rate grows linearly, from peak/warm-up steps at step 0 to the peak. After it, with x the part of
    the remaining steps that is done: polynomial peak * (1 - x)^power (arcface_torch's PolynomialLRWarmup is left at its
    default, power 1), cosine peak * (1 + cos(pi x)) / 2 (arXiv 1608.03983), multistep peak * gamma^(milestones passed).
    """
    peak = config.peak_lr()
    total = config.epochs * steps_per_epoch
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    if config.schedule == "polynomial":
        return peak * (1 - min(done, 1.0)) ** config.power
    if config.schedule == "cosine":
        return peak * (1 + math.cos(math.pi * min(done, 1.0))) / 2
    passed = sum(step >= milestone * steps_per_epoch for milestone in config.milestones)
    return peak * config.gamma**passed

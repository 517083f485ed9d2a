"""A backbone made ready for its device: the one place that knows the devices' quirks, and their order."""

from __future__ import annotations

import mindspore as ms
from mindspore import nn

from training.config import TrainConfig
from training.device.cpu import adapt_to_cpu
from training.device.distributed import Group
from training.device.sync_batch_norm import synchronise

CPU_BATCH = 16  # images that MindSpore takes together on a CPU: 128 of mbf take 16 GB, 16 are as fast and take 2


def prepare(backbone: nn.Cell, config: TrainConfig, group: Group) -> None:
    """Prepares a backbone to train; its parameters and their names stay.

    The order:

    0. Weights of a file are set before: they go by the cells' names, which the next step changes.
    1. Layers for a CPU. They are new cells, which would not have the precision that the old ones were given.
    2. Mixed precision. It knows by their classes the norms that stay float32, so these must still be MindSpore's own.
    3. Batch norm over all ranks, last: it computes in float32 whatever it is given.

    Args:
        backbone: as created, with its weights.
        config: of the run.
        group: the ranks, on their device.
    """
    if group.device == "CPU":
        adapt_to_cpu(backbone)
    if config.amp != "O0":
        ms.amp.auto_mixed_precision(backbone, config.amp)
    if config.sync_bn:
        synchronise(backbone, group)


def prepare_to_embed(backbone: nn.Cell) -> int:
    """Returns how many images to give a backbone at once (0: as many as come), after preparing it to embed.

    Args:
        backbone: with its weights; one that prepare() had stays as it is.
    """
    if ms.get_context("device_target") != "CPU":
        return 0
    adapt_to_cpu(backbone)
    return CPU_BATCH

"""A backbone made ready: every quirk, in an order in which none undoes another."""

from __future__ import annotations

import pytest
from mindspore import nn

from training.backbones.registry import create_backbone
from training.config import TrainConfig
from training.device.cpu import BandedConv2d, SteadyPReLU, UnfoldedConv2d
from training.device.distributed import Group
from training.device.prepare import prepare, prepare_to_embed
from training.device.sync_batch_norm import SyncBatchNorm

pytestmark = pytest.mark.numeric


class TwoRanks(Group):
    """A group of which only the numbers are asked."""

    def __init__(self, device="CPU"):
        self.rank, self.world, self.device = 0, 2, device


def kinds(cell):
    return [(name, type(layer)) for name, layer in cell.cells_and_names()]


def test_all_quirks_together():
    cell = create_backbone("mbf_narrow", 32)
    names = [parameter.name for parameter in cell.get_parameters()]
    norms = sum(isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) for _, layer in cell.cells_and_names())
    prepare(cell, TrainConfig(amp="O2", sync_bn=True), TwoRanks())
    found = [layer for _, layer in cell.cells_and_names()]
    adapted = [layer for layer in found if isinstance(layer, UnfoldedConv2d | BandedConv2d | SteadyPReLU)]
    assert {type(layer) for layer in adapted} == {UnfoldedConv2d, BandedConv2d, SteadyPReLU}
    assert all(layer.fp16 for layer in adapted)
    synchronised = [layer for layer in found if isinstance(layer, SyncBatchNorm)]
    assert len(synchronised) == norms
    assert all(layer.layer.fp32 and not getattr(layer, "fp16", False) for layer in synchronised)
    assert [parameter.name for parameter in cell.get_parameters()] == names


def test_a_plain_run_on_another_device_changes_nothing():
    cell = create_backbone("mbf_narrow", 32)
    before = kinds(cell)
    prepare(cell, TrainConfig(), TwoRanks("GPU"))
    assert kinds(cell) == before


def test_a_backbone_in_training_is_ready_to_embed():
    cell = create_backbone("mbf_narrow", 32)
    prepare(cell, TrainConfig(), Group())
    before = kinds(cell)
    assert prepare_to_embed(cell) == 16
    assert kinds(cell) == before

"""A backbone of few layers: what a run costs in tests is the compilation of its graphs.

The tests' own process is told of it (conftest.py); processes that they start find it as they find any other package's,
by the entry point in plugin/.
"""

from __future__ import annotations

import numpy as np
from mindspore import nn

from training.backbones.mobilefacenet import Gdc, MobileFaceNet, conv_block
from training.backbones.spec import Spec


def tiny_backbone(embedding_size: int, seed: int, recompute: bool) -> nn.Cell:
    """Returns a MobileFaceNet with one layer of each kind."""
    rng = np.random.default_rng(seed)
    return MobileFaceNet(
        [conv_block(rng, 3, 16, 16, 16)], conv_block(rng, 16, 32, 1), Gdc(rng, 32, 7, embedding_size), recompute
    )


TINY = Spec(tiny_backbone, "features.layers.3", values=(14_736, 36))  # in BACKBONES as mbf_tiny

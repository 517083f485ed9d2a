"""The margin against trigonometry in float64."""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
import pytest

from faceshards.errors import ConfigError
from training.head.margins.combined import Margin, TargetCosine

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize(
    "margin", [Margin.arcface(), Margin.cosface(), Margin(1, 0.3, 0.2), Margin(1.35, 0, 0), Margin(2, 0.1, 0.1)]
)
def test_target_is_cos_of_the_wider_angle(margin):
    theta = np.linspace(0.01, math.pi - 0.01, 200)
    got = TargetCosine(margin)(ms.Tensor(np.cos(theta).astype(np.float32))).asnumpy()
    np.testing.assert_allclose(got, np.cos(margin.m1 * theta + margin.m2) - margin.m3, atol=2e-6)


def test_constructors_are_the_papers():
    assert Margin.arcface() == Margin(1.0, 0.5, 0.0, 64.0, 0.0)
    assert Margin.cosface() == Margin(1.0, 0.0, 0.4, 64.0, 0.0)
    assert Margin.cosface(0.35, 30, 0.1) == Margin(1.0, 0.0, 0.35, 30, 0.1)


def test_ends_of_the_range_are_numbers():
    got = TargetCosine(Margin.arcface())(ms.Tensor([-1.0, 1.0], ms.float32)).asnumpy()
    np.testing.assert_allclose(got, [-math.cos(0.5), math.cos(0.5)], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("m1", 0.5),
        ("m2", -0.1),
        ("m2", 4),
        ("m3", -1),
        ("scale", 0),
        ("scale", math.nan),
        ("scale", "64"),
        ("m1", True),
    ],
)
def test_numbers_out_of_range_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"margin: {name} = "):
        Margin(**{name: value})


def test_threshold_out_of_range_is_refused():
    with pytest.raises(ConfigError, match="interclass_threshold"):
        Margin(interclass_threshold=1.5)

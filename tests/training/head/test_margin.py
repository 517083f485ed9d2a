"""The margin against trigonometry in float64."""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
import pytest

from faceshards.errors import ConfigError
from training.config import TrainConfig
from training.head.margins.adaface import AdaFaceMargin
from training.head.margins.combined import CombinedMargin
from training.head.margins.registry import MARGINS, make_margin
from training.head.margins.subcenter import SubCenterMargin

ARCFACE, COSFACE = CombinedMargin(1, 0.5, 0), CombinedMargin(1, 0, 0.4)

pytestmark = pytest.mark.numeric


def target(margin, cosines):
    """Returns the cosines after a margin that is outside the gradient."""
    t = ms.Tensor(cosines, ms.float32)
    found, slope = margin.target_cosine()(t, t)
    assert slope is None
    return found.asnumpy()


@pytest.mark.parametrize(
    "margin",
    [ARCFACE, COSFACE, CombinedMargin(1, 0.3, 0.2), CombinedMargin(1.35, 0, 0), CombinedMargin(2, 0.1, 0.1)],
)
def test_target_is_cos_of_the_wider_angle(margin):
    theta = np.linspace(0.01, math.pi - 0.01, 200)
    got = target(margin, np.cos(theta))
    np.testing.assert_allclose(
        got, np.cos(margin.m1 * theta + margin.m2) - margin.m3, atol=4e-6
    )  # 1 / sin(theta) times float32's rounding of the cosine


def test_the_margin_of_a_run_is_that_of_its_settings():
    config = TrainConfig(margin=(1.2, 0.3, 0.1), scale=30.0, interclass_threshold=0.2)
    want = CombinedMargin(m1=1.2, m2=0.3, m3=0.1, scale=30.0, interclass_threshold=0.2)
    assert make_margin(config) == MARGINS["combined"](config) == want
    assert make_margin(TrainConfig()) == ARCFACE
    with pytest.raises(ConfigError, match=r"margin: m1 = 0\.5 is not a number from 1 to 10"):
        make_margin(TrainConfig(margin=(0.5, 0.0, 0.0)))


def test_ends_of_the_range_are_numbers():
    got = target(ARCFACE, [-1.0, 1.0])
    np.testing.assert_allclose(got, [-math.cos(0.5), math.cos(0.5)], atol=1e-6)


def test_a_margin_by_name_has_its_papers_numbers_but_for_those_given():
    assert make_margin(TrainConfig(margin="combined")) == ARCFACE
    assert make_margin(TrainConfig(margin="adaface")) == AdaFaceMargin(0.4, 0.333, 64.0)
    config = TrainConfig(margin={"name": "adaface", "h": 0.5}, scale=32.0, interclass_threshold=0.2)
    assert make_margin(config) == AdaFaceMargin(0.4, 0.5, 32.0, 0.2)
    found = make_margin(TrainConfig(margin={"name": "subcenter", "m2": 0.0, "m3": 0.4, "k": 4.0}))
    assert (found, found.centers) == (SubCenterMargin(1, 0, 0.4, k=4), 4)


@pytest.mark.parametrize(
    ("margin", "message"),
    [
        ("arcface", r"'arcface' is not one of combined, adaface, subcenter, nor \[m1, m2, m3\] of combined"),
        ({"name": "adaface", "h": 0.0}, r"h = 0\.0 is not a number from 0\.001 to 10"),
        ({"name": "adaface", "m": -0.1}, r"m = -0\.1 is not a number from 0 to 1\.5708"),
        ({"name": "adaface", "h": "fast"}, "h = 'fast' is not a number"),
        ({"name": "adaface", "m3": 0.4}, "adaface has m, h, not 'm3'"),
        ({"name": "adaface", "scale": 30.0}, "adaface has m, h, not 'scale'; it is a setting of its own"),
        ({"name": "subcenter", "k": 1.0}, r"k = 1\.0 is not a whole number from 2 to 64"),
        ({"name": "subcenter", "k": 2.5}, r"k = 2\.5 is not a whole number from 2 to 64"),
    ],
)
def test_margins_that_cannot_be(margin, message):
    with pytest.raises(ConfigError, match=f"margin: {message}"):
        make_margin(TrainConfig(margin=margin))


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
        CombinedMargin(**{name: value})


def test_threshold_out_of_range_is_refused():
    with pytest.raises(ConfigError, match="interclass_threshold"):
        CombinedMargin(interclass_threshold=1.5)

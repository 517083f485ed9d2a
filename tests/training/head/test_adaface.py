"""AdaFace against float64, in the head and over many steps; a run goes on with it in test_mixed_precision."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops

from tests.training.head.adaface_problem import FACTOR, IMAGES, STEPS, WEIGHT, Training, worst
from tests.training.head.head_oracle import AdaFace
from training.device.distributed import Group
from training.head.margins.adaface import AdaFaceMargin

pytestmark = pytest.mark.numeric

SETTLED = {"mean": 20.0, "deviation": 3.0}  # at which lengths of 5 to 50 reach both ends of z


class Graph(nn.Cell):
    """The margin inside a graph, as the step uses it; with statistics that a run may come to."""

    def __init__(self, margin):
        super().__init__()
        self.target = margin.target_cosine()
        for name, value in SETTLED.items():
            ops.assign(getattr(self.target, name), ms.Tensor(value, ms.float32))

    @ms.jit
    def construct(self, t, lengths):
        return self.target(t, lengths)


@pytest.mark.parametrize("numbers", [{}, {"m": 0.5, "h": 1.0}, {"m": 0.0}])
def test_margin_and_slope_are_the_papers(numbers):
    rng = np.random.default_rng(0)
    lengths = np.concatenate([rng.uniform(5, 50, 396), [0, 1e-6, 300, 1e6]])
    t = rng.uniform(-0.998, 0.998, 400)
    # Near both ends the moved angle leaves its range, or the cosine its own.
    t[:12] = [1, -1, 0.9999, -0.9999, 0.9985, -0.9985, 0.98, -0.98, 0.97, -0.97, 0.95, -0.95]
    graph = Graph(AdaFaceMargin(**numbers))
    t, lengths = t.astype(np.float32), lengths.astype(np.float32)
    got, slope = (part.asnumpy()[:, 0] for part in graph(ms.Tensor(t[:, None]), ms.Tensor(lengths[:, None])))
    paper = AdaFace(**numbers, **SETTLED)
    margin = paper(lengths.astype(np.float64)[:, None])
    want, wanted_slope = np.array([margin(i, float(cosine)) for i, cosine in enumerate(t)]).T
    if numbers.get("m"):
        assert (wanted_slope == 0).sum() > 4
    assert {-1.0, 1.0} <= set(paper.z)
    np.testing.assert_allclose(got, want, atol=2e-6)
    np.testing.assert_allclose(slope, wanted_slope, atol=1e-4)  # 1 / sin(theta) is up to 22
    np.testing.assert_allclose(float(graph.target.mean.asnumpy()), paper.mean, rtol=1e-6)
    np.testing.assert_allclose(float(graph.target.deviation.asnumpy()), paper.deviation, rtol=1e-6)


def test_the_papers_slope_is_that_of_its_margin():
    """Central differences in float64; lengths count as constants."""
    margin = AdaFace(**SETTLED)(np.linspace(5, 50, 50)[:, None])
    for i, cosine in enumerate(np.linspace(-0.99, 0.99, 50)):
        (high, _), (low, _) = margin(i, cosine + 1e-6), margin(i, cosine - 1e-6)
        assert margin(i, cosine)[1] == pytest.approx((high - low) / 2e-6, abs=1e-7)


@pytest.mark.parametrize(("rate", "store"), [(1.0, "memory"), (0.5, "memory"), (0.5, "device")])
def test_two_hundred_steps_are_those_of_float64(rate, store):
    training = Training(Group(), rate, store)
    course = training.run(0, STEPS)
    assert np.mean([step[0] for step in course.steps[-20:]]) < 0.5 * course.steps[0][0]
    found = worst(training)
    assert max(found.values()) < FACTOR, found


def seen(*batches):
    """Returns the statistics of a run's begin after batches of images."""
    paper = AdaFace()
    for images in batches:
        paper(images.astype(np.float64) @ WEIGHT.T.astype(np.float64))
    return paper.mean, paper.deviation


def test_parts_of_a_batch_move_the_statistics_one_after_the_other():
    found = Training(Group(), accumulate=2).run(0, 1).steps[0][1:]
    assert found == pytest.approx(seen(*np.split(IMAGES[0], 2)), rel=1e-6)
    assert found != pytest.approx(seen(IMAGES[0]), rel=1e-3)


def test_a_step_that_is_skipped_has_seen_the_lengths():
    """As batch norm's moving averages have; weights and centres stay."""
    training = Training(Group(), amp="O2", loss_scale=0)
    training.step.scale.value = 2.0**40
    course = training.run(0, 1)
    assert training.step.scale.value == 2.0**39
    np.testing.assert_array_equal(course.weight, WEIGHT)
    assert course.steps[0][1:] == pytest.approx(seen(IMAGES[0]), rel=1e-4)  # float16 has 11 bits
    training.step.scale.value = 1024.0
    assert not np.array_equal(training.run(1, 2).weight, WEIGHT)


def test_a_batch_of_one_has_no_deviation():
    target = AdaFaceMargin().target_cosine()
    found = target(ms.Tensor([[0.5]], ms.float32), ms.Tensor([[3.0]], ms.float32))
    assert all(np.isfinite(part.asnumpy()).all() for part in found)
    assert float(target.deviation.asnumpy()) == pytest.approx(99)

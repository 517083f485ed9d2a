"""Slices, samples and the head: against properties, float64 and PyTorch's automatic differentiation."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import nn, ops

from faceshards.errors import ConfigError, FaceshardsError
from tests.training.head.head_oracle import head as oracle
from training.centers.class_centers import slice_of
from training.device.distributed import Group
from training.head.margins.combined import CombinedMargin
from training.head.margins.subcenter import SubCenterMargin
from training.head.partial_fc import Head
from training.head.sampling import LabelError, Sampler

pytestmark = pytest.mark.numeric


@given(st.integers(1, 9), st.integers(0, 1000))
def test_slices_cover_every_class_once(world, more):
    classes = world + more
    slices = [slice_of(rank, world, classes) for rank in range(world)]
    assert [i for start, count in slices for i in range(start, start + count)] == list(range(classes))
    assert [count for _, count in slices] == [classes // world + (rank < classes % world) for rank in range(world)]


@pytest.mark.parametrize(("rank", "world", "classes"), [(0, 3, 2), (2, 2, 10), (-1, 2, 10)])
def test_impossible_slices_are_refused(rank, world, classes):
    with pytest.raises(ConfigError):
        slice_of(rank, world, classes)


@st.composite
def cases(draw):
    count = draw(st.integers(1, 300))
    start = draw(st.integers(0, 50))
    rate = draw(st.one_of(st.just(1.0), st.floats(0.001, 1)))
    labels = draw(st.lists(st.integers(0, start + count + 50), min_size=1, max_size=40))
    return (
        start,
        count,
        rate,
        labels,
        draw(st.integers(0, 2**32)),
        draw(st.integers(0, 10**6)),
        draw(st.integers(0, 64)),
    )


@settings(max_examples=400, deadline=None)
@given(cases())
def test_sample_holds_the_positives_and_only_this_slice(case):
    start, count, rate, labels, seed, step, rank = case
    sampler = Sampler(start, count, rate, seed, rank)
    mine = {label for label in labels if start <= label < start + count}
    if len(mine) > sampler.size:
        with pytest.raises(ConfigError, match=f"{len(mine)} of this process's classes"):
            sampler.sample(np.array(labels), step)
        return
    ids, targets = sampler.sample(np.array(labels), step)
    assert ids.dtype == np.int64
    assert targets.dtype == np.int32
    assert len(ids) == sampler.size == (count if rate == 1 else max(1, int(rate * count)))
    assert (np.diff(ids) > 0).all()
    assert ids[0] >= start
    assert ids[-1] < start + count
    assert mine <= set(ids.tolist())
    for label, target in zip(labels, targets, strict=True):
        assert (ids[target] == label) if label in mine else (target == -1)
    again, _ = Sampler(start, count, rate, seed, rank).sample(np.array(labels), step)
    np.testing.assert_array_equal(ids, again)


@pytest.mark.parametrize("rate", [0.02, 0.3, 0.45, 0.7, 0.95])
def test_negatives_are_drawn_evenly(rate):
    sampler = Sampler(100, 200, rate, 5)
    seen = np.zeros(200)
    for step in range(2000):
        ids, _ = sampler.sample(np.array([103, 150]), step)
        seen[ids - 100] += 1
    assert (seen[[3, 50]] == 2000).all()
    share = (sampler.size - 2) / 198
    others = np.delete(seen, [3, 50])
    sigma = np.sqrt(2000 * share * (1 - share))
    assert abs(others - 2000 * share).max() < 4.5 * sigma
    assert 0.8 < others.std() / sigma < 1.2


def test_samples_differ_by_step_rank_and_seed():
    def draw(seed=1, step=2, rank=3):
        return tuple(Sampler(0, 1000, 0.05, seed, rank).sample(np.array([0]), step)[0])

    assert len({draw(), draw(seed=2), draw(step=3), draw(rank=4)}) == 4


def test_cost_follows_the_sample_not_the_classes(monkeypatch):
    sampler = Sampler(0, 10**12, 1e-10, 0)  # any array of one entry a class would not fit
    ids, targets = sampler.sample(np.array([10**12 - 1, 5]), 0)
    assert len(ids) == 100
    assert ids[targets].tolist() == [10**12 - 1, 5]


@pytest.mark.parametrize(("labels", "wrong"), [([3, -1], -1), ([3, 10], 10)])
def test_labels_that_are_no_class_are_named(labels, wrong):
    with pytest.raises(LabelError, match=rf"label {wrong} \(row 1 of the batch\)"):
        Sampler(0, 5, 1.0, 0, classes=10).sample(np.array(labels), 0)


@given(st.integers(1, 3000), st.floats(1e-3, 1), st.integers(1, 500))
def test_check_names_the_smallest_rate_that_works(count, rate, batch):
    sampler = Sampler(0, count, rate, 0)
    if sampler.size >= min(batch, count):
        sampler.check(batch)
        return
    with pytest.raises(ConfigError, match="smallest rate that works") as failure:
        sampler.check(batch)
    named = float(str(failure.value).rsplit(" ", 1)[1])
    Sampler(0, count, named, 0).check(batch)
    if named < 1:
        assert Sampler(0, count, max(named - 2e-6, 1e-9), 0).size < min(batch, count)


def test_a_rank_of_many_need_not_hold_a_whole_batch():
    classes, ranks, batch = 2_059_906, 64, 24_576  # arcface_torch's WebFace42M with a ViT
    start, count = slice_of(5, ranks, classes)
    sampler = Sampler(start, count, 0.3, 0, 5, classes)
    sampler.check(batch)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, (200, batch))
    most = np.count_nonzero((labels >= start) & (labels < start + count), axis=1).max()
    bound = 2 * batch / ranks
    assert most < bound < sampler.size
    with pytest.raises(ConfigError, match=r"smallest rate that works is 0\.03"):
        Sampler(start, count, 0.01, 0, 5, classes).check(batch)


@pytest.mark.parametrize("rate", [0, -0.1, 1.1, float("nan")])
def test_rates_out_of_range_are_refused(rate):
    with pytest.raises(FaceshardsError, match=r"sample rate .* is not above 0 and at most 1"):
        Sampler(0, 10, rate, 0)


MARGINS = {
    "arcface": CombinedMargin(1, 0.5, 0),
    "cosface": CombinedMargin(1, 0, 0.4),
    "plain": CombinedMargin(1, 0, 0, 30.0),
    "combined": CombinedMargin(1, 0.3, 0.2, 64.0),
    "sphere": CombinedMargin(1.2, 0.1, 0.1, 16.0),
    "filtered": CombinedMargin(1, 0.5, 0, 64.0, 0.1),
}


def problem(seed=0, batch=12, rows=40, dim=16):
    """Embeddings close to their centres, rows, targets; some embeddings almost opposite, one target absent."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(rows, dim)).astype(np.float32) * 0.01
    targets = rng.integers(0, rows, batch).astype(np.int32)
    x = (w[targets] * 60 + rng.normal(size=(batch, dim)) * 0.8).astype(np.float32)
    x[0] = -w[targets[0]] * 50
    x[1] = w[targets[1]] * 50
    return x, w, targets


class Graph(nn.Cell):
    """The head inside another graph, as the step uses it."""

    def __init__(self, margin):
        super().__init__()
        self.head = Head(Group(), margin)

    @ms.jit
    def construct(self, x, w, targets):
        return self.head(ops.stop_gradient(x), w, targets)


def run(margin, x, w, targets):
    return [part.asnumpy() for part in Graph(margin)(ms.Tensor(x), ms.Tensor(w), ms.Tensor(targets))]


@pytest.mark.parametrize("name", MARGINS)
def test_head_is_the_papers_in_float64(name):
    margin = MARGINS[name]
    x, w, targets = problem()
    want = oracle(x, w, targets, margin.m1, margin.m2, margin.m3, margin.scale, margin.interclass_threshold)
    got = run(margin, x, w, targets)
    assert got[0].shape == ()
    for mine, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=2e-5 * np.abs(theirs).max())


def test_sub_centres_are_the_papers_in_float64():
    margin = SubCenterMargin(1, 0.5, 0, 64.0, 0.3, k=3)
    x, w, targets = problem()
    rng = np.random.default_rng(7)
    w = np.concatenate([w, *(rng.normal(size=w.shape) * 0.01 for _ in range(2))], axis=1).astype(np.float32)  # (S, 3 D)
    want = oracle(x, w, targets, m2=0.5, scale=64.0, threshold=0.3, k=3)
    got = run(margin, x, w, targets)
    for mine, theirs in zip(got, want, strict=True):
        assert mine.shape == np.shape(theirs)
        np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=2e-5 * np.abs(theirs).max())
    # Three times the same centre is one centre, whichever of them a last bit makes the nearest.
    alone = run(CombinedMargin(1, 0.5, 0, 64.0, 0.3), x, w[:, :16], targets)
    same = run(margin, x, np.tile(w[:, :16], 3), targets)
    np.testing.assert_allclose(same[1], alone[1], rtol=1e-5, atol=1e-6)
    moved = same[2].reshape(len(w), 3, 16).sum(axis=1)
    np.testing.assert_allclose(moved, alone[2], rtol=1e-5, atol=1e-5 * np.abs(alone[2]).max())


def test_filter_takes_out_negatives_and_their_gradient():
    margin = CombinedMargin(1, 0.5, 0, 64.0, 0.1)
    x, w, targets = problem()
    cosine = (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (w / np.linalg.norm(w, axis=1, keepdims=True)).T
    cosine[np.arange(len(x)), targets] = 0
    assert (cosine > 0.1).sum() > 20
    assert not np.allclose(run(margin, x, w, targets)[2], run(CombinedMargin(1, 0.5, 0, 64.0), x, w, targets)[2])


def test_rows_without_length_give_numbers():
    x, w, targets = problem()
    w[7], x[5] = 0, 0
    assert all(np.isfinite(part).all() for part in run(CombinedMargin(1, 0.5, 0), x, w, targets))


def test_gradient_of_plain_softmax_is_the_losses_slope():
    """Without a margin the hand-written gradient is the derivative of the loss: central differences in float64."""
    x, w, targets = problem(batch=4, rows=6, dim=5)
    _, d_x, d_w = run(CombinedMargin(1, 0, 0, 8.0), x, w, targets)
    for array, gradient, size in ((x, d_x, 1e-4), (w, d_w, 1e-6)):
        for at in np.ndindex(array.shape):
            losses = []
            for sign in (1, -1):
                moved = {"x": x.astype(np.float64), "w": w.astype(np.float64)}
                moved["x" if array is x else "w"][at] += sign * size
                losses.append(oracle(moved["x"], moved["w"], targets, scale=8.0)[0])
            assert abs((losses[0] - losses[1]) / (2 * size) - gradient[at]) < 1e-4 * np.abs(gradient).max()


@pytest.mark.parametrize("name", ["arcface", "cosface", "filtered"])
def test_head_is_the_references_in_pytorch(name):
    torch = pytest.importorskip("torch")
    margin = MARGINS[name]
    x, w, targets = problem(seed=1)
    tx, tw = (torch.tensor(a, requires_grad=True) for a in (x, w))
    index = (torch.arange(len(x)), torch.tensor(targets, dtype=torch.long))
    logits = torch.nn.functional.linear(torch.nn.functional.normalize(tx), torch.nn.functional.normalize(tw))
    logits = logits.clamp(-1, 1)
    if margin.interclass_threshold > 0:
        with torch.no_grad():
            dirty = (logits > margin.interclass_threshold).float()
            dirty[index] = 0
        logits = (1 - dirty) * logits
    if margin.m3 == 0:
        with torch.no_grad():  # in place and outside the graph: the gradient passes as if nothing happened
            angle = logits[index].arccos() + margin.m2
            logits.data[index] = angle.cos()
    else:
        final = logits[index] - margin.m3
        logits = logits.index_put(index, final)
    loss = torch.nn.functional.cross_entropy(logits * margin.scale, index[1])
    loss.backward()
    got = run(margin, x, w, targets)
    for mine, theirs in zip(got, (loss.detach(), tx.grad, tw.grad), strict=True):
        theirs = theirs.numpy()
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5 * max(1e-3, np.abs(theirs).max()))

"""Which identities are held out, and their pairs: whatever the sizes of identities are."""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import KFold

from pipelines.split.plan import Request, SplitError, persons, plan

SIZES = st.lists(st.integers(1, 12), min_size=25, max_size=90)
LINKS = st.lists(st.tuples(st.integers(0, 24), st.integers(0, 24)), max_size=8)


def connected(count: int, links: list[tuple[int, int]]) -> list[set[int]]:
    """Returns the sets of identities that hang together, one by one."""
    found = [{one} for one in range(count)]
    for a, b in links:
        both = next(some for some in found if a in some) | next(some for some in found if b in some)
        found = [some for some in found if not some & both] + [both]
    return found


@given(SIZES, LINKS)
def test_what_hangs_together_is_one_person(sizes: list[int], links: list[tuple[int, int]]) -> None:
    a, b = np.array(links, np.int64).reshape(-1, 2).T
    person = persons(len(sizes), a, b).tolist()
    assert {frozenset(some) for some in connected(len(sizes), links)} == {
        frozenset(i for i, other in enumerate(person) if other == one) for one in person
    }


@settings(max_examples=60)
@given(SIZES, LINKS, st.integers(20, 80), st.integers(1, 8), st.integers(0, 1000))
def test_pairs_are_what_the_protocol_takes(
    sizes: list[int], links: list[tuple[int, int]], unseen: int, each: int, seed: int
) -> None:
    assume(unseen <= len(sizes) - 2)
    images, (a, b) = np.array(sizes), np.array(links, np.int64).reshape(-1, 2).T
    person = persons(len(sizes), a, b)
    request = Request(str(unseen), 20 * each, seed)
    try:
        found = plan(images, person, request)
    except SplitError as error:
        told = re.search(r"take --pairs (\d+)$", str(error))
        assume(told)  # refused: then as many as it says can be made
        found, each = plan(images, person, Request(str(unseen), int(told[1]), seed)), int(told[1]) // 20
    held, pairs = set(found.held.tolist()), 20 * each
    assert len(held) <= unseen
    # No person is held out by halves, and fewer are held out only where one more would be too many.
    rest = [len(some) for some in connected(len(sizes), links) if not some & held]
    assert all(some <= held or not some & held for some in connected(len(sizes), links))
    assert len(held) == unseen or len(held) + min(rest) > unseen
    assert found.label.shape == found.place.shape == (pairs, 2)
    assert ((found.place >= 0) & (found.place < images[found.label])).all()
    pictures = [
        frozenset(zip(labels, places, strict=True))
        for labels, places in zip(found.label.tolist(), found.place.tolist(), strict=True)
    ]
    assert all(len(pair) == 2 for pair in pictures)
    assert len(set(pictures)) == pairs
    who = person[found.label]
    assert (found.same == (found.label[:, 0] == found.label[:, 1])).all()
    assert (found.same == (who[:, 0] == who[:, 1])).all()  # an impostor is no one who may be the same person
    assert set(found.label.ravel().tolist()) <= held
    met: set[int] = set()
    for others, fold in KFold(10, shuffle=False).split(found.same):
        assert len(others) + len(fold) == pairs
        assert found.same[fold].tolist() == [True] * each + [False] * each
        here = set(who[fold].ravel().tolist())
        assert not here & met
        met |= here


def test_the_most_that_is_promised_is_the_most_there_is() -> None:
    # 20 persons of three pictures, two in a fold: 3 + 3 genuine pairs, 3 * 3 impostors.
    images = np.full(30, 3)
    with pytest.raises(SplitError, match=r"the 20 identities held out make at most 120 pairs in 10 folds, not 140"):
        plan(images, np.arange(30), Request("20", 140))
    found = plan(images, np.arange(30), Request("20", 120))
    genuine = Counter(tuple(sorted(pair)) for pair in found.place[found.same].tolist())
    assert found.possible == 120
    assert genuine == dict.fromkeys(combinations(range(3), 2), 20)


def test_identities_give_pairs_by_turns() -> None:
    images = np.array([200, *[4] * 59])
    found = plan(images, np.arange(60), Request("58", 580, seed=2))
    genuine = Counter(found.label[found.same, 0].tolist())
    assert len(genuine) == 58  # all of them, before one has many more than the others
    assert max(genuine.values()) <= 6
    impostors = Counter(found.label[~found.same].ravel().tolist())
    assert impostors[0] < 40  # its pictures are half of all in its fold


@pytest.mark.parametrize("unseen", ["0", "0%", "100%", "-5%", "5.5", "0.05", "five", "", "nan%", "1e2", "٥%", "5%%"])
def test_a_share_that_is_none_is_refused(unseen: str) -> None:
    with pytest.raises(SplitError, match=r"neither a share of the identities \(5%\) nor a number of them \(200\)"):
        Request(unseen)


@pytest.mark.parametrize(("unseen", "count"), [("5%", 18), ("0.1%", 1), (" 12.5 % ", 45), ("200", 200)])
def test_a_share_is_of_the_identities(unseen: str, count: int) -> None:
    assert Request(unseen).count(360) == count


@pytest.mark.parametrize("pairs", [-20, 0, 10, 6001])
def test_pairs_that_make_no_folds_are_refused(pairs: int) -> None:
    with pytest.raises(SplitError, match="take a multiple of 20, such as"):
        Request("5%", pairs)


@pytest.mark.parametrize(
    ("images", "unseen", "said"),
    [
        ([3] * 30, "29", "of 30 identities fewer than 2 would be left to train on"),
        ([3] * 30, "31", "of 30 identities fewer than 2 would be left to train on"),
        ([3] * 30, "19", "at most 0 pairs in 10 folds, not 20: 10 folds need 20 persons, and identities that share"),
        ([1] * 30, "25", "at most 0 pairs in 10 folds, not 20: a fold has no identity with two pictures"),
    ],
)
def test_too_few_people_are_refused(images: list[int], unseen: str, said: str) -> None:
    with pytest.raises(SplitError, match=said):
        plan(np.array(images), np.arange(len(images)), Request(unseen, 20))


def test_the_seed_decides_all_of_it() -> None:
    images, person = np.arange(2, 102), np.arange(100)
    one, same, other = (plan(images, person, Request("30%", 200, seed)) for seed in (1, 1, 2))
    for name in ("held", "label", "place"):
        assert (getattr(one, name) == getattr(same, name)).all()
        assert (getattr(one, name) != getattr(other, name)).any()

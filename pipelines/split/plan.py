"""Which identities are held out, and the pairs of their pictures: no file is read here.

The field's protocol cuts a set's pairs into ten runs of equal length (evaluation.protocol.verification.fold_of). A run
here has the pairs of persons that no other run has, the genuine ones first, as many of these as impostors.

Source of the layout: Huang et al., Labeled Faces in the Wild, 2007: ten sets of 300 matched and 300 mismatched pairs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from faceshards.errors import FaceshardsError

FOLDS = 10
STEP = 2 * FOLDS  # pairs: one genuine and one impostor in every fold
_CHOICE = 8  # possible impostor pairs for each that is wanted: then few of them share a picture


class SplitError(FaceshardsError):
    """A dataset cannot be split as it was asked for."""


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Args:
        unseen: identities to hold out, a share (``5%``) or a number (``200``).
        pairs: of the verification set.
        seed: decides which identities and pictures.

    Raises:
        SplitError: `unseen` is neither, or `pairs` are not ten folds of as many genuine ones as impostors.
    """

    unseen: str = "5%"
    pairs: int = 6000
    seed: int = 0

    def __post_init__(self) -> None:
        known = re.fullmatch(r"(\d{1,12})(?:(\.\d{1,12})?\s*%)?", self.unseen.strip(), re.ASCII)
        if not known or not 0 < self._number() < (100 if "%" in self.unseen else 1 << 31):
            raise SplitError(
                f"--unseen {self.unseen}: neither a share of the identities (5%) nor a number of them (200)"
            )
        if self.pairs < STEP or self.pairs % STEP:
            near = max(STEP, self.pairs // STEP * STEP)
            raise SplitError(
                f"--pairs {self.pairs}: {FOLDS} folds with as many genuine pairs as impostors take a multiple of "
                f"{STEP}, such as {near} or {near + STEP}"
            )

    def _number(self) -> Fraction:
        return Fraction(self.unseen.replace("%", "").strip())

    def count(self, identities: int) -> int:
        """Returns how many of so many identities are to be held out."""
        if "%" not in self.unseen:
            return int(self._number())
        return max(1, int(identities * self._number() / 100 + Fraction(1, 2)))


@dataclass(frozen=True)
class Plan:
    """What is held out, and its pairs.

    Args:
        held: (H,) int64 labels, ascending.
        label: (P, 2) int64 labels of each pair's pictures.
        place: (P, 2) int64 which of its identity's pictures each is, from 0.
        same: (P,) bool, whether a pair shows one person.
        possible: pairs that could have been made of these identities.
    """

    held: np.ndarray
    label: np.ndarray
    place: np.ndarray
    same: np.ndarray
    possible: int


def persons(count: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns (count,) int64, for each identity the least one that it hangs together with.

    Args:
        count: of identities.
        a: (L,) identities that are perhaps one person with those of `b`.
        b: (L,).
    """
    root = np.arange(count)
    while len(a):
        before = root.copy()
        np.minimum.at(root, a, root[b])
        np.minimum.at(root, b, root[a])
        root = root[root]
        if (root == before).all():
            break
    return root


def plan(images: np.ndarray, person: np.ndarray, request: Request) -> Plan:
    """Returns what to hold out, and the pairs: all by the seed.

    Identities that are perhaps one person are held out together, are in one fold, and make no impostor pair.

    Args:
        images: (C,) of each identity, at least 1.
        person: (C,) as `persons` says.
        request: what is asked for.

    Raises:
        SplitError: too few identities stay or are held out, or they do not make as many pairs; says how many they make.
    """
    rng = np.random.Generator(np.random.PCG64(request.seed))
    wanted = request.count(len(images))
    if len(images) - wanted < 2:
        raise SplitError(
            f"--unseen {request.unseen}: of {len(images):,} identities fewer than 2 would be left to train on"
        )
    held = _draw(person, wanted, rng)
    fold = _deal(images[held], person[held], rng)
    members = [held[fold == number] for number in range(FOLDS)]
    genuine = [int(_twos(images[some]).sum()) for some in members]
    impostors = [_across(_per_person(images[some], person[some])) for some in members]
    possible = STEP * min(*genuine, *impostors)
    if possible < request.pairs:
        few = f"hold out more, or take --pairs {possible}"
        if not min(genuine):
            few = "a fold has no identity with two pictures"
        if not min(impostors):
            few = f"{FOLDS} folds need {STEP} persons, and identities that share photographs count as one"
        raise SplitError(
            f"--unseen {request.unseen}: the {len(held):,} identities held out make at most {possible:,} pairs in "
            f"{FOLDS} folds, not {request.pairs:,}: {few}"
        )
    each = request.pairs // STEP
    found = []
    for some in members:
        found += [_genuine(some, images[some], each, rng), _impostors(some, images[some], person[some], each, rng)]
    pairs = np.concatenate(found)  # (P, 2, 2): label and place of both pictures
    return Plan(held, pairs[:, :, 0], pairs[:, :, 1], np.tile(np.repeat([True, False], each), FOLDS), possible)


def _draw(person: np.ndarray, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Returns labels to hold out, ascending: as many as are wanted, or fewer if the last persons have more labels."""
    _, who, sizes = np.unique(person, return_inverse=True, return_counts=True)
    taken = np.zeros(len(sizes), bool)
    for one in rng.permutation(len(sizes)).tolist():
        if sizes[one] <= wanted:
            taken[one] = True
            wanted -= int(sizes[one])
        if not wanted:
            break
    return np.flatnonzero(taken[who])


def _deal(images: np.ndarray, person: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns (H,) the fold of each identity: as many persons in each (±1), and about as many genuine pairs.

    Persons are dealt out in rounds of ten, those with the most pairs first; in a round the fold that has least so far
    gets the most.
    """
    _, who = np.unique(person, return_inverse=True)
    pairs = np.bincount(who, _twos(images)).astype(np.int64)
    mixed = rng.permutation(len(pairs))
    order = mixed[np.argsort(-pairs[mixed], kind="stable")]
    fold, load = np.empty(len(pairs), np.int64), np.zeros(FOLDS, np.int64)
    for first in range(0, len(order), FOLDS):
        some = order[first : first + FOLDS]
        fold[some] = to = np.argsort(load, kind="stable")[: len(some)]
        load[to] += pairs[some]
    return fold[who]


def _twos(images: np.ndarray) -> np.ndarray:
    """Returns how many pairs of different pictures each identity has."""
    return images.astype(np.int64) * (images.astype(np.int64) - 1) // 2


def _per_person(images: np.ndarray, person: np.ndarray) -> np.ndarray:
    """Returns the pictures of each person."""
    _, who = np.unique(person, return_inverse=True)
    return np.bincount(who, images).astype(np.int64) if len(who) else np.zeros(0, np.int64)


def _across(sizes: np.ndarray) -> int:
    """Returns how many pairs of pictures there are whose pictures lie in different groups of these sizes."""
    return (int(sizes.sum()) ** 2 - int((sizes**2).sum())) // 2


def _genuine(labels: np.ndarray, images: np.ndarray, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Returns (wanted, 2, 2) label and place of both pictures of pairs, taken from the identities by turns."""
    most = _twos(images)
    low, high = 0, int(most.max())
    while low < high:  # the most rounds in which every identity that has a pair left gives one
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(most, middle).sum() <= wanted else (low, middle - 1)
    share = np.minimum(most, low)
    more = rng.permutation(np.flatnonzero(most > low))[: wanted - int(share.sum())]
    share[more] += 1
    found = []
    for at in np.flatnonzero(share).tolist():
        number = rng.choice(int(most[at]), int(share[at]), replace=False)
        # Pair t = j (j - 1) / 2 + i is of the pictures i < j; the root is off by one at most where floats are rounded.
        second = ((1 + np.sqrt(1 + 8 * number)) / 2).astype(np.int64)
        second += (second * (second + 1) // 2 <= number).astype(np.int64) - (second * (second - 1) // 2 > number)
        first = number - second * (second - 1) // 2
        label = np.full(len(number), labels[at])
        found.append(np.stack([label, first, label, second], 1))
    return rng.permutation(np.concatenate(found)).reshape(-1, 2, 2)


def _impostors(
    labels: np.ndarray, images: np.ndarray, person: np.ndarray, wanted: int, rng: np.random.Generator
) -> np.ndarray:
    """Returns (wanted, 2, 2) label and place of both pictures of pairs of different persons, drawn evenly.

    No identity takes part with more pictures than are needed for a choice, so that large ones do not prevail.
    """
    owner = np.repeat(np.arange(len(labels)), images)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(images) - images, images)
    mixed = np.lexsort((rng.random(len(owner)), owner))
    turn = np.empty(len(owner), np.int64)
    turn[mixed] = place
    limit = 1
    while limit < images.max() and _across(_per_person(np.minimum(images, limit), person)) < _CHOICE * wanted:
        limit *= 2
    some = np.flatnonzero(turn < limit)
    some = some[np.argsort(person[owner[some]], kind="stable")]
    who = person[owner[some]]
    after = np.searchsorted(who, who, "right")  # (M,) the first picture of the next person
    ends = np.cumsum(len(some) - after)
    number = rng.choice(int(ends[-1]), wanted, replace=False)
    first = np.searchsorted(ends, number, "right")
    second = len(some) - (ends[first] - number)
    both = np.stack([some[first], some[second]], 1)
    return np.stack([labels[owner[both]], place[both]], 2)

"""Label spaces of several sources: which labels they share, and how they become one space."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.sources.base import Partition
from pipelines.sources.registry import identity_names

_TOLD = 8  # names in a message
_BETWEEN = ":"  # a file's name and a label that is its own


@dataclass(frozen=True)
class Space:
    """The labels of one source; those of one title are one set's, and mean the same people.

    Args:
        title: name of the source's set.
        labels: (n,) int32, ascending.
        names: of identities by label; None if labels are their own names.
    """

    title: str
    labels: np.ndarray
    names: Sequence[str] | None

    def texts(self) -> list[str]:
        """Returns label_original of each label, as the source says it."""
        labels = self.labels.tolist()
        return list(map(str, labels)) if self.names is None else [self.names[label] for label in labels]


def spaces(titles: Sequence[str], partitions: Sequence[Partition], labels: Sequence[np.ndarray]) -> list[Space]:
    """Returns the label space of each source.

    Args:
        titles: names of the sources' sets.
        partitions: of all sources.
        labels: of each source, int32, in any order; those below 0 are none.
    """
    return [
        Space(title, np.unique(own[own >= 0]), identity_names(part))
        for title, own, part in zip(titles, labels, _first(partitions), strict=True)
    ]


def overlap(spaces: Sequence[Space]) -> str:
    """Returns which sets share labels, how many, and what to do; "" if none do."""
    texts: dict[str, set[str]] = {}
    for space in spaces:
        texts.setdefault(space.title, set()).update(space.texts())
    counts = Counter(text for own in texts.values() for text in own)
    shared = {text for text, count in counts.items() if count > 1}
    if not shared:
        return ""
    titles = [title for title, own in texts.items() if not shared.isdisjoint(own)]
    few = ", ".join(sorted(shared, key=lambda text: (len(text), text))[:3]) + (", ..." if len(shared) > 3 else "")
    others = f" and {len(titles) - _TOLD} more" if len(titles) > _TOLD else ""
    return (
        f"{', '.join(titles[:_TOLD])}{others} share {len(shared)} label{'s' * (len(shared) != 1)} ({few}), and their "
        "people would be mixed; pass --set labels=shared if a label is one person in all of them, or --set "
        "labels=separate if each has labels of its own"
    )


def own_names(titles: Sequence[str], source: np.ndarray, original: pa.ChunkedArray) -> pa.Array:
    """Returns label_original of records whose label means something in its own set only: set:label.

    Args:
        titles: names of the sets of the build's files.
        source: (n,) int32, each record's file.
        original: (n,) as the files say it; null stays null.
    """
    return pc.binary_join_element_wise(pa.array(np.array(titles, object)[source], pa.string()), original, _BETWEEN)


def join(
    titles: Sequence[str], partitions: Sequence[Partition], labels: Sequence[np.ndarray], separate: bool
) -> Sequence[str] | None:
    """Returns the names of the identities by label, after making one label space of all; None: labels are the names.

    Args:
        titles: names of the sources' sets.
        partitions: of all sources.
        labels: of each source, int32 as it has them, -1 where there is none; changed in place.
        separate: a label means something in its own set only.
    """
    if not separate:
        all_names = [identity_names(part) for part in _first(partitions)]
        if len(titles) == 1 or all(names is None for names in all_names):
            return all_names[0]
    found = spaces(titles, partitions, labels)
    texts = [space.texts() for space in found]
    if separate:
        texts = [[f"{space.title}{_BETWEEN}{text}" for text in own] for space, own in zip(found, texts, strict=True)]
        names = list(dict.fromkeys(text for own in texts for text in own))
    else:
        names = sorted({text for own in texts for text in own})
    place = {name: i for i, name in enumerate(names)}
    for space, own, label in zip(found, texts, labels, strict=True):
        joint = np.array([place[text] for text in own], np.int32)
        there = label >= 0
        label[there] = joint[np.searchsorted(space.labels, label[there])]
    return names


def _first(partitions: Sequence[Partition]) -> list[Partition]:
    """Returns the first partition of each source."""
    return [part for part in partitions if part.start == 0]

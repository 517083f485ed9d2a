"""Compares two published datasets: which images, identities, labels, drops and settings of one the other has not.

An image is its sha256 under its label_original. Digests are compared whole, in buckets by their first bits, so that
what is sorted at a time fits into a processor's cache; a set of n images takes 40 n bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from faceshards.dataset.manifest import Manifest
from faceshards.files import differences

_BUCKETS = 256
_TABLES = ("images", "identities", "dropped")
_IMAGE = ["sid", "source", "key", "label_original", "sha256"]

Indices = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Images:
    """Which images differ, by their places in the tables `images` of A and B, ascending.

    Attributes:
        lost: (L,) int64 in A: images that B has not.
        gained: (G,) int64 in B: images that A has not.
        moved_a: (M,) int64 in A: images that B has under another label_original.
        moved_b: (M,) int64 in B: the same images there.
        same: number of images that both have under one label_original.
    """

    lost: Indices
    gained: Indices
    moved_a: Indices
    moved_b: Indices
    same: int


class Diff:
    """What differs between two datasets.

    Args:
        a: the dataset before.
        b: the dataset after.

    Attributes:
        about: settings, versions, sources and totals that differ: a list of {name, a, b} each.
        images: see Images.
        lists: small lists by name, as tables: identities_gained, identities_lost, relabelled, dropped_otherwise.

    Raises:
        ManifestError: a table of either is missing or damaged; before anything is compared.
    """

    def __init__(self, a: Manifest, b: Manifest) -> None:
        self.a, self.b = a, b
        for found in (a, b):
            for table in _TABLES:
                found.check_table(table)
        self.about = {
            "settings": _listed(a.info["config"], b.info["config"]),
            "versions": _listed(a.info.get("versions", {}), b.info.get("versions", {})),
            "sources": _listed(_sources(a), _sources(b)),
            "totals": _listed(_totals(a), _totals(b)),
        }
        identities = [_identities(found) for found in (a, b)]
        self.lists = {**_compare_identities(*identities), "dropped_otherwise": _dropped_otherwise(a, b)}
        self._names, codes = _joint_codes(*identities)
        self._codes = [_read(found, code) for found, code in zip((a, b), codes, strict=True)]
        self.images = _compare_images(*self._codes)
        self._codes = [(np.empty(0), labels) for _, labels in self._codes]  # digests are not needed any more

    @property
    def counts(self) -> dict[str, int]:
        """The number of rows of each list, and of images that are the same."""
        return {
            "images_same": self.images.same,
            "images_gained": len(self.images.gained),
            "images_lost": len(self.images.lost),
            "images_moved": len(self.images.moved_a),
            **{name: len(rows) for name, rows in self.lists.items()},
        }

    @property
    def differs(self) -> bool:
        """Whether anything does."""
        return any(self.about.values()) or any(n for name, n in self.counts.items() if name != "images_same")

    def rows(self, name: str, limit: int = 0) -> Iterator[pa.RecordBatch]:
        """Yields the rows of a list of `counts`, in the order of their table.

        Args:
            name: the list.
            limit: of rows; 0: all.
        """
        until = limit or None
        if name in self.lists:
            yield from self.lists[name].slice(0, until).to_batches()
        elif name == "images_moved":
            yield from self._moved(until)
        else:
            found, places = (self.b, self.images.gained) if name == "images_gained" else (self.a, self.images.lost)
            yield from _rows_at(found, _IMAGE, places[:until])

    def _moved(self, until: int | None) -> Iterator[pa.RecordBatch]:
        places, there = self.images.moved_a[:until], self.images.moved_b[:until]
        order = np.argsort(there)
        sids = np.empty(len(there), np.int64)
        done = 0
        for batch in _rows_at(self.b, ["sid"], there[order]):
            sids[order[done : done + len(batch)]] = batch.column(0).to_numpy()
            done += len(batch)
        done = 0
        for batch in _rows_at(self.a, ["sha256", "label_original", "sid"], places):
            here = there[done : done + len(batch)]
            label = self._names.take(pa.array(self._codes[1][1][here]))
            sid_b = pa.array(sids[done : done + len(batch)])
            done += len(batch)
            sha256, label_a, sid_a = batch.columns
            columns = {"sha256": sha256, "label_original_a": label_a, "label_original_b": label}
            yield pa.RecordBatch.from_pydict({**columns, "sid_a": sid_a, "sid_b": sid_b})


def _listed(before: dict[str, Any], now: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": entry.name, "a": entry.before, "b": entry.now} for entry in differences(before, now)]


def _sources(found: Manifest) -> dict[str, Any]:
    """Returns what dataset.json says of each source file, by its path."""
    return {str(entry["path"]): {k: v for k, v in entry.items() if k != "path"} for entry in found.info["sources"]}


def _totals(found: Manifest) -> dict[str, Any]:
    return {**{k: v for k, v in found.totals.items() if k != "dropped"}, **found.totals["dropped"]}


def _identities(found: Manifest) -> pa.Table:
    """Returns the identities with images: label, label_original, kept."""
    rows = found.table("identities", ["label", "label_original", "kept"])
    return rows.filter(pc.is_valid(rows["label"]))


def _compare_identities(a: pa.Table, b: pa.Table) -> dict[str, pa.Table]:
    """Returns identities with images in one set only, and those that have another number."""
    both = a.rename_columns(["label_a", "label_original", "kept_a"]).join(
        b.rename_columns(["label_b", "label_original", "kept_b"]), "label_original", join_type="inner"
    )
    both = both.filter(pc.not_equal(both["label_a"], both["label_b"])).sort_by("label_a")
    return {
        "identities_gained": b.join(a, "label_original", join_type="left anti").sort_by("label"),
        "identities_lost": a.join(b, "label_original", join_type="left anti").sort_by("label"),
        "relabelled": both.select(["label_original", "label_a", "label_b"]),
    }


def _dropped_otherwise(a: Manifest, b: Manifest) -> pa.Table:
    """Returns the records, by source and key, that both sets dropped, each for another reason."""
    columns = ["source", "key", "sid", "label_original", "reason"]
    before, now = a.table("dropped", columns), b.table("dropped", ["source", "key", "sid", "reason"])
    both = before.join(now, ["source", "key"], join_type="inner", left_suffix="_a", right_suffix="_b")
    both = both.filter(pc.not_equal(both["reason_a"], both["reason_b"])).sort_by("sid_a")
    return both.select(["source", "key", "label_original", "sid_a", "sid_b", "reason_a", "reason_b"])


def _joint_codes(a: pa.Table, b: pa.Table) -> tuple[pa.Array, list[np.ndarray]]:
    """Returns the names of all identities, and for each set the place in them of its labels, (C,) int32."""
    names = pa.chunked_array([*a["label_original"].chunks, *b["label_original"].chunks], pa.string())
    encoded = names.combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy().astype(np.int32)
    found = []
    for rows, part in ((a, codes[: len(a)]), (b, codes[len(a) :])):
        labels = rows["label"].to_numpy()
        by_label = np.full(labels.max(initial=-1) + 1, -1, np.int32)
        by_label[labels] = part
        found.append(by_label)
    return encoded.dictionary, found


def _read(found: Manifest, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the digests of a set's images, (n, 4) uint64, and their identities' codes, (n,) int32."""
    count = found.count("images")
    digests, identities = np.empty((count, 4), np.uint64), np.empty(count, np.int32)
    start = 0
    for batch in found.dataset("images").to_batches(columns=["sha256", "label"]):  # on all cores
        if not len(batch):
            continue
        column = batch.column(0)
        words = np.frombuffer(column.buffers()[1], np.uint64, 4 * len(batch), 32 * column.offset)
        stop = start + len(batch)
        digests[start:stop] = words.reshape(-1, 4)
        identities[start:stop] = codes[batch.column(1).to_numpy()]
        start = stop
    return digests, identities


def _compare_images(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> Images:
    """Returns which images differ; an image that a set holds n times is n images."""
    sorted_places = [_by_bucket(digests) for digests, _ in (a, b)]

    def compare(bucket: int) -> tuple[Indices, Indices, Indices, Indices, int]:
        here = [places[bounds[bucket] : bounds[bucket + 1]] for places, bounds in sorted_places]
        groups = _groups(a[0][here[0]], b[0][here[1]])
        codes = [identities[places] for (_, identities), places in zip((a, b), here, strict=True)]
        lost, gained, moved_a, moved_b, same = _match(groups, codes)
        return here[0][lost], here[1][gained], here[0][moved_a], here[1][moved_b], same

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy sorts without the interpreter's lock
        found = list(pool.map(compare, range(_BUCKETS)))
    lost, gained, moved_a, moved_b = (np.concatenate(parts) for parts in list(zip(*found, strict=True))[:4])
    order = np.argsort(moved_a)
    return Images(np.sort(lost), np.sort(gained), moved_a[order], moved_b[order], sum(part[4] for part in found))


def _by_bucket(digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the places of digests, bucket by bucket and ascending in each, and where each bucket begins."""
    bucket = (digests[:, 0] % _BUCKETS).astype(np.uint8)  # digests are random bits
    places = np.argsort(bucket, kind="stable").astype(np.uint32 if len(bucket) < 1 << 32 else np.int64)
    return places, np.concatenate([[0], np.cumsum(np.bincount(bucket, minlength=_BUCKETS))])


def _groups(a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
    """Returns for digests of A and of B, (n, 4) uint64, numbers that are equal where the digests are, (n,) int64."""
    digests = np.concatenate([a, b])
    order = np.argsort(np.ascontiguousarray(digests[:, 0]))
    steps = _steps(digests[order])
    if (steps[1] & ~steps[0]).any():  # equal in 64 bits and not in 256: two digests could lie interleaved
        order = np.lexsort(digests.T)
        steps = _steps(digests[order])
    numbers = np.zeros(len(digests), np.int64)
    numbers[order[1:]] = np.cumsum(steps[0] | steps[1])
    return [numbers[: len(a)], numbers[len(a) :]]


def _steps(ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each digest but the first whether its first word is not the one before's, and whether others are."""
    first, *others = (ordered[1:, word] != ordered[:-1, word] for word in range(4))
    return first, np.logical_or.reduce(others)


def _match(groups: list[np.ndarray], codes: list[np.ndarray]) -> tuple[Indices, Indices, Indices, Indices, int]:
    """Returns places of rows lost (in A), gained (in B) and moved (in A, in B), and how many rows are the same.

    Args:
        groups: of A and B: number of each row's digest.
        codes: of A and B: number of each row's identity.
    """
    size = max((int(part.max(initial=-1)) for part in groups), default=-1) + 1
    counts = [np.bincount(part, minlength=size) for part in groups]
    once = (counts[0] == 1) & (counts[1] == 1)  # nearly all: one image there and there
    at = np.zeros(size, np.int64)
    single_b = np.flatnonzero(once[groups[1]])
    at[groups[1][single_b]] = single_b
    single_a = np.flatnonzero(once[groups[0]])
    partner = at[groups[0][single_a]]
    equal = codes[0][single_a] == codes[1][partner]
    same, moved = int(equal.sum()), [(single_a[~equal], partner[~equal])]

    # Of one set only, or repeated: first under one identity each with each, then what is left.
    rest = [np.flatnonzero(~once[part]) for part in groups]
    for with_identity in (True, False):
        keys = [part[left] for part, left in zip(groups, rest, strict=True)]
        if with_identity:
            keys = [(key << 32) | code[left] for key, code, left in zip(keys, codes, rest, strict=True)]
        pairs = _pairs(*keys)
        if with_identity:
            same += len(pairs[0])
        else:
            moved.append((rest[0][pairs[0]], rest[1][pairs[1]]))
        rest = [np.delete(left, pair) for left, pair in zip(rest, pairs, strict=True)]
    moved_a, moved_b = (np.concatenate(parts) for parts in zip(*moved, strict=True))
    return rest[0], rest[1], moved_a, moved_b, same


def _pairs(a: np.ndarray, b: np.ndarray) -> tuple[Indices, Indices]:
    """Returns places in `a` and `b` of equal keys, the first with the first, the second with the second."""
    _, numbers = np.unique(np.concatenate([a, b]), return_inverse=True)
    ranked = [_ranked(part) for part in (numbers[: len(a)], numbers[len(a) :])]
    width = max((int(rank.max(initial=0)) for _, rank in ranked), default=0) + 1
    keys = [number * width + rank for number, rank in ranked]
    _, left, right = np.intersect1d(keys[0], keys[1], assume_unique=True, return_indices=True)
    return left, right


def _ranked(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns numbers, and for each how many equal ones precede it."""
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    first = np.searchsorted(ordered, ordered)
    rank = np.empty(len(numbers), np.int64)
    rank[order] = np.arange(len(numbers)) - first
    return numbers, rank


def _rows_at(found: Manifest, columns: list[str], places: Indices) -> Iterator[pa.RecordBatch]:
    """Yields rows of `images` by their places, ascending; stops reading after the last."""
    start = done = 0
    if not len(places):
        return
    for batch in found.batches("images", columns):
        stop = int(np.searchsorted(places, start + len(batch)))
        if stop > done:
            yield batch.take(pa.array(places[done:stop] - start))
            done = stop
            if done == len(places):
                return
        start += len(batch)

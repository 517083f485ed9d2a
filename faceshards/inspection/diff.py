"""Compares two published datasets: which images, identities, labels, drops and settings of one the other has not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from faceshards.dataset.find import rows_at
from faceshards.dataset.manifest import Manifest
from faceshards.files import differences
from faceshards.inspection.images import compare_images

_TABLES = ("images", "identities", "dropped")
_IMAGE = ["sid", "source", "key", "label_original", "sha256"]


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
        self.images = compare_images(*self._codes)
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
            yield from rows_at(found, "images", _IMAGE, places[:until])

    def _moved(self, until: int | None) -> Iterator[pa.RecordBatch]:
        places, there = self.images.moved_a[:until], self.images.moved_b[:until]
        order = np.argsort(there)
        sids = np.empty(len(there), np.int64)
        done = 0
        for batch in rows_at(self.b, "images", ["sid"], there[order]):
            sids[order[done : done + len(batch)]] = batch.column(0).to_numpy()
            done += len(batch)
        done = 0
        for batch in rows_at(self.a, "images", ["sha256", "label_original", "sid"], places):
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

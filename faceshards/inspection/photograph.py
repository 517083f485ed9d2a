"""One photograph of a dataset: found by sid, checksum or key; what stands for it, and what it stands for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from faceshards.dataset.find import Matches, find
from faceshards.dataset.manifest import Manifest
from faceshards.dataset.schema import SCHEMAS
from faceshards.errors import FaceshardsError, first_few

_PREFIX = 8  # least hex digits of a checksum's beginning


@dataclass(frozen=True)
class Photograph:
    """A scanned record, and its like.

    Args:
        table: where its row is: images, or dropped.
        row: of that table.
        stands: rows of what stands for it, in order: its representative, that one's, and so on; the last one may have
            been dropped as well, and is in `images` if not.
        kept_sid: sid of the image that stands for it in the shards, its own if it was kept; None if there is none.
        duplicates: rows of `dropped` that are the same photograph, by what stands for them; it and `stands` left out.
        conflicts: rows of `conflicts` that name it.
    """

    table: str
    row: dict[str, Any]
    stands: list[dict[str, Any]]
    kept_sid: int | None
    duplicates: pa.Table
    conflicts: pa.Table

    def lists(self) -> dict[str, pa.Table]:
        """Returns the tables of the photograph's like, by name."""
        return {"duplicates": self.duplicates, "conflicts": self.conflicts}


def photograph(manifest: Manifest, name: str) -> Photograph:
    """Returns a record by what a user calls it.

    Args:
        manifest: the dataset.
        name: a sid; or the first 8 or more hex digits of a kept image's sha256; or a key of the source, with "SOURCE:"
            before it where several have it, or where it is a number: a plain number is a sid.

    Raises:
        FaceshardsError: there is none, or more than one.
        ManifestError: a table is not what was published.
    """
    table, row = _named(manifest, name)
    stands, kept_sid = _stands(manifest, table, row)
    sid = row["sid"]
    known = np.array([sid, *(one["sid"] for one in stands)])
    where = (pc.field("sid_a") == sid) | (pc.field("sid_b") == sid)
    some = manifest.count("conflicts", where)  # reads two columns, and mostly there is none
    conflicts = manifest.table("conflicts", where=where) if some else SCHEMAS["conflicts"].empty_table()
    return Photograph(table, row, stands, kept_sid, _duplicates(manifest, known), conflicts)


def _named(manifest: Manifest, name: str) -> tuple[str, dict[str, Any]]:
    """Returns the table and the row that a name means."""
    scanned = manifest.totals["scanned"]
    if re.fullmatch(r"[0-9]{1,18}", name) and (int(name) < scanned or len(name) < _PREFIX):
        if found := _by_sid(manifest, int(name)):
            return found
        # Not taken for a key: keys are often sids plus 1, and who is one off should hear of it.
        raise FaceshardsError(
            f"{manifest.path}: no sid {int(name)}; they go from 0 to {scanned - 1}; a key that is a number has its "
            f"source before it, as SOURCE:{name}"
        )
    digits = name.lower()
    if re.fullmatch(rf"[0-9a-f]{{{_PREFIX},64}}", digits):
        rows = find(manifest, "images", "sha256", _begins(digits)).to_pylist()
        if rows:
            return "images", _only(
                manifest, rows, f"sha256 {name}", [f"{row['sha256'].hex()} (sid {row['sid']})" for row in rows]
            )
    if found := _by_key(manifest, name):
        return found
    raise FaceshardsError(
        f"{manifest.path}: '{name}' is no sid (0 to {scanned - 1}), no key, and no sha256 of a kept image (of it "
        f"{_PREFIX} digits or more)"
    )


def _by_sid(manifest: Manifest, sid: int) -> tuple[str, dict[str, Any]] | None:
    # First in the small one, which is sorted by sid: nearly all of it is passed over.
    if rows := manifest.table("dropped", where=pc.field("sid") == sid).to_pylist():
        return "dropped", rows[0]
    if rows := find(manifest, "images", "sid", _is(sid), unique=True).to_pylist():
        return "images", rows[0]
    return None


def _by_key(manifest: Manifest, name: str) -> tuple[str, dict[str, Any]] | None:
    """Returns the one record with a key, or with a source's name and a key."""
    wanted = {(source["name"], name) for source in manifest.info["sources"]}
    wanted |= {
        (source["name"], name[len(source["name"]) + 1 :])
        for source in manifest.info["sources"]
        if name.startswith(source["name"] + ":")
    }
    keys = pa.array(sorted({key for _, key in wanted}), pa.string())
    found = [
        (table, row)
        for table in ("dropped", "images")
        for row in find(manifest, table, "key", lambda values: _mask(pc.is_in(values, keys))).to_pylist()
        if (row["source"], row["key"]) in wanted
    ]
    if not found:
        return None
    places = [f"{row['source']}:{row['key']} (sid {row['sid']})" for _, row in found]
    rows = [row for _, row in found]
    chosen = _only(manifest, rows, f"key '{name}'", places)
    return next(one for one in found if one[1] is chosen)


def _only(manifest: Manifest, rows: list[dict[str, Any]], what: str, names: Sequence[str]) -> dict[str, Any]:
    """Returns the only one of some rows."""
    if len(rows) > 1:
        raise FaceshardsError(f"{manifest.path}: {what} means {len(rows)} records: {first_few(names)}")
    return rows[0]


def _stands(manifest: Manifest, table: str, row: dict[str, Any]) -> tuple[list[dict[str, Any]], int | None]:
    """Returns what stands for a record, and the sid of the image that stands for it in the shards."""
    chain: list[dict[str, Any]] = []
    met = {row["sid"]}
    while table == "dropped":
        sid = row["representative"]
        # Of two photographs in conflict each names the other, when both were dropped.
        if sid is None or sid in met or (found := _by_sid(manifest, sid)) is None:
            return chain, None
        table, row = found
        met.add(sid)
        chain.append(row)
    return chain, row["sid"]


def _duplicates(manifest: Manifest, known: npt.NDArray[np.int64]) -> pa.Table:
    """Returns the dropped records for which known ones (their sids) stand, themselves or through others, by sid."""
    met = new = known
    while len(new):
        # Lists: what Arrow's scanner still holds of NumPy's when the process ends needs an interpreter that is gone
        # (apache/arrow#36389).
        found = manifest.table("dropped", ["sid"], pc.field("representative").isin(new.tolist()))["sid"].to_numpy()
        new = np.setdiff1d(found, met)
        met = np.concatenate([met, new])
    if len(met) == len(known):
        return SCHEMAS["dropped"].empty_table()
    return manifest.table("dropped", where=pc.field("sid").isin(met[len(known) :].tolist())).sort_by("sid")


def _is(sid: int) -> Matches:
    return lambda values: values.to_numpy() == sid


def _begins(digits: str) -> Matches:
    """Returns what tells checksums by the hex digits they begin with."""
    low, high = (bytes.fromhex(digits.ljust(64, pad)) for pad in "0f")
    head = np.frombuffer(low[: _PREFIX // 2], np.uint32)[0]

    def matches(values: pa.Array) -> npt.NDArray[np.bool_]:
        words = np.frombuffer(values.buffers()[1], np.uint32).reshape(-1, 8)[
            values.offset : values.offset + len(values)
        ]
        found = words[:, 0] == head
        for at in np.flatnonzero(found).tolist():
            found[at] = low <= values[at].as_py() <= high
        return found

    return matches


def _mask(found: pa.BooleanArray) -> npt.NDArray[np.bool_]:
    return found.to_numpy(zero_copy_only=False)

"""Which records the page shows: contact sheets of a build's decisions, sampled by a seed.

Whole tables are looked at as columns of numbers only; rows are read of what was chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from faceshards.dataset.find import find, rows_at
from faceshards.dataset.manifest import Manifest
from faceshards.dataset.schema import DROP_REASONS
from faceshards.hashing import splitmix64

GROUPS = 24  # on a sheet
PEOPLE = 8  # the largest identities, and the smallest
_COPIES = 5  # beside the picture that stands for them
_FACES = 8  # of an identity
_SIDE = 3  # of a linked identity, with the photographs that link it

Row = dict[str, Any]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """Pictures in a row.

    Args:
        sids: of the records, in order.
        identity: label_original of whom they are; None: it is said elsewhere.
        kept: images of this identity in the dataset.
        left_out: how many more belong here.
    """

    sids: tuple[int, ...]
    identity: str | None = None
    kept: int = 0
    left_out: int = 0


@dataclass(frozen=True)
class Group:
    """Pictures that belong together.

    Args:
        kind: copies (of the first picture, of one identity), records (each says which identity it is of), or people.
        parts: one row or two.
        identity: label_original of whom they are; None: it is said elsewhere.
        notes: what is known of it as a whole, in words.
    """

    kind: str
    parts: tuple[Part, ...]
    identity: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sheet:
    """A contact sheet.

    Args:
        key: its name in the page's addresses.
        title: for people.
        about: what it shows.
        unit: what a group is, as a plural.
        total: number of such groups in the dataset.
        groups: those chosen, GROUPS at most.
        form: how wide a group is: narrow, middle or wide.
    """

    key: str
    title: str
    about: str
    unit: str
    total: int
    groups: list[Group]
    form: str


def choose(count: int, of: int, seed: int) -> Numbers:
    """Returns the places of `count` things sampled from 0..of - 1 without repetition, ascending, by a seed."""
    if of <= count:
        return np.arange(of)
    return np.sort(np.argsort(splitmix64(seed, 0, np.arange(of)), kind="stable")[:count])


def plan(found: Manifest, seed: int) -> list[Sheet]:
    """Returns the page's sheets; of what every build looks for there is one even if it found none.

    Raises:
        ManifestError: a table is missing or damaged.
    """
    links, link_total = _links(found, seed)
    people, people_total = _people(found, seed)
    sides = _identities(found, {link[f"label_original_{side}"] for link in links for side in "ab"})
    labels = {row["label"] for row in (*people[0], *people[1], *sides.values()) if row["label"] is not None}
    faces = _faces(found, labels, seed)
    sheets = [
        _copies(found, seed, mirrored=False),
        _copies(found, seed, mirrored=True),
        _conflicts(found, seed),
        Sheet(
            "links",
            "Linked identities",
            "Two identities that share photographs: perhaps one person under two names. Those with most photographs in "
            "common come first; of each side, what is shared and some of what was kept.",
            "pairs of identities",
            link_total,
            _link_groups(found, links, sides, faces),
            "wide",
        ),
        _test_pictures(found, seed),
        *(_filtered(found, seed, reason) for reason in found.reasons[len(DROP_REASONS) :]),
        *(
            Sheet(
                key,
                f"The {key} identities",
                f"By images kept, {_FACES} pictures of each at most.",
                "identities",
                people_total,
                [_person(row, faces) for row in rows],
                "wide",
            )
            for key, rows in zip(("largest", "smallest"), people, strict=True)
        ),
    ]
    return [sheet for sheet in sheets if sheet.groups or sheet.key in ("near-duplicates", "conflicts", "links")]


def records(found: Manifest, sheets: Iterable[Sheet]) -> dict[int, Row]:
    """Returns the rows of all records on some sheets by their sids; those of `dropped` have a reason."""
    sids = sorted({sid for sheet in sheets for group in sheet.groups for part in group.parts for sid in part.sids})
    if not sids:
        return {}
    rows = {row["sid"]: row for row in found.table("dropped", where=pc.field("sid").isin(sids)).to_pylist()}
    kept = np.setdiff1d(sids, list(rows))
    if len(kept):
        images = find(found, "images", "sid", lambda values: np.isin(values.to_numpy(), kept))
        rows |= {row["sid"]: row for row in images.to_pylist()}
    return rows


def _copies(found: Manifest, seed: int, mirrored: bool) -> Sheet:
    """Returns the sheet of near duplicates, or of mirrored ones, by what stands for them."""
    is_mirrored = pc.coalesce(pc.field("detail") == "mirrored", False)
    where = (pc.field("reason") == "near_duplicate") & (is_mirrored if mirrored else ~is_mirrored)
    rows = found.table("dropped", ["sid", "representative"], where).sort_by("sid")
    sids, stands = (rows[name].to_numpy() for name in ("sid", "representative"))
    distinct = np.unique(stands)
    groups = []
    for sid in distinct[choose(GROUPS, len(distinct), seed)].tolist():
        copies = sids[stands == sid].tolist()
        groups.append(Group("copies", (Part((sid, *copies[:_COPIES]), left_out=max(0, len(copies) - _COPIES)),)))
    what = "mirrored copies" if mirrored else "near duplicates"
    return Sheet(
        "mirrored" if mirrored else "near-duplicates",
        what.capitalize(),
        f"The picture that stands for them first, then its {what} of the same identity, dropped; with the distance of "
        f"their hashes in bits of 256{', to the mirror image' if mirrored else ''}.",
        f"photographs with {what}",
        len(distinct),
        groups,
        "middle",
    )


def _conflicts(found: Manifest, seed: int) -> Sheet:
    total = found.count("conflicts")
    groups = []
    for batch in rows_at(found, "conflicts", None, choose(GROUPS, total, seed)):
        for row in batch.to_pylist():
            notes = (
                bits(row["distance"]),
                *(["the same bytes"] if row["exact"] else []),
                *(["mirrored"] if row["mirrored"] else []),
            )
            groups.append(Group("records", (Part((row["sid_a"], row["sid_b"])),), notes=notes))
    return Sheet(
        "conflicts",
        "Label conflicts",
        "One photograph under two identities, and what became of either copy.",
        "pairs of photographs",
        total,
        groups,
        "middle",
    )


def _test_pictures(found: Manifest, seed: int) -> Sheet:
    about = "Records that are pictures of the verification sets which were to be kept out, dropped."
    return _dropped(found, seed, "test_overlap", "test-pictures", "Test pictures", about)


def _filtered(found: Manifest, seed: int, reason: str) -> Sheet:
    about = "Records that a filter has sorted out, with what it measured and its threshold."
    return _dropped(found, seed, reason, f"filter-{reason}", f"Sorted out: {reason}", about)


def _dropped(found: Manifest, seed: int, reason: str, key: str, title: str, about: str) -> Sheet:
    """Returns the sheet of the records that were dropped for a reason."""
    sids = np.sort(found.table("dropped", ["sid"], pc.field("reason") == reason)["sid"].to_numpy())
    groups = [Group("records", (Part((sid,)),)) for sid in sids[choose(GROUPS, len(sids), seed)].tolist()]
    return Sheet(key, title, about, "records", len(sids), groups, "narrow")


def _links(found: Manifest, seed: int) -> tuple[list[Row], int]:
    """Returns the strongest links, those of most photographs, and how many there are; the seed decides among equals."""
    photographs = found.table("identity_links", ["photographs"])["photographs"].to_numpy()
    order = _ordered(-photographs, seed)[: GROUPS // 2]
    rows = [row for batch in rows_at(found, "identity_links", None, np.sort(order)) for row in batch.to_pylist()]
    return sorted(rows, key=lambda row: -row["photographs"]), len(photographs)


def _ordered(values: Numbers, seed: int) -> Numbers:
    """Returns the places of values in ascending order, equals by the seed."""
    return np.lexsort((splitmix64(seed, 0, np.arange(len(values))), values))


def _people(found: Manifest, seed: int) -> tuple[tuple[list[Row], list[Row]], int]:
    """Returns the rows of the largest and the smallest identities with images, and how many such there are."""
    table = found.table("identities", ["label", "kept"])
    table = table.filter(pc.field("kept") > 0)
    labels, kept = table["label"].to_numpy(), table["kept"].to_numpy()
    largest = labels[_ordered(-kept, seed)[:PEOPLE]].tolist()
    smallest = [label for label in labels[_ordered(kept, seed)[: 2 * PEOPLE]].tolist() if label not in largest][:PEOPLE]
    chosen = found.table("identities", where=pc.field("label").isin([*largest, *smallest]))
    by_label = {row["label"]: row for row in chosen.to_pylist()}
    return ([by_label[label] for label in largest], [by_label[label] for label in smallest]), len(labels)


def _identities(found: Manifest, names: set[str]) -> dict[str, Row]:
    """Returns rows of `identities` by label_original."""
    if not names:
        return {}
    rows = found.table("identities", where=pc.field("label_original").isin(sorted(names)))
    return {row["label_original"]: row for row in rows.to_pylist()}


def _faces(found: Manifest, labels: set[int], seed: int) -> dict[int, tuple[int, ...]]:
    """Returns sids of some images of each label."""
    if not labels:
        return {}
    where = pc.field("label").isin(sorted(labels))
    rows = found.dataset("images").to_table(columns=["label", "sid"], filter=where)
    of, sids = rows["label"].to_numpy(), rows["sid"].to_numpy()
    order = np.lexsort((sids, of))
    of, sids = of[order], sids[order]
    chosen = {}
    for label in labels:
        own = sids[np.searchsorted(of, label) : np.searchsorted(of, label, "right")]
        chosen[label] = tuple(own[choose(_FACES, len(own), seed)].tolist())
    return chosen


def _person(row: Row, faces: dict[int, tuple[int, ...]]) -> Group:
    shown = faces[row["label"]]
    part = Part(shown, left_out=row["kept"] - len(shown))
    counts = (f"{row['kept']:,} kept", f"{row['scanned'] - row['kept']:,} dropped")
    return Group("people", (part,), row["label_original"], counts)


def _link_groups(
    found: Manifest, links: Sequence[Row], sides: dict[str, Row], faces: dict[int, tuple[int, ...]]
) -> list[Group]:
    if not links:
        return []
    names = ["label_original_a", "label_original_b"]
    where = pc.field(names[0]).isin(sorted({link[names[0]] for link in links}))
    where &= pc.field(names[1]).isin(sorted({link[names[1]] for link in links}))
    shared = found.table("conflicts", [*names, "sid_a", "sid_b", "distance"], where)
    groups = []
    for link in links:
        own = shared.filter((pc.field(names[0]) == link[names[0]]) & (pc.field(names[1]) == link[names[1]]))
        nearest = own.sort_by([("distance", "ascending"), ("sid_a", "ascending")]).slice(0, 1).to_pylist()
        parts = []
        for side in "ab":
            name = link[f"label_original_{side}"]
            person = sides.get(name, {"label": None, "kept": 0})
            first = [row[f"sid_{side}"] for row in nearest]
            more = [sid for sid in faces.get(person["label"], ()) if sid not in first][:_SIDE]
            parts.append(Part((*first, *more), name, person["kept"]))
        count = link["photographs"]
        notes = (f"{count:,} shared photograph{'s' if count > 1 else ''}", f"nearest {bits(link['distance'])}")
        groups.append(Group("people", tuple(parts), notes=notes))
    return groups


def bits(distance: int) -> str:
    """Returns a distance between hashes in words."""
    return f"{distance} bit{'' if distance == 1 else 's'}"

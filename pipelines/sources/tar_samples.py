"""The samples of a .tar, by WebDataset's rule: members whose names are equal up to the first dot of the last part are
one sample, and the rest of a name is its suffix. Their order does not matter.

Source: https://github.com/webdataset/webdataset, base_plus_ext in tariterators.py; img2dataset writes the same.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from faceshards.dataset.schema import CODE
from faceshards.errors import first_few
from faceshards.formats.tar import Member, Tar
from faceshards.reading import open_file
from faceshards.storage.location import Location
from pipelines.records import MAX_LABEL
from pipelines.sources.base import MAX_ENCODED
from pipelines.sources.leftovers import IMAGE_SUFFIXES, is_leftover
from pipelines.sources.tar_labels import FORMS, Label

LISTING = pa.schema(
    [
        pa.field("offset", pa.int64(), False),  # of the image's first header; of the sample, or damage, without one
        pa.field("header", pa.int64(), False),  # bytes between it and the image
        pa.field("size", pa.int64(), False),  # of the image
        pa.field("key", pa.string(), False),  # name of the image's member, alone in the file
        pa.field("label", pa.int32(), False),  # -1 if there is none
        pa.field("label_original", pa.string()),
        pa.field("reason", pa.uint8(), False),  # CODE
        pa.field("detail", pa.string()),
    ]
)
"""The rows of a .tar, in order of offset: its images, what is damaged, and samples without an image."""

_IMAGES = pa.schema(
    [
        *(pa.field(name, pa.int64()) for name in ("offset", "header", "size")),
        *(pa.field(name, pa.string()) for name in ("sample", "key")),
        *(pa.field("reason", pa.uint8()), pa.field("detail", pa.string())),
    ]
)
_OTHERS = pa.schema(
    [
        *(pa.field("offset", pa.int64()), pa.field("rank", pa.int8())),
        *(pa.field(name, pa.string()) for name in ("sample", "suffix", "text", "problem")),
    ]
)
_SPILLED = 1 << 16  # rows held as Python's objects
_NAME = re.compile(r"((?:.*/|)[^./]+)\.([^/]*)", re.DOTALL)
_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
_NO_LABEL = "no label: its sample has neither a .cls nor a .json"
_FORMS = [*FORMS]
_TOLD = 6  # names in a warning


class _Table:
    """Rows of a table as they are met."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema, self._held, self._spilled = schema, [], []  # type: ignore[var-annotated]

    def add(self, *row: Any) -> None:
        self._held.append(row)
        if len(self._held) == _SPILLED:
            self._spill()

    def _spill(self) -> None:
        columns = zip(*self._held, strict=True) if self._held else [[]] * len(self._schema)
        arrays = [pa.array(list(column), field.type) for column, field in zip(columns, self._schema, strict=True)]
        self._spilled.append(pa.record_batch(arrays, schema=self._schema))
        self._held = []

    def table(self) -> pa.Table:
        self._spill()
        return pa.Table.from_batches(self._spilled, self._schema).combine_chunks()


def listing(path: Location) -> tuple[pa.Table, list[str]]:
    """Returns the rows of a .tar, LISTING, and warnings about what is left aside.

    Labels that are whole numbers up to MAX_LABEL throughout stay what they are; others are places among the sorted
    names, until the balance renumbers them.

    Raises:
        OSError: the file cannot be read.
    """
    with open_file(path) as file:
        walk = _Walk(Tar(file))
        walk.run()
    warnings = [f"{path}: {line}" for line in walk.told()]
    rows = _with_numbers(_with_distinct_keys(_rows(walk.images.table(), walk.others.table())))
    return rows.select(LISTING.names).cast(LISTING), warnings


class _Walk:
    """One pass over the members of a .tar: its images, and what else belongs to samples."""

    def __init__(self, tar: Tar) -> None:
        self.images, self.others = _Table(_IMAGES), _Table(_OTHERS)
        self._tar = tar
        self._aside: Counter[str] = Counter()
        self._archives = self._members = self._behind = 0

    def run(self) -> None:
        """Meets every member."""
        for member in self._tar.members():
            self._members += 1
            self._behind += member.archive > 0
            self._archives = member.archive
            if member.damage:
                self.images.add(member.offset, 0, 0, "", f"@{member.offset}", CODE["damaged"], member.damage)
            elif member.kind != "a folder":
                self._take(member)

    def _take(self, member: Member) -> None:
        name = member.name
        found = _NAME.fullmatch(name)
        if found is None or any(is_leftover(part) for part in name.split("/") if part not in (".", "..")):
            self._aside["._*" if os.path.basename(name).startswith("._") else os.path.basename(name)] += 1
            return
        # Archives joined by cat each have samples of their own, mostly numbered alike.
        sample = found[1] + f"\0{member.archive}" * (member.archive > 0)
        suffix = found[2].lower()
        if f".{suffix}" in IMAGE_SUFFIXES:
            reason, detail = _unreadable(member)
            header, size = member.data - member.offset, 0 if member.kind else member.size
            self.images.add(member.offset, header, size, sample, name, CODE[reason], detail)
            return
        label = self._label(member, suffix)
        rank = _FORMS.index(suffix) if suffix in FORMS else len(FORMS)
        self.others.add(member.offset, rank, sample, suffix, label.text, label.problem)

    def _label(self, member: Member, suffix: str) -> Label:
        if suffix not in FORMS:
            return Label(None, None)
        if member.kind:
            return Label(None, f"its .{suffix} is {member.kind}")
        if member.size > FORMS[suffix].limit:
            return Label(None, f"its .{suffix} is of {member.size} bytes, more than {FORMS[suffix].limit}")
        return FORMS[suffix].read(self._tar.read(member.data, member.size))

    def told(self) -> list[str]:
        """Returns what to say after the path."""
        lines = []
        if self._aside:
            each = ", ".join(f"{name!r} x {count}" for name, count in self._aside.most_common(_TOLD))
            more = f" and {len(self._aside) - _TOLD} other names" if len(self._aside) > _TOLD else ""
            lines.append(f"{self._aside.total()} members that belong to no sample are left aside: {each}{more}")
        if self._behind:
            lines.append(
                f"{self._behind} of {self._members} members lie behind the end of an archive (joined by cat?), where "
                "most readers stop; they are read, as samples of their own"
            )
        if not self._tar.ended:
            lines.append("has no end behind its last member: it may have been cut")
        return lines


def _unreadable(member: Member) -> tuple[str, str | None]:
    """Returns why an image is not read, reason and detail; "kept" and None if it is."""
    if _escapes(member.name):
        return "undecodable", "not read: its name leads out of the archive"
    if member.kind:
        return "undecodable", f"not read: it is {member.kind}"
    if member.size > MAX_ENCODED:
        return "too_large", f"{member.size} encoded bytes are more than {MAX_ENCODED}"
    return "kept", None


def _escapes(name: str) -> bool:
    """Returns whether a name would lead out of the folder that an archive is unpacked into."""
    return name.startswith("/") or ".." in name.split("/")


def _rows(images: pa.Table, others: pa.Table) -> pa.Table:
    """Returns the rows of a .tar, by offset; `key` may name several, and `label` is missing."""
    both = pa.chunked_array([*images["sample"].chunks, *others["sample"].chunks], pa.string()).dictionary_encode()
    codes = np.concatenate([np.zeros(0, np.int32), *(chunk.indices.to_numpy() for chunk in both.chunks)])
    image, other = codes[: len(images)], codes[len(images) :]
    # By sample, then the form that goes first, then place.
    order = np.lexsort((others["offset"].to_numpy(), others["rank"].to_numpy(), other))
    others, other = others.take(pa.array(order)), other[order]
    begins = np.flatnonzero(np.diff(other, prepend=-1))
    labels = _labels(others, other, begins)
    at = np.searchsorted(other[begins], image)
    found = np.isin(image, other[begins])
    of_images = labels.take(pa.array(np.where(found, at, 0), mask=~found))
    rows = [_with_labels(images, image, of_images), _without_image(others, other, begins, labels, image)]
    return pa.concat_tables(rows).sort_by("offset")


def _labels(others: pa.Table, sample: np.ndarray, begins: np.ndarray) -> pa.Table:
    """Returns text and problem of the label of each sample.

    Args:
        others: members that are no images, by sample, rank and offset.
        sample: number of the sample of each.
        begins: (S,) where each sample begins.
    """
    first = begins[np.searchsorted(begins, np.arange(len(sample)), "right") - 1]
    rank = others["rank"].to_numpy()
    text = np.array(others["text"].combine_chunks().dictionary_encode().indices.fill_null(-1))
    # What else is in the form of the first, and differs from it: few, if any.
    clash = np.flatnonzero((rank == rank[first]) & (rank < len(FORMS)) & (text != text[first]))
    labels = others.select(["text", "problem"]).take(pa.array(begins))
    if len(clash):
        problems = labels["problem"].to_pylist()
        for at in np.searchsorted(begins, clash, "right") - 1:
            problems[at] = problems[at] or f"its sample has labels that differ, {labels['text'][at]} among them"
        labels = labels.set_column(1, "problem", pa.array(problems, pa.string()))
    return labels


def _with_labels(images: pa.Table, sample: np.ndarray, labels: pa.Table) -> pa.Table:
    """Returns rows of images, the label of each beside it; of the images of one sample, one stands."""
    reason = images["reason"].to_numpy().copy()
    detail = np.array(images["detail"].to_pylist(), object)
    text, problem = labels["text"].combine_chunks(), labels["problem"].combine_chunks()
    order = np.lexsort((images["offset"].to_numpy(), reason != 0, sample))
    again = order[1:][np.diff(sample[order]) == 0]
    for row in again[reason[again] == 0].tolist():
        reason[row], detail[row] = CODE["undecodable"], "not read: its sample has another image before it"
    lacking = (reason == 0) & (np.array(text.is_null()) | np.array(problem.is_valid()))
    for row in np.flatnonzero(lacking).tolist():
        reason[row], detail[row] = CODE["bad_label"], problem[row].as_py() or _NO_LABEL
    text = pc.if_else(pa.array(reason == CODE["damaged"]), pa.scalar(None, pa.string()), text)
    sound = np.array(text.is_valid()) & np.array(problem.is_null())
    return pa.table(
        {
            **{name: images[name] for name in ("offset", "header", "size", "key")},
            **{"label_original": text, "reason": pa.array(reason), "detail": pa.array(detail, pa.string())},
            "named": pa.array(sound),
        }
    )


def _without_image(
    others: pa.Table, sample: np.ndarray, begins: np.ndarray, labels: pa.Table, image: np.ndarray
) -> pa.Table:
    """Returns a row for each sample that has no image, likewise."""
    lone = np.flatnonzero(~np.isin(sample[begins], image))
    ends = np.append(begins[1:], len(sample))
    offsets, keys, details = [], [], []
    for at in lone.tolist():
        members = others.slice(begins[at], ends[at] - begins[at])
        offsets.append(pc.min(members["offset"]).as_py())
        keys.append(members["sample"][0].as_py().split("\0")[0])
        suffixes = first_few(f".{suffix}" for suffix in members["suffix"].to_pylist())
        details.append(f"no image: of {', '.join(IMAGE_SUFFIXES)} it has none, but {suffixes}")
    labels = labels.take(pa.array(lone, pa.int64()))
    zeros = pa.array(np.zeros(len(lone), np.int64))
    return pa.table(
        {
            **{"offset": pa.array(offsets, pa.int64()), "header": zeros, "size": zeros},
            **{"key": pa.array(keys, pa.string()), "label_original": labels["text"]},
            "reason": pa.array(np.full(len(lone), CODE["undecodable"], np.uint8)),
            **{
                "detail": pa.array(details, pa.string()),
                "named": pc.and_(labels["text"].is_valid(), labels["problem"].is_null()),
            },
        }
    )


def _with_distinct_keys(rows: pa.Table) -> pa.Table:
    """Returns the rows; those whose key an earlier one has get the place of theirs behind it."""
    codes = rows["key"].combine_chunks().dictionary_encode().indices.to_numpy()
    again = np.ones(len(rows), bool)
    again[np.unique(codes, return_index=True)[1]] = False
    if not again.any():
        return rows
    places = pc.binary_join_element_wise(rows["key"], rows["offset"].cast(pa.string()), "@")
    keys = pc.if_else(pa.array(again), places, rows["key"])
    return rows.set_column(rows.column_names.index("key"), "key", keys)


def _with_numbers(rows: pa.Table) -> pa.Table:
    """Returns the rows with a label for each that is named: the number that its name is, or its name's place."""
    named = pc.if_else(rows["named"], rows["label_original"], pa.scalar(None, pa.string()))
    coded = named.combine_chunks().dictionary_encode()
    names = coded.dictionary.to_pylist()
    if is_numbered(names):
        values = np.array([*map(int, names)], np.int32)
    else:
        place = {name: at for at, name in enumerate(sorted(names))}
        values = np.array([place[name] for name in names], np.int32)
    label = np.append(values, np.int32(-1))[np.array(coded.indices.fill_null(len(names)))]
    return rows.drop_columns(["named"]).append_column("label", pa.array(label))


def is_numbered(names: Sequence[str]) -> bool:
    """Returns whether all names of identities are numbers that a label can be."""
    return all(_NUMBER.fullmatch(name) and int(name) <= MAX_LABEL for name in names)

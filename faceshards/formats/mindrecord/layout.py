"""The bytes of a MindRecord 3.0 shard: pages, header and rows of one blob ``image``, ``label`` int32, ``sid`` int64.

A shard is a data file and its index, the SQLite file ``<data file>.db``. The data file is::

    u64 length | JSON header | zeros up to header_size | page 0 | page 1 | ... | last page, cut after its last byte

Every page owns page_size bytes. A blob page holds ``u64 length | image`` for each of its rows; those rows are one row
group. A raw page holds ``u64 length | msgpack map`` for each row of one or more whole row groups. All integers outside
msgpack are little-endian. The blob pages come first, which is how MindSpore's FileWriter lays out rows that it gets in
a single call; given equal page and header sizes the data file has the same bytes (shown in the tests).

Only ``label`` is indexed: FileWriter always indexes a field, MindDataset's PKSampler wants this one, and its .db is the
smallest FileWriter can make (49 bytes a row; sid 52, both 58; measured on 100,000 rows). Ours is WITHOUT ROWID: the
same table sorted by its primary key, where FileWriter's has an index beside it that repeats the key. 34 bytes a row.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise, repeat

import numpy as np

from faceshards.formats.json_files import parse_json

PAGE_SIZES = range(1 << 15, (1 << 28) + 1, 4)  # bytes; what MindSpore takes: 32 KiB..256 MiB, multiples of 4
HEADER_SIZES = tuple(1 << bits for bits in range(14, 28))  # bytes; MindSpore takes 16 KiB..128 MiB
RAW_FIXED = 19  # bytes of a framed raw row without its two integers: u64, 0x82, "label" and "sid" with a byte each

SCHEMA = {"image": {"type": "bytes"}, "label": {"type": "int32"}, "sid": {"type": "int64"}}
MARKERS = np.array([0, 0, 0xCC, 0xCD, 0, 0xCE, 0, 0, 0, 0xCF], np.uint8)  # msgpack's uint types, by width in bytes
_FIRST_KEY = np.frombuffer(b"\x82\xa5label", np.uint8)  # of a raw row, behind the u64
TABLES = (
    "CREATE TABLE INDEXES(  ROW_ID               INT  NOT NULL, PAGE_ID_RAW          INT  NOT NULL,"
    " PAGE_OFFSET_RAW      INT  NOT NULL, PAGE_OFFSET_RAW_END  INT  NOT NULL, ROW_GROUP_ID         INT  NOT NULL,"
    " PAGE_ID_BLOB         INT  NOT NULL, PAGE_OFFSET_BLOB     INT  NOT NULL, PAGE_OFFSET_BLOB_END INT  NOT NULL,"
    "INC_0 INT, label_0 INTEGER, PRIMARY KEY(ROW_ID,INC_0))",
    "CREATE TABLE SHARD_NAME(NAME TEXT NOT NULL)",
)  # spelled as FileWriter spells them, so that one comparison covers every column and type
WITHOUT_ROWID = " WITHOUT ROWID"  # behind the first of them, in our indexes


@dataclass(frozen=True)
class Page:
    """One entry of the header's page list; used in bytes, rows start..end, groups as (row group, byte offset)."""

    kind: str
    number: int
    type_id: int
    used: int
    start: int
    end: int
    groups: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class RowGroup:
    """Where a row group is: rows start..end, blob page and its used bytes, raw page and the bytes within it."""

    number: int
    start: int
    end: int
    blob: int
    blob_used: int
    raw: int
    raw_start: int
    raw_end: int

    def index_rows(self, sizes: np.ndarray, raw_sizes: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, ...]]:
        """Returns the group's rows of table INDEXES, from framed bytes (n,) and raw bytes (n,) of each row."""
        ends, raw_ends = np.cumsum(sizes), np.cumsum(raw_sizes) + self.raw_start
        raw_columns = repeat(self.raw), (raw_ends - raw_sizes).tolist(), raw_ends.tolist()
        blob_columns = repeat(self.number), repeat(self.blob), (ends - sizes).tolist(), ends.tolist()
        return zip(range(self.start, self.end), *raw_columns, *blob_columns, repeat(0), labels.tolist())


def checked_columns(*columns: np.ndarray) -> Iterator[np.ndarray]:
    """Yields sizes, labels and sids as (N,) int64.

    Raises:
        ValueError: N is 0, the shapes differ, or a value is not an integer within the format's range.
    """
    if len({np.shape(column) for column in columns}) != 1 or np.ndim(columns[0]) != 1:
        raise ValueError(f"sizes, labels and sids have shapes {[np.shape(column) for column in columns]}")
    if not len(columns[0]):
        raise ValueError("a shard without rows is none that MindSpore can read")
    limits = (("image size", 1, PAGE_SIZES[-1] - 8), ("label", 0, (1 << 31) - 1), ("sid", 0, (1 << 63) - 1))
    for column, (what, low, high) in zip(columns, limits, strict=True):
        if np.asarray(column).dtype.kind not in "iu":
            raise ValueError(f"{what}: {np.asarray(column).dtype} is no integer type")
        for value in (int(np.min(column)), int(np.max(column))):
            if not low <= value <= high:
                raise ValueError(f"{what} {value} is outside {low}..{high}")
        yield np.asarray(column).astype(np.int64)


def lay_out(sizes: np.ndarray, raw_sizes: np.ndarray, page_size: int) -> tuple[list[Page], list[RowGroup]]:
    """Returns pages, blob pages first, and row groups; a group ends before its blobs or raw rows outgrow a page."""
    ends = np.cumsum(sizes + 8)  # (N,) bytes of blob up to and including each row
    raw_ends = np.cumsum(raw_sizes)  # (N,)
    pages: list[Page] = []
    raw: list[tuple[int, list[tuple[int, int]]]] = []  # bytes used and row groups of each raw page
    start = base = raw_base = 0
    while start < len(sizes):
        end = min(ends.searchsorted(base + page_size, "right"), raw_ends.searchsorted(raw_base + page_size, "right"))
        used, raw_used = int(ends[end - 1]) - base, int(raw_ends[end - 1]) - raw_base
        if not raw or raw[-1][0] + raw_used > page_size:
            raw.append((0, []))
        raw[-1] = (raw[-1][0] + raw_used, [*raw[-1][1], (len(pages), raw[-1][0])])
        pages.append(Page("BLOB_DATA", len(pages), len(pages), used, start, int(end), ((0, 0),)))
        start, base, raw_base = int(end), base + used, raw_base + raw_used
    for place, (used, groups) in enumerate(raw):  # FileWriter's type id: 0 for the first raw page, then its number
        pages.append(Page("RAW_DATA", len(pages), len(pages) if place else 0, used, 0, 0, tuple(groups)))
    return pages, row_groups(pages)


def row_groups(pages: list[Page]) -> list[RowGroup]:
    """Returns the row groups in order of rows.

    Raises:
        ValueError: the pages do not carry every row exactly once, or a group is empty.
    """
    blobs = [page for page in pages if page.kind == "BLOB_DATA"]
    raws: list[tuple[int, int, int]] = []  # (raw page, first byte, byte after) of each row group
    for page in (page for page in pages if page.kind == "RAW_DATA"):
        bounds = [*(offset for _, offset in page.groups), page.used]
        if bounds[0] or [number for number, _ in page.groups] != list(range(len(raws), len(raws) + len(page.groups))):
            raise ValueError(f"raw page {page.number} does not go on with row group {len(raws)}")
        raws += [(page.number, low, high) for low, high in pairwise(bounds)]
    if not blobs or len(blobs) != len(raws):
        raise ValueError(f"{len(blobs)} blob pages and {len(raws)} row groups in raw pages")
    groups, row = [], 0
    for number, (page, (raw, low, high)) in enumerate(zip(blobs, raws, strict=True)):
        rows = page.end - page.start
        if page.start != row or rows < 1 or rows * 9 > page.used or rows * (RAW_FIXED + 2) > high - low:
            raise ValueError(f"blob page {page.number} cannot hold rows {page.start}..{page.end} after row {row}")
        groups.append(RowGroup(number, page.start, page.end, page.number, page.used, raw, low, high))
        row = page.end
    return groups


def header(name: str, header_size: int, page_size: int, pages: Iterable[Page]) -> bytes:
    """Returns length and JSON of the header, in FileWriter's order of keys."""
    content = {
        "header_size": header_size,
        "index_fields": [{"index_field": "label", "schema_id": 0}],
        "page": [
            {
                "end_row_id": page.end,
                "page_id": page.number,
                "page_size": page.used,
                "page_type": page.kind,
                "page_type_id": page.type_id,
                "row_group_ids": [{"id": group, "offset": offset} for group, offset in page.groups],
                "shard_id": 0,
                "start_row_id": page.start,
            }
            for page in pages
        ],
        "page_size": page_size,
        "compression_size": 0,
        "schema": [{"blob_fields": ["image"], "desc": "", "schema": SCHEMA}],
        "shard_addresses": [name],
        "shard_id": 0,
        "statistics": None,
        "version": "3.0",
    }
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text


def int_widths(values: np.ndarray) -> np.ndarray:
    """Returns (n,) bytes that msgpack's shortest form takes for each of (n,) values >= 0."""
    return np.array([1, 2, 3, 5, 9])[np.searchsorted([1 << 7, 1 << 8, 1 << 16, 1 << 32], values, "right")]


def raw_rows(labels: np.ndarray, sids: np.ndarray) -> bytes:
    """Returns the framed msgpack maps of (n,) labels and sids: rows of equal width, then the unused bytes dropped."""
    rows = np.empty((len(labels), 37), np.uint8)
    keep = np.ones(rows.shape, bool)
    lengths = np.full(len(labels), RAW_FIXED - 8)  # (n,) int64
    for place, key, values in ((15, b"\x82\xa5label", labels), (28, b"\xa3sid", sids)):
        widths = int_widths(values)  # (n,)
        lengths += widths
        rows[:, place - len(key) : place] = np.frombuffer(key, np.uint8)
        rows[:, place] = MARKERS[widths]
        rows[:, place + 1 : place + 9] = values.astype(">u8").view(np.uint8).reshape(-1, 8)
        keep[:, place] = widths > 1  # values below 128 are their own marker
        keep[:, place + 1 : place + 9] = np.arange(8, 0, -1) <= np.maximum(widths - 1, 1)[:, None]
    rows[:, :8] = lengths.astype("<u8").view(np.uint8).reshape(-1, 8)
    return rows[keep].tobytes()


def read_raw_rows(data: bytes, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns labels (n,) int64, sids (n,) int64 and framed lengths in bytes (n,) int64 of n = `rows` raw rows.

    Raises:
        ValueError: the bytes are not what `raw_rows` makes of these labels and sids.
    """
    places = _raw_places(data, rows)  # (n + 1,)
    buffer = np.frombuffer(data + bytes(64), np.uint8)  # so that wild places stay inside; the comparison finds them
    labels, widths = _integers(buffer, places[:-1] + 15)
    sids, _ = _integers(buffer, places[:-1] + 19 + widths)
    if labels.min() < 0 or labels.max() >= 1 << 31 or sids.min() < 0 or raw_rows(labels, sids) != data:
        raise ValueError("raw rows are not maps of a label and a sid")
    return labels, sids, np.diff(places)


def _raw_places(data: bytes, rows: int) -> np.ndarray:
    """Returns where each of n = `rows` raw rows starts in `data`, and the end, (n + 1,) int64; ValueError as `frames`.

    Every row has its first key at one place. If the key is nowhere else, which takes a sid made for it, its places tell
    those of the rows all at once.
    """
    buffer = np.frombuffer(data, np.uint8)
    at = np.flatnonzero(buffer[: 1 - len(_FIRST_KEY)] == _FIRST_KEY[0])
    at = at[(buffer[at[:, None] + np.arange(1, len(_FIRST_KEY))] == _FIRST_KEY[1:]).all(1)]
    return np.append(at - 8, len(data)) if len(at) == rows else np.array(frames(data, rows))


def _integers(buffer: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the msgpack integers (n,) int64 that start at (n,) places of (bytes,) uint8, and their widths (n,)."""
    window = buffer[places[:, None] + np.arange(9)]  # (n, 9)
    widths = np.ones(256, np.int64)
    widths[MARKERS[[2, 3, 5, 9]]] = 2, 3, 5, 9
    width = widths[window[:, 0]]
    payload = np.ascontiguousarray(window[:, 1:]).view(">u8")[:, 0].astype(np.uint64)
    values = payload >> (8 * (9 - np.maximum(width, 2))).astype(np.uint64)
    return np.where(width > 1, values, window[:, 0]).astype(np.int64), width


def frames(data: bytes, rows: int) -> list[int]:
    """Returns where each of `rows` ``u64 length | bytes`` starts in `data`, and the end.

    Raises:
        ValueError: the lengths do not lead from the first byte to the last, or one of them is 0.
    """
    places = [0]
    place = 0
    for _ in range(rows):
        length = int.from_bytes(data[place : place + 8], "little")
        place += 8 + length
        if not length or place > len(data):
            raise ValueError(f"a length of {length} bytes in {len(data)} bytes of rows")
        places.append(place)
    if place != len(data):
        raise ValueError(f"{rows} rows take {place} bytes of {len(data)}")
    return places


def read_header(name: str, data: bytes) -> tuple[int, int, list[Page]]:
    """Returns header size in bytes, page size in bytes and pages of a header's JSON.

    Raises:
        ValueError: the text differs in anything but these from what `header` writes for a shard of this name.
    """
    try:
        content = parse_json(data)
        pages = [
            Page(
                kind=entry["page_type"],
                number=entry["page_id"],
                type_id=entry["page_type_id"],
                used=entry["page_size"],
                start=entry["start_row_id"],
                end=entry["end_row_id"],
                groups=tuple((group["id"], group["offset"]) for group in entry["row_group_ids"]),
            )
            for entry in content["page"]
        ]
        sizes = content["header_size"], content["page_size"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"no MindRecord JSON: {type(error).__name__} {error}") from None
    numbers = [*sizes]
    for page in pages:
        numbers += (
            page.number,
            page.type_id,
            page.used,
            page.start,
            page.end,
            *(n for pair in page.groups for n in pair),
        )
    if any(type(number) is not int or not 0 <= number < 1 << 48 for number in numbers):
        raise ValueError("a number of the JSON is none, negative or immense")
    if any(page.kind not in ("BLOB_DATA", "RAW_DATA") for page in pages):
        raise ValueError("a page is neither BLOB_DATA nor RAW_DATA")
    if header(name, *sizes, pages)[8:] != data:  # compares keys, versions, schema, name: all that is not a number
        raise ValueError("the JSON is not that of an image, label, sid shard of this name")
    for place, page in enumerate(pages):
        if page.number != place or not 0 < page.used <= sizes[1]:
            raise ValueError(f"page {place} has number {page.number} and {page.used} bytes of {sizes[1]}")
    return *sizes, pages

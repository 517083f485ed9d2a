"""The pictures of the page: read, made small, and put on the sheets as long as there is room."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, zip_longest
from typing import Any

import cv2
from markupsafe import Markup

from faceshards.dataset.manifest import Manifest
from faceshards.dataset.schema import DROP_REASONS
from faceshards.dataset.shard_images import BLOCK
from faceshards.errors import SourceError
from faceshards.formats.encoded_image import decode, image_size, too_large
from faceshards.inspection.pictures import Pictures, ReadRecords
from faceshards.inspection.report.sheets import Group, Part, Row, Sheet, bits, records
from faceshards.inspection.report.templates import environment

_AS_IS = 16_000  # bytes of an encoded image that goes in as it is
_SIDE = 224  # pixels of the longer side of one that does, and of others' thumbnails: twice what the page shows
_QUALITY = 85  # of thumbnails, JPEG
_TIMES = 4  # the mean size of an image: what one counts for whose size is not known


@dataclass(frozen=True)
class Picture:
    """A record on a sheet.

    Args:
        row: of the manifest.
        notes: what became of it.
        uri: the encoded image as an address; None: it could not be read.
        cause: why not.
    """

    row: Row
    notes: tuple[str, ...]
    uri: str | None = None
    cause: str = ""


@dataclass
class Filled:
    """A sheet with pictures.

    Args:
        sheet: what was planned.
        groups: its groups that had room, as parts of the page.
        pictures: number of pictures in them.
    """

    sheet: Sheet
    groups: list[Markup] = field(default_factory=list)
    pictures: int = 0


class Album:
    """Pictures by the sids of their records; their images are read many at a time, in the order in which the page asks.

    Args:
        found: the dataset.
        sheets: of the page.
        read: reads the sources.
    """

    def __init__(self, found: Manifest, sheets: Sequence[Sheet], read: ReadRecords) -> None:
        self._pictures, self._rows, self._max_pixels = Pictures(found, read), records(found, sheets), found.max_pixels
        self._sids = [sid for _, group in in_turn(sheets) for part in group.parts for sid in part.sids]
        self._held: dict[int, bytes | SourceError] = {}
        # The manifest has no sizes of dropped images.
        self._guess = _TIMES * found.totals["image_bytes"] // max(1, found.totals["kept"])
        self._explained = {"test_overlap", *found.reasons[len(DROP_REASONS) :]}  # whose details people want to see

    def part(self, part: Part, kind: str) -> list[Picture]:
        """Returns the pictures of a part of such a group in order; copies say how far from the first they are."""
        return [self._picture(self._rows[sid], kind == "copies" and sid != part.sids[0]) for sid in part.sids]

    def _picture(self, row: Row, copy: bool) -> Picture:
        notes = [f"dropped, {row['reason'].replace('_', ' ')}" if "reason" in row else "kept"]
        if copy and row.get("distance") is not None:
            notes.append(bits(row["distance"]))
        if row.get("reason") in self._explained and row["detail"]:
            notes.append(row["detail"])
        try:
            data = self._image(row["sid"])
            return Picture(row, tuple(notes), uri=_data_uri(data, self._max_pixels))
        except SourceError as error:
            return Picture(row, tuple(notes), cause=str(error).rpartition(" (sid ")[0] or str(error))
        except (cv2.error, ValueError) as error:
            return Picture(row, tuple(notes), cause=f"{row['source']}: record {row['key']} cannot be decoded: {error}")

    def _image(self, sid: int) -> bytes:
        """Returns the image of a record; if it is not held, it is read with those that follow it.

        Raises:
            SourceError: the record's source does not give it.
        """
        if sid not in self._held:
            if sum(len(data) for data in self._held.values() if isinstance(data, bytes)) > BLOCK:
                self._held = {}
            wanted = dict.fromkeys(self._sids[self._sids.index(sid) :])
            rows = [self._rows[one] for one in wanted if one not in self._held]
            sizes = accumulate(row.get("bytes", self._guess) for row in rows)
            some = [row for row, size in zip(rows, sizes, strict=True) if row is rows[0] or size <= BLOCK]
            self._held |= zip((row["sid"] for row in some), self._pictures.of_rows(some), strict=True)
        if isinstance(data := self._held[sid], SourceError):
            raise data
        return data


def in_turn(sheets: Sequence[Sheet]) -> Iterator[tuple[int, Group]]:
    """Yields the groups of sheets, and the place of theirs: of each sheet the first, then the second, and so on."""
    for turn in zip_longest(*(sheet.groups for sheet in sheets)):
        yield from ((place, group) for place, group in enumerate(turn) if group is not None)


def fill(sheets: Sequence[Sheet], album: Album, room: int) -> tuple[list[Filled], list[str]]:
    """Returns the sheets with as many groups as there is room for, in turn, and why pictures on them are missing.

    Args:
        sheets: planned.
        album: of their pictures.
        room: bytes.
    """
    draw: Any = environment().get_template("group.html.j2").module
    filled = [Filled(sheet) for sheet in sheets]
    full: set[str] = set()  # a sheet whose next group has no room gets no later one: what is shown is a prefix
    unread: list[str] = []
    for place, group in in_turn(sheets):
        one = filled[place]
        if one.sheet.key in full:
            continue
        parts = [album.part(part, group.kind) for part in group.parts]
        text = draw.group(group, list(zip(group.parts, parts, strict=True)))
        size = len(text.encode())
        if size > room:
            full.add(one.sheet.key)
            continue
        room -= size
        one.groups.append(text)
        pictures = [picture for part in parts for picture in part]
        one.pictures += sum(picture.uri is not None for picture in pictures)
        unread += [picture.cause for picture in pictures if picture.uri is None]
    return filled, unread


def _data_uri(data: bytes, max_pixels: int) -> str:
    """Returns an encoded image as an address: as it is if it is small, else as a thumbnail.

    Raises:
        ValueError: it cannot be decoded, or has more pixels.
    """
    size = image_size(data)
    if cause := too_large(size, max_pixels):
        raise ValueError(cause)
    pixels = decode(data, cv2.IMREAD_COLOR)
    if pixels is None:
        raise ValueError("the decoder refuses it")
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    scale = min(1, _SIDE / max(pixels.shape[:2]))
    if len(data) > _AS_IS or scale < 1:
        height, width = (max(1, round(scale * side)) for side in pixels.shape[:2])
        small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
        data, kind = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"

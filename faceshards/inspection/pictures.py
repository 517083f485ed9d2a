"""The encoded images of a dataset's records: of kept ones from the shards, of dropped ones from the sources."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from faceshards.dataset.manifest import Manifest
from faceshards.dataset.shard_images import images_of
from faceshards.errors import SourceError
from faceshards.inspection.photograph import Photograph

Row = Mapping[str, Any]

ReadRecords = Callable[[Row, Sequence[str]], Sequence[bytes | SourceError]]
"""Gives the images of records by their source, as dataset.json has it, and their keys; of one it cannot, why."""


class Pictures:
    """What gives records' images by their rows in the manifest.

    Args:
        found: the dataset.
        read: reads a source.
    """

    def __init__(self, found: Manifest, read: ReadRecords) -> None:
        self._found, self._read = found, read
        self._sources = {entry["name"]: entry for entry in found.info.get("sources", [])}

    def of(self, one: Photograph) -> bytes:
        """Returns the image of a record, from its shard or its source.

        Raises:
            ShardError: see of_rows().
            SourceError: the source is gone or has changed, or has no image there.
        """
        (data,) = self.of_rows([one.row])
        if isinstance(data, SourceError):
            raise data
        # The sha256 of a dropped record is known only where it is that of what stands for it.
        twin = one.stands[0] if one.row.get("reason") == "exact_duplicate" and one.stands else {}
        if twin.get("sha256") not in (None, hashlib.sha256(data).digest()):
            path, key = self._sources[one.row["source"]]["path"], one.row["key"]
            raise SourceError(f"{path}: record {key} changed since it was scanned: its sha256 is another")
        return data

    def of_rows(self, rows: Sequence[Row]) -> list[bytes | SourceError]:
        """Returns the images of rows of `images` and of `dropped`, in their order, or why a source does not give one.

        Raises:
            ShardError: a shard is missing or damaged, or an image is another one's.
        """
        by_source: dict[str | None, list[int]] = defaultdict(list)  # None: in the shards
        for place, row in enumerate(rows):
            by_source[row["source"] if "reason" in row else None].append(place)
        found: dict[int, bytes | SourceError] = {}
        for name, places in by_source.items():
            some = [rows[place] for place in places]
            found |= zip(
                places, images_of(self._found, some) if name is None else self._dropped(name, some), strict=True
            )
        return [found[place] for place in range(len(rows))]

    def _dropped(self, name: str, rows: Sequence[Row]) -> list[bytes | SourceError]:
        """Returns the images of rows of `dropped` from their source, or why it does not give one."""
        whats = [f"sid {row['sid']}, dropped as {row['reason']}, is in the source only" for row in rows]
        entry = self._sources.get(name)
        if entry is None:
            where = f"dataset.json does not say where '{name}' is"
            return [SourceError(f"{self._found.path}: {what}; {where}") for what in whats]
        images = self._read(entry, [row["key"] for row in rows])
        return [
            SourceError(f"{image} ({what})") if isinstance(image, SourceError) else image
            for image, what in zip(images, whats, strict=True)
        ]

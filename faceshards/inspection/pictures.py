"""The encoded images of a dataset's records: of kept ones from the shards, of dropped ones from the sources."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from faceshards.dataset.manifest import Manifest
from faceshards.dataset.shard_images import images_of
from faceshards.errors import SourceError
from faceshards.inspection.photograph import Photograph

ReadRecord = Callable[[Mapping[str, Any], str], bytes]
"""Gives the image of a record by its source, as dataset.json has it, and its key; SourceError if it cannot."""


class Pictures:
    """What gives a record's image by its row in the manifest.

    Args:
        found: the dataset.
        read: reads a source.
    """

    def __init__(self, found: Manifest, read: ReadRecord) -> None:
        self._found, self._read = found, read
        self._sources = {entry["name"]: entry for entry in found.info.get("sources", [])}

    def of(self, one: Photograph) -> bytes:
        """Returns the image of a record, from its shard or its source.

        Raises:
            ShardError, SourceError: see kept() and dropped().
        """
        if one.table == "images":
            return self.kept([one.row])[0]
        twin = one.stands[0] if one.row["reason"] == "exact_duplicate" and one.stands else {}
        return self.dropped(one.row, twin.get("sha256"))

    def kept(self, rows: Sequence[Mapping[str, Any]]) -> list[bytes]:
        """Returns the images of rows of `images`, from their shards.

        Raises:
            ShardError: a shard is missing or damaged, or an image is another one's.
        """
        return images_of(self._found, rows)

    def dropped(self, row: Mapping[str, Any], sha256: bytes | None = None) -> bytes:
        """Returns the image of a row of `dropped`, from its source.

        Args:
            row: of the record.
            sha256: of the image, where it is known: an exact duplicate has that of what stands for it.

        Raises:
            SourceError: the source is gone or has changed, or has no image there.
        """
        entry = self._sources.get(row["source"])
        what = f"sid {row['sid']}, dropped as {row['reason']}, is in the source only"
        if entry is None:
            raise SourceError(f"{self._found.path}: {what}; dataset.json does not say where '{row['source']}' is")
        try:
            data = self._read(entry, row["key"])
        except SourceError as error:
            raise SourceError(f"{error} ({what})") from None
        if sha256 is not None and hashlib.sha256(data).digest() != sha256:
            raise SourceError(
                f"{entry['path']}: record {row['key']} changed since it was scanned: its sha256 is another"
            )
        return data

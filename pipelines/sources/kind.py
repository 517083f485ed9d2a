"""What a kind of source can do: the protocol of the modules in registry.SOURCES."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from faceshards.storage.location import Location
from pipelines.sources.base import Claims, Cut, OpenFiles, Partition, Place, Scanned, SourceFile


class SourceKind(Protocol):
    """What a kind of source can do: a module with these functions, and a line in SOURCES.

    Any of them may raise OSError, which is told as a SourceError. A kind that gains by it may have one function more:
    `fetch_ahead(file, keys, opened)`, which has what `place` and `read` will look at for some keys read at once.
    """

    def find(self, path: Location) -> tuple[list[SourceFile], list[str]] | None:
        """Returns the files of a source of this kind and warnings about what is left aside; None for another kind.

        Args:
            path: absolute; a file or a folder. Of a bucket only kinds of this package are asked.

        Raises:
            SourceError: it is of this kind, but nothing can be read from it.
        """

    def cut(self, file: SourceFile, number: int, work: Path, step: int) -> Cut:
        """Returns how a file is cut into partitions.

        Args:
            file: of this kind.
            number: its place in the build's list.
            work: folder for a table that workers read.
            step: aimed bytes of a partition.
        """

    def names(self, part: Partition) -> list[str] | None:
        """Returns the names of the identities by label; None if labels are their own names.

        Args:
            part: any partition of the file.
        """

    def labels(self, part: Partition) -> np.ndarray:
        """Returns the labels in a partition that can be identities, (n,) int32, ascending; decodes nothing."""

    def claims(self, file: SourceFile) -> Claims:
        """Returns what a file says of itself."""

    def set_of(self, file: SourceFile) -> str:
        """Returns the path of the set that a file is a piece of: its own, unless several files share their labels."""

    def doubt(self, part: Partition) -> str:
        """Returns why what the file's names stand for may be no people, and what to say instead; "" without doubt.

        Args:
            part: any partition of the file.
        """

    def scan(self, part: Partition) -> Scanned:
        """Returns the rows and images of a partition; what is broken is a row with its reason.

        Of a sample it may leave out the others, where it need not read them.
        """

    def read(self, file: SourceFile, place: Place, opened: OpenFiles) -> bytes:
        """Returns the encoded image at a place, as it was scanned.

        Raises:
            SourceError: the file changed.
        """

    def place(self, file: SourceFile, key: str, opened: OpenFiles) -> Place:
        """Returns where the image of a record lies, by the key that manifests name it by; for `read`.

        Raises:
            SourceError: the file changed since it was scanned, or has no image under this key.
        """

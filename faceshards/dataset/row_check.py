"""Compares the rows of a shard with those of the table `images`, and names the ones that differ."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from faceshards.formats.mindrecord.reader import Shard

COLUMNS = ["row", "label", "label_original", "sid", "sha256", "bytes"]  # that a shard's rows are compared with


@dataclass(frozen=True)
class Finding:
    """Something in a dataset's folder that is not as the manifest says; as text it is one line.

    Attributes:
        file: the path of the file, or of the dataset.
        text: what is wrong.
        row: in the shard, sid, label and label_original, as the manifest has them, if it is about one row.
        foreign: a file that is no part of the dataset and that no reader takes for one.
    """

    file: str
    text: str
    row: int | None = None
    sid: int | None = None
    label: int | None = None
    label_original: str | None = None
    foreign: bool = False

    def __str__(self) -> str:
        where = ""
        if self.row is not None:
            where = f"row {self.row} (sid {self.sid}, label {self.label}, identity {self.label_original!r}): "
        return f"{self.file}: {where}{self.text}"


def check_rows(shard: Shard, images: pa.Table, chosen: np.ndarray | None = None) -> Iterator[Finding]:
    """Yields what differs in a shard's rows from the table `images`, whose rows are the shard's in order.

    Args:
        shard: open.
        images: COLUMNS of it.
        chosen: (n,) int64, the rows to be looked at, ascending; None: all.

    Raises:
        ShardError: the lengths of the images are not those of the shard.
    """
    file = str(shard.path)
    if len(shard) != len(images):
        yield Finding(file, f"{len(shard)} rows, the manifest has {len(images)}")
        return
    if chosen is None:
        chosen = np.arange(len(images))
    for picked in shard.picked(chosen, images["bytes"].to_numpy()):
        rows = picked.rows
        want = images.take(rows)

        def about(i: int, text: str, rows: np.ndarray = rows, want: pa.Table = want) -> Finding:
            names = (want[name][i].as_py() for name in ("sid", "label", "label_original"))
            return Finding(file, text, int(rows[i]), *names)

        if picked.problem:
            yield Finding(file, f"rows {rows[0]}..{rows[-1]} cannot all be read: {picked.problem}")
        for name, got in zip(("label", "sid"), picked.numbers or (), strict=False):
            for i in np.flatnonzero(got != want[name].to_numpy()).tolist():
                yield about(i, f"the shard has {name} {got[i]}")
        for i, (image, sha) in enumerate(zip(picked.images, want["sha256"].to_pylist(), strict=True)):
            if image is None:
                yield about(i, f"no image of {want['bytes'][i]} bytes, which the manifest says")
            elif hashlib.sha256(image).digest() != sha:
                yield about(i, "the image's sha256 is not the manifest's")

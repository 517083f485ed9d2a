"""What the two layouts of RecordIO share: parts of a .rec, written by the tasks and put one behind the other."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from faceshards.files import replacing
from faceshards.formats.idx import read_index
from faceshards.formats.recordio import Writer
from pipelines.exports.base import ExportError, Piece, Sample
from pipelines.records import MAX_LABEL

_BLOCK = 16 << 20  # bytes copied at a time
_LINES = 1 << 16  # of an .idx at a time


def refuse_labels(labels: np.ndarray | Sequence[str]) -> None:
    """Refuses labels that float32 does not tell apart; see Format."""
    if (largest := int(np.max(labels))) > MAX_LABEL:
        raise ExportError(
            f"labels go up to {largest:,}, and RecordIO's float32 tells them apart only up to {MAX_LABEL:,}; "
            "--labels new counts from 0, --to webdataset and --to folder have no such limit"
        )


def write_part(piece: Piece, samples: Iterator[Sample], room: Path, first_key: int) -> dict[str, Any]:
    """Returns the bytes of a piece's part of the .rec; its .idx and .lst lie beside it.

    Args:
        piece: which.
        samples: its images.
        room: folder for the part.
        first_key: of the whole.
    """
    path = room / f"{part_name(piece.number)}.rec"
    with Writer(path) as rec, open(path.with_suffix(".lst"), "w", encoding="utf-8") as lst:
        for key, sample in enumerate(samples, first_key + piece.first):
            rec.write(key, float(sample.label), sample.image)
            lst.write(f"{key}\t{float(sample.label):f}\t{_one_field(f'{sample.source}/{sample.key}')}\n")
    return {"bytes": path.stat().st_size}


def part_name(number: int) -> str:
    """Returns the name of a piece's part, without a suffix."""
    return f"part-{number:06d}"


def _one_field(text: str) -> str:
    """Returns a text that is one field of a line: %XX for control characters, and for %."""
    return re.sub(r"[\x00-\x1f\x7f%]", lambda found: f"%{ord(found[0]):02X}", text)


def join(parts: list[tuple[Path, int]], out: Path) -> None:
    """Makes one .rec of parts, with .idx and .lst; killed and called again, it goes on.

    A part is removed once it is on disk in the whole, so that a set needs little more room than twice its index. What
    is missing among the parts was copied; what a killed copy left behind that is cut off.

    Args:
        parts: each the path without suffix, and the bytes of its .rec.
        out: the whole, without suffix.

    Raises:
        ExportError: a part is missing that was not copied.
    """
    recs = [path.with_suffix(".rec") for path, _ in parts]
    starts = np.concatenate([[0], np.cumsum([size for _, size in parts])]).tolist()
    done = max((i + 1 for i, path in enumerate(recs) if not path.exists()), default=0)
    whole = out.with_suffix(".rec")
    with open(whole, "ab") as file:
        if file.tell() < starts[done]:
            raise ExportError(f"{recs[done - 1]}: missing, and not copied yet; pass --restart to begin anew")
        for i in range(done, len(parts)):
            file.truncate(starts[i])
            with open(recs[i], "rb") as part:
                shutil.copyfileobj(part, file, _BLOCK)
            file.flush()
            os.fsync(file.fileno())
            if file.tell() != starts[i + 1]:
                raise ExportError(f"{recs[i]}: changed since it was written; pass --restart to begin anew")
            recs[i].unlink()
    with replacing(out.with_suffix(".idx")) as temporary, open(temporary, "w", encoding="ascii") as idx:
        for (path, _), start in zip(parts, starts, strict=False):
            index = read_index(path.with_suffix(".idx"))
            for at in range(0, len(index.keys), _LINES):
                stop = at + _LINES
                lines = zip(index.keys[at:stop].tolist(), (index.offsets[at:stop] + start).tolist(), strict=True)
                idx.write("".join(f"{key}\t{offset}\n" for key, offset in lines))
    with replacing(out.with_suffix(".lst")) as temporary, open(temporary, "wb") as lst:
        for path, _ in parts:
            if (part_lst := path.with_suffix(".lst")).exists():  # header and identity records are in no list
                with open(part_lst, "rb") as part:
                    shutil.copyfileobj(part, lst, _BLOCK)

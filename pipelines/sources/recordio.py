"""RecordIO: .rec files with or without an .idx, in the layouts of InsightFace and im2rec."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from faceshards.dataset.schema import CODE
from faceshards.errors import SourceError
from faceshards.formats import idx, recordio, recordio_scan
from faceshards.reading import OpenFile
from faceshards.storage.location import as_location
from pipelines.records import MAX_LABEL
from pipelines.sources.base import MAX_ENCODED, Cut, OpenFiles, Partition, Place, Scanned, SourceFile
from pipelines.sources.rec_files import IR_HEADER, claims, find
from pipelines.sources.rec_places import fetch_ahead, offset_of

__all__ = ["claims", "cut", "doubt", "fetch_ahead", "find", "labels", "names", "place", "read", "scan", "set_of"]


def cut(file: SourceFile, number: int, work: Path, step: int) -> Cut:
    """Returns how a .rec is cut, as SourceKind has it: by bytes.

    Its table is an .npy, (2, N) int64 of offsets, ascending, and keys of the .idx.
    """
    bounds = [*range(0, file.bytes, step), file.bytes]
    if not file.index:
        return Cut(bounds, None, [])
    table = str(work / f"index-{number}.npy")
    index = idx.read_index(as_location(file.index))
    np.save(table, np.stack([index.offsets, index.keys]))
    return Cut(bounds, table, index.problems)


def names(_: Partition) -> list[str] | None:
    """Returns None: a label is a number, and its own name."""
    return None


def labels(part: Partition) -> np.ndarray:
    """Returns the labels of a partition, as SourceKind has it."""
    found = _headers(recordio_scan.scan(as_location(part.path), part.start, part.stop))
    return np.unique(
        found.label[found.sound & ~found.short & ~found.structural & _is_identity(found.label)].astype(np.int32)
    )


def set_of(file: SourceFile) -> str:
    """Returns that a file's labels are its own, as SourceKind has it."""
    return file.path


def doubt(_: Partition) -> str:
    """Returns "": a label is a label."""
    return ""


def read(file: SourceFile, place: Place, opened: OpenFiles) -> bytes:
    """Returns the image of a record.

    Raises:
        SourceError: the file changed since it was scanned.
    """
    handle = opened.file(file)
    if place.parts == 1:
        return handle.read_at(place.offset + 8 + place.header, place.size)
    return recordio.read_payload(handle, place.offset, place.header + place.size, place.parts)[place.header :]


def place(file: SourceFile, key: str, opened: OpenFiles) -> Place:
    """Returns where a record's image lies, as SourceKind has it; without an .idx, records are counted from the first.

    Raises:
        SourceError: the file changed since it was scanned, or has no image under this key.
    """
    handle = opened.file(file)
    offset = offset_of(file, key, opened)
    if offset % 4 == 0 and 0 <= offset < file.bytes:
        found = scan(Partition(0, 0, file.kind, file.path, offset, offset + 4, None, False), handle)
        if len(found.offset) and found.size[0] > 0:
            return Place(key, offset, int(found.header[0]), int(found.size[0]), int(found.parts[0]))
        if len(found.offset):
            raise SourceError(f"{file.path}: record {key} at byte {offset} has no image: {found.detail[0] or 'empty'}")
    raise SourceError(f"{file.path}: record {key}: none begins at byte {offset}")


class _Headers(NamedTuple):
    """What the records of a partition say of themselves, an array (N,) each."""

    sound: np.ndarray  # bool, the parts are whole and in order
    short: np.ndarray  # bool, sound, but with less payload than the header asks for
    structural: np.ndarray  # bool, no image and two labels: InsightFace's header and identity records
    flag: np.ndarray  # int64, how many labels follow the header
    label: np.ndarray  # float32, the identity; 0 where there is no header
    header: np.ndarray  # int64, bytes of the payload before the image
    size: np.ndarray  # int64, bytes of the image


def scan(part: Partition, file: OpenFile | None = None) -> Scanned:
    """Returns the image records of a byte range of a .rec; what is damaged or missing is a row with its reason.

    Records are classified by their own structure, never by the header record or the identity ranges, which float32
    rounds above 2**24: an empty image with two labels is structural, everything else is an image record whose label
    (element 0 of an array label) is the identity.

    Args:
        part: of it.
        file: the .rec, if it is open.

    Raises:
        OSError: the file cannot be read.
    """
    found = recordio_scan.scan(as_location(part.path), part.start, part.stop, file)
    every = _headers(found)
    rows = np.flatnonzero(~every.structural)
    heads = _Headers(*(column[rows] for column in every))
    keys, named, *missing = _match_index(part, found.offset, rows)
    n = len(rows)
    out = Scanned(
        offset=found.offset[rows],
        header=heads.header,
        size=heads.size,
        parts=found.parts[rows],
        ordinal=rows.astype(np.int32),
        key=keys,
        label=np.full(n, -1, np.int32),
        label_original=[None] * n,
        reason=np.zeros(n, np.uint8),
        detail=[None] * n,
        images=[None] * n,
        records=len(found.offset),
        structural=len(found.offset) - n,
        unindexed=int(np.count_nonzero(heads.sound & ~named)),
    )
    _drop_broken(out, found, heads, rows)
    _take_images(out, found, rows)
    _set_labels(out, heads)
    return _with_missing(out, *missing)


def _headers(found: recordio_scan.Records) -> _Headers:
    sound = np.ones(len(found.offset), bool)
    sound[list(found.damage)] = False
    flag, label = _flags_and_labels(found, sound)
    header = IR_HEADER + 4 * flag
    size = np.where(sound, found.length - header, 0)
    short = sound & ((found.length < IR_HEADER) | (size < 0))
    structural = sound & ~short & (flag == 2) & (size == 0)
    return _Headers(sound, short, structural, flag, label, np.where(short, 0, header), np.where(short, 0, size))


def _flags_and_labels(found: recordio_scan.Records, sound: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns flag (int64) and label (float32) of each record; zeros where there is no header."""
    flag, label = np.zeros(len(sound), np.int64), np.zeros(len(sound), np.float32)
    words = found.window[: len(found.window) // 4 * 4].view(np.uint32)
    headed = sound & (found.length >= IR_HEADER)
    easy = np.flatnonzero(headed & (found.parts == 1))
    at = (found.offset[easy] - found.start) // 4 + 2
    flag[easy] = words[at]
    vector = (flag[easy] > 0) & (found.length[easy] >= IR_HEADER + 4)
    label[easy] = words[np.where(vector, at + 6, at + 1)].view(np.float32)
    for row in np.flatnonzero(headed & (found.parts > 1)).tolist():
        payload = found.payload(row).tobytes()
        flag[row], label[row] = struct.unpack_from("<If", payload)
        if flag[row] > 0 and len(payload) >= IR_HEADER + 4:
            label[row] = struct.unpack_from("<f", payload, IR_HEADER)[0]
    return flag, label


def _match_index(
    part: Partition, found: np.ndarray, rows: np.ndarray
) -> tuple[list[str | None], np.ndarray, np.ndarray, np.ndarray]:
    """Returns the key of each row, whether the .idx, if any, names it (bool), and offsets and keys (int64) of the .idx
    entries where no record begins.

    Args:
        part: the partition.
        found: (N,) int64 offsets of its records, ascending.
        rows: (n,) those that are rows.
    """
    if part.table is None:
        return [None] * len(rows), np.ones(len(rows), bool), np.zeros(0, np.int64), np.zeros(0, np.int64)
    entries = np.load(part.table, mmap_mode="r")
    low = 0 if part.start == 0 else np.searchsorted(entries[0], part.start)
    high = entries.shape[1] if part.last else np.searchsorted(entries[0], part.stop)
    offsets, keys = np.array(entries[0, low:high]), np.array(entries[1, low:high])
    entry = np.searchsorted(offsets, found)
    hit = entry < len(offsets)
    hit[hit] = offsets[entry[hit]] == found[hit]
    left = np.ones(len(offsets), bool)
    left[entry[hit]] = False
    names, at = keys.tolist(), found[rows].tolist()
    entry = np.where(hit, entry, -1)[rows]
    keyed = [str(names[i]) if i >= 0 else f"@{byte}" for i, byte in zip(entry.tolist(), at, strict=True)]
    return list(keyed), entry >= 0, offsets[left], keys[left]


def _drop_broken(out: Scanned, found: recordio_scan.Records, heads: _Headers, rows: np.ndarray) -> None:
    """Drops the rows that are damaged or have no whole header."""
    for i in np.flatnonzero(~heads.sound).tolist():
        out.drop(i, "damaged", found.damage[rows[i]])
    for i in np.flatnonzero(heads.short).tolist():
        length = found.length[rows[i]]
        want = f"its flag {heads.flag[i]} asks for more labels than" if length >= IR_HEADER else "too short:"
        out.drop(i, "undecodable", f"no image record: {want} {length} bytes of payload")


def _take_images(out: Scanned, found: recordio_scan.Records, rows: np.ndarray) -> None:
    """Fills the images of the rows that are not dropped, and drops those with too large ones."""
    for i in np.flatnonzero((out.reason == 0) & (out.size > MAX_ENCODED)).tolist():
        out.drop(i, "too_large", f"{out.size[i]} encoded bytes are more than {MAX_ENCODED}")
    # Views into the window, all at once: this loop meets every image of a set.
    begin = out.offset - found.start + 8 + out.header
    window = found.window
    out.images = [window[a:b] for a, b in zip(begin.tolist(), (begin + out.size).tolist(), strict=True)]
    for i in np.flatnonzero((out.reason != 0) | (out.parts > 1)).tolist():
        out.images[i] = found.payload(rows[i])[out.header[i] :] if out.reason[i] == 0 else None


def _set_labels(out: Scanned, heads: _Headers) -> None:
    """Fills label and label_original; a label that cannot be an identity drops its row."""
    usable, label = heads.sound & ~heads.short, heads.label
    whole = usable & _is_identity(label)
    out.label[whole] = label[whole].astype(np.int32)
    names = list(map(str, out.label.tolist()))
    out.label_original = [name if good else None for name, good in zip(names, whole.tolist(), strict=True)]
    for i in np.flatnonzero(usable & ~whole).tolist():
        text = out.label_original[i] = repr(float(label[i]))
        cause = "not finite" if not np.isfinite(label[i]) else "negative" if label[i] < 0 else ""
        cause = cause or ("beyond float32's exact integers" if label[i] > MAX_LABEL else "fractional")
        out.drop(i, "bad_label", f"label {text} is {cause}")


def _is_identity(label: np.ndarray) -> np.ndarray:
    """Returns which labels, (n,) float32, are identities, (n,) bool."""
    whole = np.isfinite(label)
    whole[whole] = (label[whole] >= 0) & (label[whole] <= MAX_LABEL) & (label[whole] == np.floor(label[whole]))
    return whole


def _with_missing(out: Scanned, offsets: np.ndarray, keys: np.ndarray) -> Scanned:
    """Returns the rows and, in their place by offset, one for each .idx entry (offset, key) without a record."""
    m = len(offsets)
    if not m:
        return out
    order = np.argsort(np.concatenate([out.offset, offsets]), kind="stable")
    more: dict[str, np.ndarray | list] = {
        **{name: np.zeros(m, np.int64) for name in ("header", "size")},
        "offset": offsets,
        "parts": np.zeros(m, np.int32),
        "ordinal": np.full(m, -1, np.int32),
        "label": np.full(m, -1, np.int32),
        "reason": np.full(m, CODE["missing"], np.uint8),
        "key": list(map(str, keys.tolist())),
        "detail": [f"the .idx names it at byte {at}, where no record begins" for at in offsets.tolist()],
        "label_original": [None] * m,
        "images": [None] * m,
    }
    both: dict[str, Any] = {}
    for name, values in more.items():
        if isinstance(values, list):
            joined = getattr(out, name) + values
            both[name] = [joined[i] for i in order.tolist()]
        else:
            both[name] = np.concatenate([getattr(out, name), values])[order]
    return Scanned(**both, records=out.records, structural=out.structural, unindexed=out.unindexed)

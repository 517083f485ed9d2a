"""RecordIO: .rec files with or without an .idx, in the layouts of InsightFace and im2rec."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np

from faceshards.errors import SourceError
from faceshards.formats import idx, recordio
from pipelines.records import MAX_LABEL
from pipelines.sources.base import MAX_ENCODED, Cut, OpenFiles, Partition, Place, Scanned, SourceFile

IR_HEADER = 24
"""Bytes of an image record's header: u32 flag, f32 label, u64 id, u64 id2 (MXNet recordio.py, format "IfQQ")."""


def find(path: Path) -> tuple[list[SourceFile], list[str]] | None:
    """Returns a .rec, the train.rec of a folder or else all its .rec files, as SourceKind has it.

    Raises:
        SourceError: a file is empty or no RecordIO.
    """
    if path.is_file():
        return [_rec_file(path)], []
    recs = sorted(entry for entry in path.iterdir() if entry.suffix == ".rec" and entry.is_file())
    if not recs:
        return None
    main = [entry for entry in recs if entry.name == "train.rec"]
    if not main:
        return [_rec_file(entry) for entry in recs], []
    others = [entry.name for entry in recs if entry.name != "train.rec"]
    note = f"{path}: reads train.rec and leaves {', '.join(others)}; name one with --source to read it instead"
    return [_rec_file(main[0])], [note] if others else []


def _rec_file(path: Path) -> SourceFile:
    stat = path.stat()
    if stat.st_size == 0:
        raise SourceError(f"{path}: empty file")
    with open(path, "rb") as file:
        head = file.read(1 << 20)
    if not (np.frombuffer(head, np.uint32, len(head) // 4) == recordio.MAGIC).any():
        raise SourceError(f"{path}: not RecordIO: no record header in its first {len(head)} bytes")
    index = path.with_suffix(".idx")
    return SourceFile(
        str(path), path.name, "recordio", str(index) if index.is_file() else "", stat.st_size, stat.st_mtime_ns
    )


def cut(file: SourceFile, number: int, work: Path, step: int) -> Cut:
    """Returns how a .rec is cut, as SourceKind has it: by bytes.

    Its table is an .npy, (2, N) int64 of offsets, ascending, and keys of the .idx.
    """
    bounds = [*range(0, file.bytes, step), file.bytes]
    if not file.index:
        return Cut(bounds, None, [])
    table = str(work / f"index-{number}.npy")
    index = idx.read_index(Path(file.index))
    np.save(table, np.stack([index.offsets, index.keys]))
    return Cut(bounds, table, index.problems)


def names(_: Partition) -> list[str] | None:
    """Returns None: a label is a number, and its own name."""
    return None


def read(file: SourceFile, place: Place, opened: OpenFiles) -> bytes:
    """Returns the image of a record.

    Raises:
        SourceError: the file changed since it was scanned.
    """
    handle = opened.descriptor(file)
    if place.parts == 1:
        return os.pread(handle, place.size, place.offset + 8 + place.header)
    return recordio.read_payload(handle, place.offset, place.header + place.size, place.parts)[place.header :]


def scan(part: Partition) -> Scanned:
    """Returns the image records of a byte range of a .rec; what is damaged or missing is a row with its reason.

    Records are classified by their own structure, never by the header record or the identity ranges, which float32
    rounds above 2**24: an empty image with two labels is structural, everything else is an image record whose label
    (element 0 of an array label) is the identity.

    Raises:
        OSError: the file cannot be read.
    """
    found = recordio.scan(Path(part.path), part.start, part.stop)
    total = len(found.offset)
    sound = np.ones(total, bool)
    sound[list(found.damage)] = False
    flag, label, header = _image_headers(found, sound)
    size = np.where(sound, found.length - header, 0)
    short = sound & ((found.length < IR_HEADER) | (size < 0))
    structural = sound & ~short & (flag == 2) & (size == 0)
    offsets = keys = np.zeros(0, np.int64)
    missing = np.zeros(0, np.int64)
    named = part.table is not None
    where = np.zeros(total, np.int64)
    if part.table is not None:
        offsets, keys, where, missing = _match_index(part, found.offset)
    rows = np.flatnonzero(~structural)
    n, m = len(rows), len(missing)
    keyed: list[str | None] = [None] * n
    if named:
        entry = where[rows].tolist()
        names = keys.tolist()
        keyed = [
            str(names[i]) if i >= 0 else f"@{at}" for i, at in zip(entry, found.offset[rows].tolist(), strict=True)
        ]
    header, size = np.where(short, 0, header), np.where(short, 0, size)
    out = Scanned(
        offset=np.concatenate([found.offset[rows], offsets[missing]]),
        header=np.concatenate([header[rows], np.zeros(m, np.int64)]),
        size=np.concatenate([size[rows], np.zeros(m, np.int64)]),
        parts=np.concatenate([found.parts[rows], np.zeros(m, np.int32)]),
        ordinal=np.concatenate([rows, np.full(m, -1)]).astype(np.int32),
        key=keyed + [str(keys[i]) for i in missing],
        label=np.full(n + m, -1, np.int32),
        label_original=[None] * (n + m),
        reason=np.zeros(n + m, np.uint8),
        detail=[None] * (n + m),
        images=[None] * (n + m),
        records=total,
        structural=int(structural.sum()),
    )
    for i in range(n, n + m):
        out.drop(i, "missing", f"the .idx names it at byte {out.offset[i]}, where no record begins")
    usable = np.zeros(n + m, bool)
    usable[:n] = sound[rows] & ~short[rows]
    for i in np.flatnonzero(~usable[:n]).tolist():
        row = rows[i]
        if not sound[row]:
            out.drop(i, "damaged", found.damage[row])
        else:
            want = f"its flag {flag[row]} asks for more labels than" if found.length[row] >= IR_HEADER else "too short:"
            out.drop(i, "undecodable", f"no image record: {want} {found.length[row]} bytes of payload")
    # Views into the window, all at once: this loop meets every image of a set.
    begin = found.offset[rows] - found.start + 8 + header[rows]
    end = begin + size[rows]
    window = found.window
    out.images[:n] = [window[a:b] for a, b in zip(begin.tolist(), end.tolist(), strict=True)]
    for i in np.flatnonzero(~usable[:n] | (found.parts[rows] > 1) | (size[rows] > MAX_ENCODED)).tolist():
        if usable[i] and size[rows[i]] > MAX_ENCODED:
            out.drop(i, "too_large", f"{size[rows[i]]} encoded bytes are more than {MAX_ENCODED}")
        out.images[i] = found.payload(rows[i])[header[rows[i]] :] if out.reason[i] == 0 else None
    _set_labels(out, np.concatenate([label[rows], np.zeros(m, np.float32)]), usable)
    return _in_order(out)


def _image_headers(found: recordio.Records, sound: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns flag (int64), label (float32) and header bytes (int64) of each record; zeros where there is no header."""
    flag, label = np.zeros(len(sound), np.int64), np.zeros(len(sound), np.float32)
    words = found.window[: len(found.window) // 4 * 4].view(np.uint32)
    easy = np.flatnonzero(sound & (found.parts == 1) & (found.length >= IR_HEADER))
    at = (found.offset[easy] - found.start) // 4 + 2
    flag[easy] = words[at]
    vector = (flag[easy] > 0) & (found.length[easy] >= IR_HEADER + 4)
    label[easy] = words[np.where(vector, at + 6, at + 1)].view(np.float32)
    for row in np.flatnonzero(sound & (found.parts > 1) & (found.length >= IR_HEADER)).tolist():
        payload = found.payload(row).tobytes()
        flag[row], label[row] = struct.unpack_from("<If", payload)
        if flag[row] > 0 and len(payload) >= IR_HEADER + 4:
            label[row] = struct.unpack_from("<f", payload, IR_HEADER)[0]
    return flag, label, IR_HEADER + 4 * flag


def _match_index(part: Partition, found: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the partition's .idx entries (offsets, keys), the entry of each record (-1: none), and those left over.

    Args:
        part: the partition.
        found: (N,) int64 offsets of its records, ascending.
    """
    entries = np.load(str(part.table), mmap_mode="r")
    low = 0 if part.start == 0 else np.searchsorted(entries[0], part.start)
    high = entries.shape[1] if part.last else np.searchsorted(entries[0], part.stop)
    offsets, keys = np.array(entries[0, low:high]), np.array(entries[1, low:high])
    where = np.searchsorted(offsets, found)
    hit = where < len(offsets)
    hit[hit] = offsets[where[hit]] == found[hit]
    where = np.where(hit, where, -1)
    left = np.ones(len(offsets), bool)
    left[where[hit]] = False
    return offsets, keys, where, np.flatnonzero(left)


def _set_labels(out: Scanned, label: np.ndarray, usable: np.ndarray) -> None:
    """Fills label and label_original from float32 labels; a label that cannot be an identity drops its row."""
    whole = usable & np.isfinite(label)
    whole[whole] = (label[whole] >= 0) & (label[whole] <= MAX_LABEL) & (label[whole] == np.floor(label[whole]))
    out.label[whole] = label[whole].astype(np.int32)
    names = list(map(str, out.label.tolist()))
    out.label_original = [name if good else None for name, good in zip(names, whole.tolist(), strict=True)]
    for i in np.flatnonzero(usable & ~whole).tolist():
        text = out.label_original[i] = repr(float(label[i]))
        cause = "not finite" if not np.isfinite(label[i]) else "negative" if label[i] < 0 else ""
        cause = cause or ("beyond float32's exact integers" if label[i] > MAX_LABEL else "fractional")
        out.drop(i, "bad_label", f"label {text} is {cause}")


def _in_order(out: Scanned) -> Scanned:
    """Returns the rows sorted by offset; only missing ones can be out of place."""
    if len(out.offset) < 2 or (np.diff(out.offset) >= 0).all():
        return out
    order = np.argsort(out.offset, kind="stable")
    picked = {}
    for name in ("offset", "header", "size", "parts", "ordinal", "label", "reason"):
        picked[name] = getattr(out, name)[order]
    for name in ("key", "label_original", "detail", "images"):
        values = getattr(out, name)
        picked[name] = [values[i] for i in order.tolist()]
    return Scanned(**picked, records=out.records, structural=out.structural)

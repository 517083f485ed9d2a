"""RecordIO without MXNet: the parts of a record, and a writer of the same bytes.

A part is ``u32 magic | u32 cflag << 29 | length | payload | zero pad to 4``. A writer cuts a payload wherever it holds
the magic at a 4-aligned place, so in a valid file every 4-aligned magic word begins a part (dmlc-core recordio.h, and
checked byte by byte against MXNet 1.9.1). recordio_scan.py finds the records of a file.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from faceshards.reading import OpenFile

MAGIC = 0xCED7230A
MAGIC_BYTES = MAGIC.to_bytes(4, "little")
LENGTH_MASK = (1 << 29) - 1
MAX_RECORD = 1 << 29
"""Bytes; a record put together from parts may not be longer than one part can be."""


def join_parts(data: memoryview | bytes, parts: int) -> bytes:
    """Returns the payload of the record that begins at byte 0 of `data`, the magic put back between its parts."""
    pieces, at = [], 0
    for _ in range(parts):
        length = int.from_bytes(data[at + 4 : at + 8], "little") & LENGTH_MASK
        pieces.append(bytes(data[at + 8 : at + 8 + length]))
        at += 8 + (length + 3 & ~3)
    return MAGIC_BYTES.join(pieces)


def read_payload(file: OpenFile, offset: int, length: int, parts: int) -> bytes:
    """Returns the payload of a record that recordio_scan found.

    Args:
        file: open.
        offset: byte of the record's first header.
        length: payload bytes, magic words between parts included.
        parts: number of parts.
    """
    if parts == 1:
        return file.read_at(offset + 8, length)
    # A part adds 8 bytes of header and at most 3 of padding, and leaves out a magic word.
    return join_parts(file.read_at(offset, length + 11 * parts), parts)


class Writer:
    """Writes a .rec and its .idx, byte for byte as MXNet's MXIndexedRecordIO does; a context manager.

    Args:
        path: the .rec; the .idx lies beside it. Both are made anew.

    Raises:
        OSError: the disk refuses, here or later.
    """

    def __init__(self, path: Path) -> None:
        self._rec = open(path, "wb")  # noqa: SIM115 - closed in __exit__
        self._idx = open(path.with_suffix(".idx"), "w", encoding="ascii")  # noqa: SIM115

    def write(self, key: int, label: float | Sequence[float], image: bytes | memoryview) -> int:
        """Returns the byte at which the record begins that holds an image with its label.

        Args:
            key: in the .idx and in the record's header.
            label: a number, or several, as float32.
            image: encoded; may be empty, as in InsightFace's header and identity records.

        Raises:
            ValueError: more bytes than a record can have.
        """
        if isinstance(label, Sequence):
            values = np.array(label, "<f4")
            header = struct.pack("<IfQQ", len(values), 0.0, key, 0) + values.tobytes()
        else:
            header = struct.pack("<IfQQ", 0, label, key, 0)
        offset = self._rec.tell()
        self._idx.write(f"{key}\t{offset}\n")
        self._write(header + bytes(image))
        return offset

    def _write(self, payload: bytes) -> None:
        """Writes a payload, cut wherever it holds the magic at a 4-aligned place, which is left out."""
        if len(payload) >= MAX_RECORD:
            raise ValueError(f"{len(payload)} bytes are more than a record can hold")
        words = np.frombuffer(payload, "<u4", len(payload) // 4)
        begin = 0
        for cut in (4 * np.flatnonzero(words == MAGIC)).tolist():
            self._part(2 if begin else 1, payload[begin:cut])
            begin = cut + 4
        self._part(3 if begin else 0, payload[begin:])

    def _part(self, cflag: int, data: bytes) -> None:
        self._rec.write(struct.pack("<II", MAGIC, cflag << 29 | len(data)) + data + bytes(-len(data) % 4))

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._rec.close()
        self._idx.close()

"""Finds the members of a .tar from its headers alone: a walk that trusts no length, name or checksum.

Each header leads to the next one. Where none stands that should, the bytes up to the next block that is one are lost,
and the walk goes on there: one damaged header costs its own member. What a name says is never used as a path.

Source: POSIX pax and ustar (IEEE Std 1003.1, pax, "ustar Interchange Format"); GNU tar's manual, "Basic Tar Format".
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from faceshards.reading import OpenFile

BLOCK = 512
"""Bytes; headers begin, and contents are filled up, at multiples of it."""

_AHEAD = 1 << 18  # bytes read at once
_MAX_EXTENDED = 1 << 20  # bytes of a pax header or a long name
_MAX_CHAIN = 8  # extended headers before one member; writers make three at most
_LOST = "no header where one should be: the bytes up to the next one are lost"

_KINDS = {
    "1": "a hard link",
    "2": "a symbolic link",
    "3": "a device",
    "4": "a device",
    "5": "a folder",
    "6": "a named pipe",
    "S": "a sparse file",
    "M": "the rest of a file of another volume",
}
_EMPTY = frozenset("123456")  # types without contents, whatever their size says
_PAX, _PAX_OF_ALL, _LONG_NAME, _LONG_LINK = "xX", "g", "L", "K"
_EXTENDED = frozenset(_PAX + _PAX_OF_ALL + _LONG_NAME + _LONG_LINK)
_SPARSE = b"GNU.sparse."
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_RECORD = re.compile(rb"([0-9]{1,7}) ")


class Member(NamedTuple):
    """One member of an archive, or a damaged place."""

    offset: int  # byte of its first header
    name: str  # as written, what is no UTF-8 or would not print as \x..; "" where it cannot be read
    kind: str  # "" for a plain file, else what it is, in words
    data: int  # byte where its contents begin
    size: int  # bytes of its contents
    damage: str  # why it cannot be believed; "" if it can
    archive: int  # how many ends lie before it: more than 0 where archives were joined by cat


class _Header(NamedTuple):
    name: bytes
    type: str
    size: int
    extended: bool  # GNU's sparse header goes on in the next block


class Tar:
    """An open .tar.

    Args:
        file: open.
        size: bytes of it that are looked at; None: all.

    Attributes:
        ended: whether the last member that was met is followed by an end; one that was cut between members is not.
    """

    def __init__(self, file: OpenFile, size: int | None = None) -> None:
        self.ended = False
        self._file, self._size = file, file.size if size is None else size
        self._start, self._window, self._archive = 0, b"", 0

    def read(self, start: int, size: int) -> bytes:
        """Returns bytes of the file; fewer only at its end. For members as they are met: it reads ahead."""
        at = start - self._start
        if at < 0 or at + size > len(self._window):
            self._start, self._window, at = start, self._file.read_at(start, max(size, _AHEAD)), 0
        return self._window[at : at + size]

    def members(self) -> Iterator[Member]:
        """Yields every member and every damaged place, in order.

        Raises:
            OSError: the file cannot be read.
        """
        at = 0
        while at < self._size:
            block = self.read(at, BLOCK)
            if not block.strip(b"\0"):
                self.ended = True
                at = self._behind_zeros(at)
                self._archive += 1
                continue
            self.ended = False
            at, member = self._member(at)
            if member:
                yield member

    def _member(self, first: int) -> tuple[int, Member | None]:
        """Returns where the walk goes on, and the member whose first header is at a byte; None for what is none."""
        at, name = first, b""
        pax: dict[bytes, bytes] = {}
        for _ in range(_MAX_CHAIN):
            header = _parse(self.read(at, BLOCK))
            if header is None:
                short = self._size - at < BLOCK
                return self._broken(first, at, f"cut off: the file ends at byte {self._size}" if short else _LOST)
            data = at + BLOCK
            if header.type not in _EXTENDED:
                return self._described(first, data, header, name, pax)
            if not 0 <= header.size <= min(_MAX_EXTENDED, self._size - data):
                return self._broken(first, data, f"its extended header would be of {header.size} bytes")
            content, at = self.read(data, header.size), _filled(data + header.size)
            if header.type == _LONG_NAME:
                name = content.split(b"\0", 1)[0]
            elif header.type in _PAX:
                records = _records(content)
                if records is None:
                    return self._broken(first, at, "its extended header is broken")
                pax.update(records)
            elif header.type == _PAX_OF_ALL and not (name or pax):
                return at, None  # mostly a comment; names and sizes are each member's own
        return self._broken(first, at, f"more than {_MAX_CHAIN} extended headers in a row")

    def _described(
        self, first: int, data: int, header: _Header, name: bytes, pax: dict[bytes, bytes]
    ) -> tuple[int, Member]:
        """Returns where the walk goes on, and the member of a header with what extended ones say of it."""
        name = pax.get(b"GNU.sparse.name") or pax.get(b"path") or name or header.name
        kind = "" if header.type in "0\0" + "7" else _KINDS.get(header.type, f"of the type {header.type!r}")
        size = header.size
        if header.type in _EMPTY or (header.type == "\0" and name.endswith(b"/")):
            kind, size = kind or _KINDS["5"], 0
        elif b"size" in pax:
            if not re.fullmatch(rb"[0-9]{1,18}", pax[b"size"]):
                return self._broken(first, data, "its extended header has no number as its size")
            size = int(pax[b"size"])
        if any(key.startswith(_SPARSE) for key in pax):
            kind = _KINDS["S"]
        extended = header.extended
        while extended:
            more = self.read(data, BLOCK)
            data += BLOCK
            extended = len(more) == BLOCK and more[504] != 0
        if not 0 <= size <= self._size - data:
            cause = f"cut off: its contents should end at byte {data + size}, the file ends at {self._size}"
            return self._broken(first, data, cause if size >= 0 else f"a size of {size} bytes", name)
        return _filled(data + size), Member(first, _text(name), kind, data, size, "", self._archive)

    def _broken(self, first: int, at: int, cause: str, name: bytes = b"") -> tuple[int, Member]:
        """Returns where the walk finds its way again, from a byte on, and the damaged place behind it."""
        place = Member(first, _text(name), "", first, 0, cause, self._archive)
        return self._next_header(max(at, first + BLOCK)), place

    def _next_header(self, at: int) -> int:
        """Returns the first block from a byte on that is a header, or the end of the file."""
        at = _filled(at)
        while at < self._size:
            window = self._file.read_at(at, _AHEAD)
            blocks = np.frombuffer(window, np.uint8, len(window) // BLOCK * BLOCK).reshape(-1, BLOCK)
            marked = (blocks[:, 257:262] == np.frombuffer(b"ustar", np.uint8)).all(1)
            for row in np.flatnonzero(marked).tolist():
                if _parse(window[row * BLOCK : (row + 1) * BLOCK]):
                    return at + row * BLOCK
            if not len(blocks):
                break
            at += len(blocks) * BLOCK
        last = self._file.read_at(max(0, self._size - 2 * BLOCK), 2 * BLOCK)
        self.ended = len(last) == 2 * BLOCK and not last.strip(b"\0")
        return self._size

    def _behind_zeros(self, at: int) -> int:
        """Returns the first block from a byte on that is not empty, or the end of the file."""
        while at < self._size:
            window = self.read(at, min(_AHEAD, self._size - at))
            if rest := window.lstrip(b"\0"):
                return at + (len(window) - len(rest)) // BLOCK * BLOCK
            if not window:
                break
            at += len(window)
        return self._size


def _parse(block: bytes) -> _Header | None:
    """Returns what a header says; None if it is none, or a damaged one."""
    if len(block) < BLOCK:
        return None
    said = _number(block[148:156])
    # Adler-32's low half is 1 + the sum of the bytes modulo 65521, which 256 bytes cannot reach.
    total = (zlib.adler32(block[:256]) & 0xFFFF) + (zlib.adler32(block[256:]) & 0xFFFF) - 2
    total += 8 * 32 - sum(block[148:156])  # the field itself counts as blanks
    if said != total:
        # Old writers added up signed bytes.
        high = sum(byte > 127 for byte in block[:148] + block[156:])
        if not high or said != total - 256 * high:
            return None
    size = _number(block[124:136])
    if size is None:
        return None
    name = block[:100].split(b"\0", 1)[0]
    kind = chr(block[156])
    if block[257:263] == b"ustar\0" and block[345] and kind not in "LKS":
        name = block[345:500].split(b"\0", 1)[0] + b"/" + name
    return _Header(name, kind, size, kind == "S" and block[482] != 0)


def _number(field: bytes) -> int | None:
    """Returns a number as headers write it, in octal or, beyond that, base 256; None for neither."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big") - (256 ** (len(field) - 1) if field[0] == 0xFF else 0)
    digits = field.split(b"\0", 1)[0].strip()
    if digits.strip(b"01234567"):
        return None
    return int(digits or b"0", 8)


def _records(data: bytes) -> dict[bytes, bytes] | None:
    """Returns the records of a pax header that matter here, each "LENGTH KEY=VALUE" and a line feed; None if broken."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(data) and data[at]:
        head = _RECORD.match(data, at)
        if head is None or not head.end() < at + int(head[1]) <= len(data):
            return None
        key, equals, value = data[head.end() : at + int(head[1]) - 1].partition(b"=")
        at += int(head[1])
        if not equals or not key or data[at - 1] != 0x0A:
            return None
        if key in (b"path", b"size") or key.startswith(_SPARSE):
            found[key] = value
    return found


def _filled(at: int) -> int:
    """Returns the next multiple of BLOCK."""
    return -(-at // BLOCK) * BLOCK


def _text(name: bytes) -> str:
    """Returns a name as text that a table can hold and a terminal show."""
    text = name.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)

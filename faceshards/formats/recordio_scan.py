"""Finds the records of a .rec: a vectorised scan that trusts nothing it has not checked.

Every 4-aligned magic word of a valid file begins a part. Whether a part is sound therefore depends only on itself and
on the part that follows, never on what came before: any byte range can be scanned alone, damage ends at the next magic
word, and the result is the same however the file is cut into ranges.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from faceshards.formats.recordio import LENGTH_MASK, MAGIC, MAGIC_BYTES, MAX_RECORD, join_parts
from faceshards.reading import OpenFile, open_file
from faceshards.storage.location import Location

AHEAD = 1 << 16
"""Bytes before and behind a range that are read along."""

_LOST = "no record header where one should be: the bytes up to the next one are lost"


@dataclass(frozen=True)
class Records:
    """What a byte range of a .rec holds, one row per record or damaged place, in file order.

    Args:
        offset: (N,) int64, byte of the first header.
        length: (N,) int64, payload bytes; 0 where damaged.
        parts: (N,) int32, number of parts.
        damage: row -> cause in words; rows not in it are sound.
        start: byte of the file at which `window` begins.
        window: bytes of the range and as much of what follows as its last record needs.
    """

    offset: np.ndarray
    length: np.ndarray
    parts: np.ndarray
    damage: dict[int, str]
    start: int
    window: np.ndarray  # (bytes,) uint8

    def payload(self, row: int) -> np.ndarray:
        """Returns the payload of a sound row, (length,) uint8; a view, unless it was cut into parts."""
        at = int(self.offset[row]) - self.start
        if self.parts[row] == 1:
            return self.window[at + 8 : at + 8 + int(self.length[row])]
        return np.frombuffer(join_parts(self.window[at:].data, int(self.parts[row])), np.uint8)


class Row(NamedTuple):
    """One record, or damaged place, that is not a plain record of one part."""

    offset: int  # byte of the first header
    length: int  # payload bytes; 0 where damaged
    parts: int
    damage: str  # cause in words, "" for a sound record


def scan(path: Location, start: int, stop: int, file: OpenFile | None = None) -> Records:
    """Returns the records whose first header lies in [start, stop).

    Sound means: every part ends exactly where the next one begins or at the end of the file, no magic word inside,
    zero padding, and continuation flags in order. A part followed by something else is believed only if that
    something is plainly a header with a broken magic, or one cut off by the end of the file.

    Args:
        path: the .rec file.
        start: first byte, a multiple of 4.
        stop: end of the range, a multiple of 4 or the size of the file.
        file: the same, if it is open.

    Raises:
        OSError: the file cannot be read.
    """
    with nullcontext(file) if file else open_file(path) as opened:
        return _Scanner(opened, start, stop).scan()


class _Scanner:
    """One range of one open file."""

    def __init__(self, file: OpenFile, start: int, stop: int) -> None:
        self.file, self.size, self.start, self.stop = file, file.size, start, min(stop, file.size)
        # What precedes the range in the same read: mostly a record that ends in it began there.
        begin = max(0, start - AHEAD)
        both = memoryview(_read(file, begin, max(start, self.stop) + AHEAD - begin))
        self.before, self.window = both[: start - begin], both[start - begin :]
        self.position, self.cflag, self.length = self._headers(start, self.stop)
        self._extend()
        self.end = self.position + 8 + (self.length + 3 & ~3)
        self.following = np.append(self.position[1:], np.int64(-1))[: len(self.position)]  # -1: none in the window
        self.zero_padded = self._zero_padded()

    def scan(self) -> Records:
        """Returns the rows that lie in the range."""
        good, odd = self._rows()
        odd = [*self._hole_before(), *(row for row in odd if row.offset < self.stop)]
        offset = np.concatenate([self.position[good], np.array([row.offset for row in odd], np.int64)])
        length = np.concatenate([self.length[good], np.array([row.length for row in odd], np.int64)])
        parts = np.concatenate([np.ones(len(good), np.int32), np.array([row.parts for row in odd], np.int32)])
        order = np.argsort(offset, kind="stable")
        causes = {row: odd[order[row] - len(good)].damage for row in np.flatnonzero(order >= len(good)).tolist()}
        damage = {row: cause for row, cause in causes.items() if cause}
        window = np.frombuffer(self.window, np.uint8)
        return Records(offset[order], length[order], parts[order], damage, self.start, window)

    def _rows(self) -> tuple[np.ndarray, list[Row]]:
        """Returns the parts that are plain records, all at once, and the odd ones part by part.

        A hole behind the last record may lie behind the range.
        """
        whole = (self.end == self.following) | ((self.end == self.size) & (self.following < 0))
        next_begins = ~np.append(np.isin(self.cflag[1:], (2, 3)), False)[: len(whole)]
        plain = (self.cflag == 0) & whole & next_begins & self.zero_padded
        odd: list[Row] = []
        if self.start == 0 and self.size and not (len(self.position) and self.position[0] == 0):
            odd.append(Row(0, 0, 0, _LOST))
        done = 0
        for i in np.flatnonzero(~plain).tolist():
            if i >= done and self.position[i] < self.stop:
                done = self._walk(i, odd)
        return np.flatnonzero(plain & (self.position < self.stop)), odd

    def _hole_before(self) -> list[Row]:
        """Returns the row of a hole that begins in this range, behind a record of an earlier one; mostly none."""
        first = int(self.position[0]) if len(self.position) else -1
        goes_on = first >= 0 and self.cflag[0] in (2, 3)  # the earlier record may end in this range
        if first == self.start and not goes_on:
            return []
        _, end = self._part_before(self.start)
        if not self.start <= end < self.stop or (first == end and not goes_on):
            return []
        stop = self.start
        while stop > 0:
            begin = max(0, stop - AHEAD)
            good, odd = _Scanner(self.file, begin, stop)._rows()
            if len(good) or odd:
                return [row for row in odd[-1:] if self.start <= row.offset < self.stop]
            stop = begin
        return []

    def _reach(self, end: int) -> None:
        """Makes the window reach byte `end` or the end of the file, and further, so that it seldom grows twice."""
        have = self.start + len(self.window)
        if have < min(end, self.size):
            ahead = max(AHEAD, len(self.window) // 16)  # in proportion, or a long record takes quadratic time
            self.window = memoryview(b"".join([self.window, _read(self.file, have, end + ahead - have)]))

    def _headers(self, begin: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns offset (int64), cflag (uint32) and length (int64) of each whole part header in [begin, stop)."""
        self._reach(stop + 4)
        words = np.frombuffer(self.window, np.uint32, len(self.window) // 4)[(begin - self.start) // 4 :]
        at = np.flatnonzero(words[: max(0, stop - begin + 3) // 4] == MAGIC)
        if len(at) and at[-1] + 1 == len(words):
            at = at[:-1]  # the file ends within this header
        lrec = words[at + 1]
        return at.astype(np.int64) * 4 + begin, lrec >> 29, (lrec & LENGTH_MASK).astype(np.int64)

    def _extend(self) -> None:
        """Reads on behind the range until its last record is complete and the header after it is known."""
        while len(self.position):
            last, cflag = int(self.position[-1]), int(self.cflag[-1])
            end = last + 8 + (int(self.length[-1]) + 3 & ~3)
            if last >= self.stop and (cflag not in (2, 3) or end - self.stop > MAX_RECORD):
                return
            if self._judge(end, -1)[0]:
                return  # it leads nowhere: nothing behind it can be its own
            # All that the window holds: one by one, a record in very many parts would take quadratic time.
            found = self._headers(last + 4, max(end + 4, (self.start + len(self.window) & ~3) - 4))
            if not len(found[0]):
                return
            self.position, self.cflag, self.length = (
                np.concatenate(both) for both in zip((self.position, self.cflag, self.length), found, strict=True)
            )

    def _zero_padded(self) -> np.ndarray:
        """Returns (parts,) bool: the padding is zero, as every writer leaves it; if not, the length is wrong."""
        words = np.frombuffer(self.window, np.uint32, len(self.window) // 4)
        pad = (self.end - self.position - 8 - self.length).astype(np.uint32)  # 0..3 bytes
        at = (self.end - self.start) // 4 - 1
        last = words[np.minimum(at, len(words) - 1)] if len(words) else np.zeros(0, np.uint32)
        return (pad == 0) | (at >= len(words)) | (last >> (8 * (4 - pad) % 32) == 0)

    def _walk(self, i: int, rows: list[Row]) -> int:
        """Adds the record that begins with part `i`, or its damage, to `rows`; returns the first part behind it."""
        j = i
        while self.cflag[j] in (1, 2) and self.end[j] == self.following[j] and self.cflag[j + 1] in (2, 3):
            j += 1
        flags = self.cflag[i : j + 1].tolist()
        if i == 0 and flags[0] in (2, 3) and self._is_attached(int(self.position[0])):
            return j + 1  # belongs to a record that begins in an earlier range
        cause, gap = self._judge(int(self.end[j]), int(self.following[j]))
        size = int(self.length[i : j + 1].sum()) + 4 * (j - i)
        if flags != ([0] if i == j else [1, *[2] * (j - i - 1), 3]):
            cause = cause or f"its parts carry the continuation flags {str(flags[:6])[1:-1]}"
        elif not cause and not gap and j + 1 < len(self.cflag) and self.cflag[j + 1] in (2, 3):
            cause = "a part follows that continues no record"
        elif not cause and not self.zero_padded[i : j + 1].all():
            cause = "the padding is not zero, so the length is wrong"
        elif not cause and size > MAX_RECORD:
            cause = f"{size} bytes in {len(flags)} parts are more than a record can hold"
        if cause:
            rows.append(Row(int(self.position[i]), 0, j + 1 - i, cause))
        else:
            rows.append(Row(int(self.position[i]), size, j + 1 - i, ""))
            if gap:
                rows.append(Row(int(self.end[j]), 0, 0, _LOST))
        return j + 1

    def _judge(self, end: int, following: int) -> tuple[str, bool]:
        """Returns why a part that ends at `end` cannot be believed ('' if it can), and if damage follows it.

        Args:
            end: where the part ends by its own length.
            following: where the next known magic word is, -1 if there is none in the window.
        """
        if end > self.size:
            return f"truncated: it should end at byte {end}, the file ends at {self.size}", False
        gap = False
        if end < self.size and end != following:
            head = self._peek(end, 8)
            if head[:4] == MAGIC_BYTES[: len(head)]:
                gap = len(head) < 8  # the file ends within a header
            elif len(head) == 8:
                guess = end + 8 + ((int.from_bytes(head[4:], "little") & LENGTH_MASK) + 3 & ~3)
                gap = guess == self.size or (guess < self.size and self._peek(guess, 4) == MAGIC_BYTES)
            if not gap and head[:4] != MAGIC_BYTES[: len(head)]:
                return f"no record begins where this one ends, at byte {end}", False
        if 0 <= following < end:
            return f"another record begins at byte {following}, before this one ends at {end}", False
        return "", gap

    def _peek(self, at: int, count: int) -> bytes | memoryview:
        """Returns a few bytes of the file, mostly of the window."""
        begin = at - self.start
        if 0 <= begin <= len(self.window) - count:
            return self.window[begin : begin + count]
        return self.file.read_at(at, count)

    def _is_attached(self, position: int) -> bool:
        """Returns whether the continuation part at `position` follows a part that asks for one."""
        cflag, end = self._part_before(position)
        return cflag in (1, 2) and end == position

    def _part_before(self, position: int) -> tuple[int, int]:
        """Returns cflag and end of the last part that begins before `position`; (0, -1) if none could reach it."""
        block, stop = 1 << 16, position
        while stop > 0 and position - stop <= MAX_RECORD:
            begin = max(0, stop - block)
            words = np.frombuffer(self._read_before(begin, stop), np.uint32)
            at = np.flatnonzero(words == MAGIC)
            if len(at):
                last, before = int(at[-1]) + 1, begin + 4 * int(at[-1])
                lrec = int(words[last]) if last < len(words) else int.from_bytes(self._peek(before + 4, 4), "little")
                return lrec >> 29, before + 8 + ((lrec & LENGTH_MASK) + 3 & ~3)
            stop = begin
        return 0, -1

    def _read_before(self, begin: int, stop: int) -> bytes | memoryview:
        """Returns the bytes [begin, stop) of the file, mostly of those that precede the range."""
        at = begin - (self.start - len(self.before))
        return (
            self.before[at : at + stop - begin]
            if at >= 0 and stop <= self.start
            else _read(self.file, begin, stop - begin)
        )


def _read(file: OpenFile, offset: int, size: int) -> bytes:
    """Returns up to `size` bytes; fewer only at the end of the file (one read gives at most 2 GiB)."""
    pieces = []
    while size > 0 and (piece := file.read_at(offset, min(size, 1 << 30))):
        pieces.append(piece)
        offset += len(piece)
        size -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)

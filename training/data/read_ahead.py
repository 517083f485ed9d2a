"""What the system is told of files before they are read: to read a run of them ahead, or to keep it no longer."""

from __future__ import annotations

import os

# Linux reads at most so much for one piece of advice: a device's readahead, 128 KiB unless somebody raised it.
_STEP = 128 << 10


def will_read(handle: int, start: int, end: int) -> None:
    """Has the system read a run of an open file into memory, front to back; may wait for the device's queue."""
    for at in range(start, end, _STEP):
        os.posix_fadvise(handle, at, min(_STEP, end - at), os.POSIX_FADV_WILLNEED)


def have_read(handle: int, start: int, end: int) -> None:
    """Has the system keep a run of an open file in memory no longer."""
    os.posix_fadvise(handle, start, end - start, os.POSIX_FADV_DONTNEED)


def too_large(count: int) -> bool:
    """Returns whether the system could not keep so many bytes of files in memory, and would read them again anyway."""
    return 2 * count > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

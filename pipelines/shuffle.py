"""How images get from the order of a source into that of the shards: two forms, which give the same bytes.

`direct` reads each image from the source when its shard is written: at random, once. `spill` reads the source from
front to back and carries the images through the work folder (stages/origins.py): they take their room there once more.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from faceshards.files import bytes_text
from faceshards.storage.location import StoredPath, as_location

FORMS = ("auto", "direct", "spill")

# File systems whose reads cross a network; every fuse.* besides.
_REMOTE = {
    *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "fuse", "fuseblk", "gfs2", "glusterfs", "gpfs"),
    *("lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "virtiofs", "wekafs"),
}
_MOUNTS, _DEVICES = Path("/proc/self/mountinfo"), Path("/sys/dev/block")


def spills(asked: str, paths: Iterable[str]) -> bool:
    """Returns whether images are carried through the work folder.

    Args:
        asked: of FORMS; "auto" does so if a source is in a bucket, on a network or on a disk that turns.
        paths: of the sources.
    """
    return asked == "spill" or (asked == "auto" and any(map(is_slow, paths)))


def carried(count: int) -> str:
    """Returns how much of a build's room the images take that are carried through the work folder.

    Args:
        count: bytes; 0 if none are.
    """
    return f", {bytes_text(count)} of them to carry the images; --shuffle direct needs none of these" if count else ""


def is_slow(path: str) -> bool:
    """Returns whether reads at random places of a source are slow: over a network, or on a disk that turns.

    What cannot be found out is taken for fast.
    """
    if isinstance(as_location(path), StoredPath):
        return True
    try:
        mount = _mount(os.path.realpath(path), _MOUNTS.read_bytes())
        if mount is None:
            return False
        if mount.kind in _REMOTE or mount.kind.startswith("fuse."):
            return True
        device = os.stat(path).st_dev
        if not _of(device).exists():  # btrfs has numbers of its own
            device = os.stat(mount.device).st_rdev
        return _turns(_of(device).resolve(strict=True))
    except OSError:
        return False


class _Mount(NamedTuple):
    """A mounted file system."""

    kind: str
    device: str  # its path, or whatever the kind says of what is mounted


def _mount(path: str, table: bytes) -> _Mount | None:
    """Returns the file system that a path without links lies on.

    Args:
        path: absolute.
        table: as /proc/self/mountinfo has it; of two at one place the later hides the earlier.
    """
    found, longest = None, -1
    for line in table.splitlines():
        about, _, rest = line.partition(b" - ")
        fields, named = about.split(b" "), rest.split(b" ")
        if len(fields) < 5 or len(named) < 2:
            continue
        place = _plain(fields[4])
        if longest <= len(place) and (place == "/" or path == place or path.startswith(f"{place}/")):
            found, longest = _Mount(_plain(named[0]), _plain(named[1])), len(place)
    return found


def _plain(field: bytes) -> str:
    """Returns a field of the table: blanks and the like are octal numbers in it."""
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), field))


def _of(device: int) -> Path:
    return _DEVICES / f"{os.major(device)}:{os.minor(device)}"


def _turns(device: Path) -> bool:
    """Returns whether a block device, by its folder in /sys, is a disk that turns, or made of one.

    Virtual disks of KVM are not believed: most say so whatever they are made of.
    """
    if below := [*device.glob("slaves/*")]:  # LVM, RAID, encryption
        return any(_turns(part.resolve()) for part in below)
    if "virtio" in str(device):
        return False
    about = next((at for at in (device, device.parent) if (at / "queue").is_dir()), device)  # a partition has no queue
    return (about / "queue" / "rotational").read_text().strip() == "1"

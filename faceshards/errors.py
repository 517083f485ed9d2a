"""The errors a user can meet, each one line that names the file, the place and the cause."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable

# C0 but tab and newline, DEL, C1, what turns the direction of writing, and the halves of surrogate pairs that stand for
# bytes of a file's name: terminals obey the former, and nothing can write the latter.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

_typed: dict[str, str] = {}  # addresses, by the folders of this machine that stand for them


def stands_for(folder: object, address: object) -> None:
    """Has as_typed() know that a folder of temporary files has what its user knows by an address."""
    _typed[str(folder)] = str(address)


def as_typed(text: object) -> str:
    """Returns a text, or a path, with the address in place of each folder that stands for one."""
    found = str(text)
    for folder, address in _typed.items():
        found = found.replace(folder, address)
    return found


# Of an address: what stands before its @, if a colon is in it, and after its ?.
_CREDENTIALS = re.compile(
    r"""([A-Za-z][A-Za-z0-9+.-]*:/+)(?:[^\s/@:'"]*:[^\s@'"]*(?=@)|([^\s?'"]*\?)[^\s/'"]*=[^\s'"]*)"""
)


def discreet(text: str) -> str:
    """Returns a text with ... in place of credentials in the addresses that it quotes."""
    return _CREDENTIALS.sub(lambda found: f"{found[1]}{found[2] or ''}...", text)


def harmless(text: str) -> str:
    """Returns a text with its control characters as their codes: \\x1b, and as JSON has them where it may hold them."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}" if found[0] < " " else f"\\u{ord(found[0]):04x}", text)


def one_line(text: str) -> str:
    """Returns a text without control characters, and with its newlines as \\n."""
    return harmless(text).replace("\n", "\\n")


def first_few(things: Iterable[str]) -> str:
    """Returns the first three of a list for a message, and how many there are more."""
    found = list(things)
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def disk_full(error: OSError) -> bool:
    """Returns whether an error of the system is that of a full disk, or of a user's share of it."""
    short = error.errno is None and " requested and " in str(error)  # how NumPy says that a write was cut short
    return short or error.errno in (errno.ENOSPC, errno.EDQUOT)


def why(error: OSError) -> str:
    """Returns the cause of an error of the system, for a message that names the file."""
    return "disk full; free some space" if disk_full(error) else str(error.strerror or error)


class FaceshardsError(Exception):
    """Something is wrong with the input, the request or the machine; the message is one line for the user."""


class SourceError(FaceshardsError):
    """A source set is missing, empty or cannot be read."""


class ConfigError(FaceshardsError):
    """A configuration has an unknown key or a value out of range."""


class ShardError(FaceshardsError):
    """A MindRecord shard cannot be written, or what is on disk is not what was written.

    Args:
        path: the shard's file, or its address.
        cause: what is wrong, without the file's name.
        errno: of the OSError behind it, 0 if there is none.
    """

    def __init__(self, path: object, cause: str, errno: int = 0) -> None:
        super().__init__(f"{path}: {cause}")
        self.path = str(path)
        self.cause = cause
        self.errno = errno

    def __reduce__(self) -> tuple[type[ShardError], tuple[str, str, int]]:
        return type(self), (
            self.path,
            self.cause,
            self.errno,
        )  # the default would lose an argument on the way from a worker


class BuildError(FaceshardsError):
    """A build cannot start, go on or be published."""


class EmptyDatasetError(BuildError):
    """Every record was dropped; the same build can only end the same way."""


class UnsoundError(BuildError):
    """The sources of a build that has to be strict are not sound."""


class WeightsError(FaceshardsError):
    """Weights do not belong to the backbone."""

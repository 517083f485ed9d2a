"""What can go wrong with a store, each in one line; nothing of a secret is in any of them."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from faceshards.errors import FaceshardsError

_DENIED = "access denied{}; check the credentials ({})"
_VARIABLES = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "GOOGLE_SERVICE_ACCOUNT",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
"""That hold credentials, by the scheme of addresses."""

_LONGEST = 200  # characters of what a server says


class StorageError(FaceshardsError, OSError):
    """A store refuses, or does not answer. It is an OSError too: whoever reads files is told as of a disk.

    Args:
        number: errno.
        cause: what is wrong, without the address.
        where: the address.
    """

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


class MissingError(StorageError, FileNotFoundError):
    """There is no such object."""


class TakenError(StorageError, FileExistsError):
    """There is an object already, and it was to be made."""


@contextmanager
def told(where: object) -> Iterator[Any]:
    """Yields obstore; what it raises is told as a StorageError about an address."""
    try:
        import obstore
        from obstore.exceptions import BaseError
    except ModuleNotFoundError:
        raise StorageError(
            errno.ENOPKG, "needs obstore, which is not installed: pip install 'faceshards[s3]'", str(where)
        ) from None
    try:
        yield obstore
    except StorageError:
        raise
    except (BaseError, OSError, ValueError) as error:
        raise _explained(error, str(where)) from None


def _explained(error: Exception, where: str) -> StorageError:
    """Returns what an error of obstore's says, in few words."""
    from obstore import exceptions

    text, _, debug = str(error).partition("\n\nDebug source")
    found = re.search(r"<Code>(\w+)</Code>", text)
    code = found[1] if found else ""
    status = re.search(r"status code: (\d+)", text)
    if code == "NoSuchBucket":
        return no_bucket(where)
    if isinstance(error, FileNotFoundError):
        return MissingError(errno.ENOENT, "no such object", where)
    if isinstance(error, exceptions.AlreadyExistsError):
        return TakenError(errno.EEXIST, "is there already", where)
    if isinstance(error, exceptions.PreconditionError):
        return StorageError(errno.ESTALE, "was replaced while it was read", where)
    if re.search(r"169\.254\.|Missing (AccessKeyId|SecretAccessKey)", text):
        return no_credentials(where)
    denied = isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError)
    if denied or (status and status[1] in ("401", "403")):
        return StorageError(errno.EACCES, _DENIED.format(f" ({code})" if code else "", _variables(where)), where)
    if status is None and "HTTP error" in text:
        return StorageError(errno.EIO, _unanswered(text, debug), where)
    if status is not None:
        said = re.search(r"<Message>(.*?)</Message>", text, re.DOTALL)
        words = f"{code}: {said[1]}" if said else code or re.sub(r"^.*?status code: ", "", text.replace("\n", " "))
        return StorageError(errno.EIO, f"the server says {status[1]} {_short(words)}{_retries(text)}", where)
    return StorageError(errno.EIO, _short(text), where)


def no_bucket(where: str) -> StorageError:
    """Returns that a bucket is missing; it is no MissingError: nothing can be made there either."""
    return StorageError(errno.ENXIO, "no such bucket", where)


def no_credentials(where: str) -> StorageError:
    """Returns that there are no credentials."""
    public = ", or AWS_SKIP_SIGNATURE=true for a public bucket" if where.startswith("s3:") else ""
    return StorageError(errno.EACCES, f"no credentials: set {_variables(where)}{public}", where)


def _variables(where: str) -> str:
    return _VARIABLES.get(where.partition(":")[0], "")


def _unanswered(text: str, debug: str) -> str:
    """Returns that a server did not answer, which one, and why."""
    server = re.search(r"https?://[^/\s]+", text)
    causes = re.findall(r'(?:message|error): "([^"\\]+)"', debug)
    timed_out = "TimedOut" in debug
    why = "timed out" if timed_out else causes[-1] if causes else "the connection was lost"
    return f"{server[0] if server else 'the server'} does not answer: {why}{_retries(text)}"


def _retries(text: str) -> str:
    """Returns how often and how long it was tried."""
    found = re.search(r" in ([\d.]+)(\S*?), after (\d+) retries", text)
    return f" (tried {int(found[3]) + 1} times in {float(found[1]):.3g} {found[2]})" if found else ""


def _short(text: str) -> str:
    """Returns a text on one line, cut, without the queries of addresses, which may hold a signature."""
    return " ".join(re.sub(r"\?\S*", "", text).split())[:_LONGEST]

"""What can go wrong with a store, each in one line; nothing of a secret is in any of them."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from faceshards.errors import FaceshardsError

_DENIED = "access denied by {}{}; check the credentials ({})"
_VARIABLES = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "GOOGLE_SERVICE_ACCOUNT",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
"""That hold credentials, by the scheme of addresses."""

_LONGEST = 200  # characters of what a server says

_NAMES = "names may hold no control character, and between slashes be neither empty nor . or ..: rename it"
"""What obstore wants of keys."""

_OURS_TO_REPEAT = re.compile(
    r"BadDigest|XAmzContentSHA256Mismatch|IncompleteBody|RequestTimeout|ConditionalRequestConflict|OperationAborted"
)
"""Codes of S3 for what may do when it is asked again, and which obstore does not repeat."""

_NO_ANSWER_OF_A_STORE = re.compile(
    r"non-partial response|Content-Range|Requested \d+\.\.|list response|extract metadata|(ETag|Last-Modified) Header"
)
"""What obstore says of answers that are none of an object store's."""


class StorageError(FaceshardsError):
    """A store refuses, or does not answer. It is no OSError, from which one goes on with the next file: it is of all.

    Args:
        number: errno.
        cause: what is wrong, without the address.
        where: the address.
    """

    errno: int | None
    strerror: str | None
    filename: Any

    def __init__(self, number: int | None, cause: str | None, where: Any) -> None:
        super().__init__(number, cause, where)
        self.errno, self.strerror, self.filename = number, cause, where

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


class MissingError(StorageError, FileNotFoundError):
    """There is no such object; that is as of a file."""


class TakenError(StorageError, FileExistsError):
    """There is an object already, and it was to be made."""


class PassingError(StorageError):
    """What may do when it is asked again: an answer that was damaged on its way, or did not come."""


class DamagedError(ValueError):
    """An answer is not what a store says; told() tells it as a PassingError."""


@contextmanager
def told(where: object, server: str = "") -> Iterator[Any]:
    """Yields obstore; what it raises, or a DamagedError, is told as a StorageError.

    Args:
        where: the address.
        server: who is asked; "" if the address says it.
    """
    try:
        import obstore
        from obstore.exceptions import BaseError
    except ModuleNotFoundError:
        raise StorageError(
            errno.ENOPKG, "needs obstore, which is not installed: pip install 'faceshards[s3]'", str(where)
        ) from None
    began = time.monotonic()
    try:
        yield obstore
    except StorageError:
        raise
    except (BaseError, OSError, ValueError) as error:
        raise _explained(error, str(where), server or "the server", time.monotonic() - began) from None


def _explained(error: Exception, where: str, server: str, took: float) -> StorageError:
    """Returns what an error of obstore's says, in few words; it took so many seconds."""
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
    if isinstance(error, exceptions.PreconditionError) or (status and status[1] == "412"):
        return StorageError(errno.ESTALE, "was replaced while it was read", where)
    if re.search(r"169\.254\.|Missing (AccessKeyId|SecretAccessKey)|Account must be specified", text):
        return no_credentials(where)
    if bad := re.search(r'invalid path: .*?Path "(.*?)"(: | contained)', text, re.DOTALL):
        return StorageError(errno.EINVAL, f"holds an object named {bad[1]!r}; {_NAMES}", where)
    denied = isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError)
    if denied or (status and status[1] in ("401", "403")):
        return StorageError(
            errno.EACCES, _DENIED.format(server, f" ({code})" if code else "", _variables(where)), where
        )
    if status is None and "HTTP error" in text:
        once = "retries: 0" in debug or "list response" in text
        kind = PassingError if once else StorageError
        return kind(errno.EIO, _unanswered(text, debug, server, took), where)
    if isinstance(error, DamagedError) or (status is None and _NO_ANSWER_OF_A_STORE.search(text)):
        words = _short(re.sub(r"^Generic \w+ error: ", "", text))
        return PassingError(errno.EIO, f"{server} answers unlike an object store: {words}", where)
    if status and status[1] == "416":
        return StorageError(errno.ERANGE, "has no such bytes", where)
    if status is not None:
        said = re.search(r"<Message>(.*?)</Message>", text, re.DOTALL)
        words = f"{code}: {said[1]}" if said else code or _phrase(int(status[1]))
        passes = _OURS_TO_REPEAT.fullmatch(code) or (status[1] == "400" and not code)  # to a HEAD it has no words
        kind = PassingError if passes else StorageError
        return kind(errno.EIO, f"{server} says {status[1]} {_short(words)}{_retries(text)}", where)
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


def _unanswered(text: str, debug: str, server: str, took: float) -> str:
    """Returns that a server did not answer, which one, and why."""
    found = re.search(r"https?://[^/\s]+", text)
    causes = re.findall(r'(?:message|error): "([^"\\]+)"', debug)
    timed_out = "TimedOut" in debug
    why = "timed out" if timed_out else causes[-1] if causes else "the connection was lost"
    return f"{found[0] if found else server} does not answer: {why}{_retries(text) or f' (tried for {took:.3g} s)'}"


def _retries(text: str) -> str:
    """Returns how often and how long it was tried."""
    found = re.search(r" in ([\d.]+)(\S*?), after (\d+) retries", text)
    return f" (tried {int(found[3]) + 1} times in {float(found[1]):.3g} {found[2]})" if found else ""


def _phrase(status: int) -> str:
    """Returns HTTP's words for a status."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _short(text: str) -> str:
    """Returns a text on one line, cut, without the queries of addresses, which may hold a signature."""
    return " ".join(re.sub(r"\?\S*", "", text).split())[:_LONGEST]

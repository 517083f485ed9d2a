"""The stores behind addresses: how they are reached, and with which credentials, found as other programs find them.

Of the environment obstore reads AWS_*, GOOGLE_* and AZURE_* itself. What it does not know is added here: the files of
AWS's command line, and the variables for an endpoint.
"""

from __future__ import annotations

import configparser
import errno
import functools
import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from faceshards.storage.faults import StorageError, no_credentials, told

if TYPE_CHECKING:
    from obstore.store import ObjectStore

RETRY_SECONDS = 180
"""A request is repeated for so long at most before a store counts as lost."""

PAUSES = (0.1, 10.0)
"""Seconds between two attempts: the first ones, and what they grow to."""

READ_SECONDS = 30
"""Of which nothing comes of an answer: then it counts as lost, and is asked for again."""

UPLOAD_SECONDS = 120
"""The same, of a piece of an upload: in them it has to be sent, too."""

_LONGEST = 600  # seconds of an answer that comes, slowly
_RETRIES = 1000  # more than fit into RETRY_SECONDS
_GROWTH = 4  # a pause is a random part of so many times the one before: with less than e they hardly grow
_OURS = ("AWS_", "GOOGLE_", "AZURE_")
_OTHER_WAYS = (
    *("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
    *("AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_SKIP_SIGNATURE"),
)
_METADATA = ("169.254.169.254", 80)  # where a machine of Amazon's or Google's asks for its own credentials


def store(scheme: str, bucket: str, uploads: bool = False) -> ObjectStore:
    """Returns the store of a bucket.

    Args:
        scheme: of its address.
        bucket: its name.
        uploads: it is for pieces of files.

    Raises:
        StorageError: there are no credentials for it, or they are unusable.
    """
    environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith(_OURS)))
    return _store(scheme, bucket, UPLOAD_SECONDS if uploads else READ_SECONDS, environment)


def attempts() -> int:
    """Returns how often a request is made at most."""
    found = os.environ.get("AWS_MAX_ATTEMPTS", "")
    return max(1, int(found)) if found.isdecimal() else _RETRIES + 1


@functools.lru_cache(maxsize=32)
def _store(scheme: str, bucket: str, silence: float, _environment: tuple[tuple[str, str], ...]) -> ObjectStore:
    url = f"{scheme}://{bucket}"
    config = _s3(bucket, url) if scheme == "s3" else {}
    if scheme == "gs" and not _has_google() and not _on_a_cloud():
        raise no_credentials(url)
    options: dict[str, Any] = {
        "connect_timeout": "5s",
        "read_timeout": timedelta(seconds=silence),
        "timeout": timedelta(seconds=_LONGEST),
    }
    if str(config.get("endpoint", "")).startswith("http://"):
        options["allow_http"] = True
    if authority := os.environ.get("AWS_CA_BUNDLE"):
        try:
            options["root_certificate"] = Path(authority).read_bytes()
        except OSError as error:
            raise StorageError(errno.EINVAL, f"AWS_CA_BUNDLE: {authority}: {error.strerror}", url) from None
    retries = {
        "max_retries": attempts() - 1,
        "retry_timeout": timedelta(seconds=RETRY_SECONDS),
        "backoff": {
            "init_backoff": timedelta(seconds=PAUSES[0]),
            "max_backoff": timedelta(seconds=PAUSES[1]),
            "base": _GROWTH,
        },
    }
    with told(url):
        from obstore.store import from_url

        return from_url(url, config=config or None, client_options=options, retry_config=retries)  # type: ignore[call-overload]


def _s3(bucket: str, url: str) -> dict[str, Any]:
    """Returns what obstore does not find by itself: what a profile says, and the endpoint."""
    env, profile = os.environ, _profile(url)
    endpoints = (env.get(f"AWS_ENDPOINT{name}") for name in ("_URL_S3", "_URL", ""))
    endpoint = next(filter(None, endpoints), None) or profile.get("endpoint_url", "")
    config: dict[str, Any] = {}
    if not env.get("AWS_ACCESS_KEY_ID"):
        names = {"aws_access_key_id": "access_key_id", "aws_secret_access_key": "secret_access_key"}
        names["aws_session_token"] = "session_token"
        config = {ours: profile[theirs] for theirs, ours in names.items() if theirs in profile}
        if not config and not any(map(env.get, _OTHER_WAYS)) and (endpoint or not _on_a_cloud()):
            raise no_credentials(url)
    region = env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or profile.get("region")
    config["region"] = region or "us-east-1"
    if env.get("AWS_REQUEST_CHECKSUM_CALCULATION", "").lower() != "when_required":
        config["checksum_algorithm"] = "sha256"  # of what is sent; the store compares it
    if endpoint:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
            raise StorageError(errno.EINVAL, "the endpoint (AWS_ENDPOINT_URL) is no http:// or https:// address", url)
        if env.get("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "").lower() in ("true", "1"):  # then obstore wants it so
            host = parts.netloc if parts.netloc.startswith(f"{bucket}.") else f"{bucket}.{parts.netloc}"
            parts = parts._replace(netloc=host)
        config["endpoint"] = parts.geturl().rstrip("/")
    return config


def _on_a_cloud() -> bool:
    """Returns whether this machine can ask for credentials of its own; others would wait minutes for an answer."""
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return False
    try:
        socket.create_connection(_METADATA, 1).close()
    except OSError:
        return False
    return True


def _has_google() -> bool:
    """Returns whether something says where Google's credentials are, or that there are none."""
    file = Path.home() / ".config" / "gcloud" / "application_default_credentials.json"
    return file.exists() or any(name.startswith("GOOGLE_") for name in os.environ)


def _profile(url: str) -> dict[str, str]:
    """Returns what AWS's files say under the profile's name; empty without such files.

    Raises:
        StorageError: a profile that was named is in neither file, a file is damaged, or the profile has credentials
            that only AWS's own command line can fetch.
    """
    named = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE")
    name = named or "default"
    found: dict[str, str] = {}
    for variable, file, section in (
        ("AWS_CONFIG_FILE", "config", name if name == "default" else f"profile {name}"),
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials", name),
    ):
        path = Path(os.environ.get(variable) or Path.home() / ".aws" / file).expanduser()
        parser = configparser.RawConfigParser(strict=False)
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, ValueError, OSError):  # what is said of them quotes lines, secrets too
            raise StorageError(errno.EINVAL, f"{path}: cannot be read as AWS writes it", url) from None
        if parser.has_section(section):
            found |= dict(parser.items(section))
    own = bool(os.environ.get("AWS_ACCESS_KEY_ID"))
    if named and not found and not own:
        raise StorageError(errno.EACCES, f"AWS_PROFILE={name}: ~/.aws has no such profile", url)
    if "aws_access_key_id" in found or own:
        return found
    if other := next((key for key in found if key.startswith(("sso_", "role_", "credential_process"))), None):
        raise StorageError(
            errno.EACCES,
            f"the profile {name} has its credentials by {other}, which is not read here; "
            f'eval "$(aws configure export-credentials --profile {name} --format env)" sets them',
            url,
        )
    return found

"""What an export is asked for: where it may go, what decides its bytes, and whether it is there already."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from faceshards.checksums import check_seal
from faceshards.dataset.manifest import Manifest
from faceshards.files import differences, told
from faceshards.formats.json_files import read_json
from faceshards.storage.faults import StorageError
from faceshards.storage.location import Location
from pipelines.exports.base import ABOUT, ExportError, Request
from pipelines.workspace import check_apart

log = logging.getLogger(__name__)


def check_place(manifest: Manifest, out: Path) -> None:
    """Refuses a place that is taken, or that lies where it would be taken for a part of something else.

    Args:
        manifest: the dataset.
        out: as it is without links.

    Raises:
        BuildError: it lies in the dataset or in a source, or is a mounted disk.
        ExportError: something else is there.
    """
    check_apart(manifest, out)
    if os.path.lexists(out) and not (out / ABOUT).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise ExportError(f"{out}: exists and is no export of ours; it is not touched")


def describe(manifest: Manifest, request: Request) -> dict[str, Any]:
    """Returns what decides the bytes of an export, as JSON has it."""
    tables = json.dumps([manifest.info["name"], manifest.info["files"]], sort_keys=True)
    return {
        "fingerprint": manifest.fingerprint,
        "tables": hashlib.sha256(tables.encode()).hexdigest(),
        "format": request.to,
        "labels": request.labels,
        "shard_bytes": request.shard_bytes,
    }


def read(out: Location) -> dict[str, Any]:
    """Returns what export.json at `out` says.

    Raises:
        ExportError: it is damaged.
        StorageError: its store does not answer.
    """
    path = out / ABOUT
    try:
        found: dict[str, Any] = read_json(path)
        check_seal(found)
    except StorageError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{path}: damaged: {error}; remove {out} to export again") from None
    return found


def published(
    out: Location, asked: dict[str, Any], instead: str = "choose another folder, or remove it"
) -> dict[str, Any]:
    """Returns what export.json at `out` says, if it is what was asked for.

    Args:
        out: where an export is published.
        asked: what describe() says of the request.
        instead: what to do where it is another one.

    Raises:
        ExportError: it is another export, or damaged.
    """
    found = read(out)
    if different := differences({name: found.get(name) for name in asked}, asked):
        raise ExportError(f"{out}: another export is there ({told(different, 'there', 'now')}); {instead}")
    log.warning("%s: already exported from the same dataset; nothing to do", out)
    return found

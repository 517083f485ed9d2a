"""The manifest: a published dataset's Parquet tables and dataset.json, the contract between build and training.

docs/manifest.md describes every column. The tables need nothing but a Parquet reader; this module adds the checks that
tell a whole dataset of a known schema from anything else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from faceshards.dataset.schema import SCHEMA_VERSION, SCHEMAS
from faceshards.errors import FaceshardsError

# What readers rely on in dataset.json.
_INFO = {"name": str, "totals": dict, "fingerprint": str, "files": dict, "warnings": list, "config": dict}
_TOTALS = ("scanned", "kept", "identities", "shards", "conflicts", "identity_links", "image_bytes")


class ManifestError(FaceshardsError):
    """What lies at a path is no published dataset, or not a whole one, or of another schema version."""


class Manifest:
    """A published dataset, opened for reading.

    Args:
        path: the dataset's folder (or its dataset.json).

    Raises:
        ManifestError: nothing published there, or dataset.json is damaged or of another version.
    """

    def __init__(self, path: Path | str) -> None:
        path = Path(path)
        self.path = path.parent if path.name == "dataset.json" else path
        file = self.path / "dataset.json"
        try:
            self.info: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            version = self.info["schema_version"]
            if version != SCHEMA_VERSION:
                raise ManifestError(f"{self.path}: schema version {version}; this release reads {SCHEMA_VERSION}")
            _check_info(self.info)
        except FileNotFoundError:
            raise ManifestError(f"{self.path}: no dataset published there (no dataset.json)") from None
        except OSError as error:
            raise ManifestError(f"{file}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ManifestError(f"{file}: damaged: {error}") from None
        self.totals: dict[str, Any] = self.info["totals"]
        self.fingerprint: str = self.info["fingerprint"]

    def dataset(self, table: str) -> ds.Dataset:
        """Returns a table for lazy reading.

        Raises:
            ManifestError: the table is missing or is not Parquet.
        """
        path = self.path / "manifest" / f"{table}.parquet"
        try:
            found = ds.dataset(path, format="parquet", schema=SCHEMAS[table])
            if not found.files:
                raise FileNotFoundError
            return found
        except (FileNotFoundError, pa.ArrowInvalid) as error:
            raise ManifestError(f"{path}: missing or no Parquet {error}".rstrip()) from None

    def table(self, table: str, columns: Sequence[str] | None = None, where: ds.Expression | None = None) -> pa.Table:
        """Returns a table, or some of its columns and rows.

        Raises:
            ManifestError: the table is missing or damaged.
        """
        try:
            return self.dataset(table).to_table(columns=list(columns) if columns else None, filter=where)
        except (OSError, pa.ArrowException) as error:
            raise ManifestError(f"{self.path / 'manifest' / table}.parquet: {error}") from None

    def shard_path(self, file: str) -> Path:
        """Returns where a shard lies, by its name in the table `shards`."""
        return self.path / "shards" / file


def _check_info(info: dict[str, Any]) -> None:
    """Raises KeyError or TypeError if dataset.json lacks what readers rely on."""
    for key, kind in _INFO.items():
        if not isinstance(info[key], kind):
            raise TypeError(f"{key} is no {kind.__name__}")
    if not all(type(info["totals"][key]) is int for key in _TOTALS):
        raise TypeError(f"one of the totals {', '.join(_TOTALS)} is no integer")
    if not isinstance(info["totals"]["dropped"], dict):
        raise TypeError("the total dropped is no dict")


def fingerprint(shards: pa.Table) -> str:
    """Returns the dataset's fingerprint: SHA-256 (hex) over schema version and the checksums of its shards in order.

    A shard's bytes hold images, labels and sids, so equal fingerprints mean equal training data.
    """
    text = json.dumps([SCHEMA_VERSION, shards["file"].to_pylist(), shards["sha256"].to_pylist()])
    return hashlib.sha256(text.encode()).hexdigest()

"""The manifest: a published dataset's Parquet tables and dataset.json, the contract between build and training.

docs/manifest.md describes every column. The tables need nothing but a Parquet reader; this module adds the checks that
tell a whole dataset of a known schema from anything else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from faceshards.dataset.schema import DROP_REASONS, SCHEMA_VERSION, SCHEMAS
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
        try:
            self.info: dict[str, Any] = json.loads((self.path / "dataset.json").read_text(encoding="utf-8"))
            version = self.info["schema_version"]
            for key, kind in _INFO.items() if version == SCHEMA_VERSION else ():
                if not isinstance(self.info[key], kind):
                    raise TypeError(f"{key} is no {kind.__name__}")
            self.totals: dict[str, Any] = self.info["totals"]
            self.fingerprint: str = self.info["fingerprint"]
            if version == SCHEMA_VERSION and not all(type(self.totals[key]) is int for key in _TOTALS):
                raise TypeError(f"one of the totals {', '.join(_TOTALS)} is no integer")
            if version == SCHEMA_VERSION and not isinstance(self.totals["dropped"], dict):
                raise TypeError("the total dropped is no dict")
        except FileNotFoundError:
            raise ManifestError(f"{self.path}: no dataset published there (no dataset.json)") from None
        except OSError as error:
            raise ManifestError(f"{self.path / 'dataset.json'}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ManifestError(f"{self.path / 'dataset.json'}: damaged: {error}") from None
        if version != SCHEMA_VERSION:
            raise ManifestError(f"{self.path}: schema version {version}; this release reads {SCHEMA_VERSION}")

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


def fingerprint(shards: pa.Table) -> str:
    """Returns the dataset's fingerprint: SHA-256 (hex) over schema version and the checksums of its shards in order.

    A shard's bytes hold images, labels and sids, so equal fingerprints mean equal training data.
    """
    text = json.dumps([SCHEMA_VERSION, shards["file"].to_pylist(), shards["sha256"].to_pylist()])
    return hashlib.sha256(text.encode()).hexdigest()


def check_books(totals: dict[str, Any], identities: pa.Table, shards: pa.Table) -> Iterator[str]:
    """Yields each sum that does not add up: kept + dropped = scanned, in all and for every identity."""
    dropped = sum(totals["dropped"].values())
    if totals["kept"] + dropped != totals["scanned"]:
        yield f"kept {totals['kept']} + dropped {dropped} is not scanned {totals['scanned']}"
    frame = {name: identities[name].to_numpy() for name in ("scanned", "kept", *DROP_REASONS)}
    lost = frame["scanned"] - frame["kept"] - sum(frame[reason] for reason in DROP_REASONS)
    for row in lost.nonzero()[0].tolist():
        yield f"identity {identities['label_original'][row].as_py()}: {lost[row]} images are in no column"
    for name in ("scanned", "kept"):
        if (total := int(frame[name].sum())) != totals[name]:
            yield f"the identities' {name} sum up to {total}, not {totals[name]}"
    for reason in DROP_REASONS:
        if (total := int(frame[reason].sum())) != totals["dropped"].get(reason, 0):
            yield f"the identities' {reason} sum up to {total}, not {totals['dropped'].get(reason, 0)}"
    if (rows := sum(shards["rows"].to_pylist())) != totals["kept"]:
        yield f"the shards hold {rows} rows, not {totals['kept']}"

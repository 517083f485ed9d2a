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

from pipelines.errors import FaceshardsError
from pipelines.records import REASONS

SCHEMA_VERSION = 1
ROW_GROUP = 65536  # rows

DROP_REASONS = REASONS[1:]

SCHEMAS = {
    "images": pa.schema(
        [
            pa.field("sid", pa.int64(), False),
            pa.field("source", pa.string(), False),
            pa.field("key", pa.string(), False),
            pa.field("label_original", pa.string(), False),
            pa.field("label", pa.int32(), False),
            pa.field("shard", pa.int32(), False),
            pa.field("row", pa.int32(), False),
            pa.field("sha256", pa.binary(32), False),
            pa.field("phash", pa.binary(32), False),
            pa.field("bytes", pa.int64(), False),
            pa.field("height", pa.int32(), False),
            pa.field("width", pa.int32(), False),
        ]
    ),
    "identities": pa.schema(
        [
            pa.field("label", pa.int32()),
            pa.field("label_original", pa.string()),
            pa.field("scanned", pa.int64(), False),
            pa.field("kept", pa.int64(), False),
            *[pa.field(reason, pa.int64(), False) for reason in DROP_REASONS],
        ]
    ),
    "shards": pa.schema(
        [
            pa.field("shard", pa.int32(), False),
            pa.field("file", pa.string(), False),
            pa.field("rows", pa.int64(), False),
            pa.field("identities", pa.int64(), False),
            pa.field("bytes", pa.int64(), False),
            pa.field("sha256", pa.string(), False),
            pa.field("db_bytes", pa.int64(), False),
            pa.field("db_sha256", pa.string(), False),
        ]
    ),
    "dropped": pa.schema(
        [
            pa.field("sid", pa.int64(), False),
            pa.field("source", pa.string(), False),
            pa.field("key", pa.string(), False),
            pa.field("label_original", pa.string()),
            pa.field("reason", pa.string(), False),
            pa.field("detail", pa.string()),
            pa.field("representative", pa.int64()),
            pa.field("distance", pa.int16()),
        ]
    ),
    "conflicts": pa.schema(
        [
            pa.field("sid_a", pa.int64(), False),
            pa.field("sid_b", pa.int64(), False),
            pa.field("label_original_a", pa.string(), False),
            pa.field("label_original_b", pa.string(), False),
            pa.field("distance", pa.int16(), False),
            pa.field("exact", pa.bool_(), False),
        ]
    ),
    "identity_links": pa.schema(
        [
            pa.field("label_original_a", pa.string(), False),
            pa.field("label_original_b", pa.string(), False),
            pa.field("photographs", pa.int64(), False),
            pa.field("distance", pa.int16(), False),
        ]
    ),
}


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


def file_digest(path: Path) -> tuple[int, str]:
    """Returns size in bytes and SHA-256 (hex) of a file."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb", buffering=0) as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


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

"""The manifest: a published dataset's Parquet tables and dataset.json, the contract between build and training.

docs/manifest.md describes every column. The tables need nothing but a Parquet reader; this module adds the checks that
tell a whole dataset of a known schema from anything else: dataset.json has a checksum of its own and those of all
tables, and no table is read here before it was compared with its.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from faceshards.checksums import check_seal, dead_link
from faceshards.dataset.content import check_info, is_inside, sound
from faceshards.dataset.schema import DROP_REASONS, LATER, SCHEMA_VERSION, SCHEMAS, complete, schema_with, stood_for
from faceshards.dataset.table_files import TableFiles
from faceshards.errors import FaceshardsError, first_few
from faceshards.formats.encoded_image import MAX_PIXELS
from faceshards.formats.json_files import read_json
from faceshards.reading import folders_with
from faceshards.storage.location import NEEDS_CACHE, Location, StoredPath, as_location

if TYPE_CHECKING:
    import pyarrow.dataset as ds

log = logging.getLogger(__name__)

_BATCH = 8192  # rows
_FINGERPRINT_RULE = 1  # of fingerprint(); no schema's number, so that a new schema leaves fingerprints as they are


class ManifestError(FaceshardsError):
    """What lies at a path is no published dataset, or not a whole one, or of another schema version."""


class Manifest:
    """A published dataset, opened for reading.

    A dataset of schema 1 is read too, with a warning: its tables are compared with dataset.json like any, but nothing
    vouches for dataset.json itself.

    Args:
        path: the dataset's folder (or its dataset.json), or the address of its prefix in a bucket.

    Attributes:
        path: the folder or prefix.
        info: what dataset.json says.
        reasons: for which its records may have been dropped, those of its filters too.
        table_files: what dataset.json lists, to be compared and opened file by file.

    Raises:
        ManifestError: nothing published there, or dataset.json is damaged or of another version.
    """

    def __init__(self, path: Location | str) -> None:
        path = as_location(path)
        self.path: Location = path.parent if path.name == "dataset.json" else path
        file = self.path / "dataset.json"
        try:
            self.info: dict[str, Any] = read_json(file)
            if not isinstance(self.info, dict):
                raise ValueError("holds no mapping of names to values")
            self.schema_version: int = self.info["schema_version"]
            if self.schema_version not in (1, SCHEMA_VERSION):
                raise ManifestError(
                    f"{self.path}: schema version {self.schema_version!r}; this release reads 1 and {SCHEMA_VERSION}"
                )
            if self.schema_version == SCHEMA_VERSION or "sha256" in self.info:
                check_seal(self.info)
            check_info(self.info)
        except FileNotFoundError:
            link = dead_link(file)
            here = isinstance(self.path, StoredPath) or self.path.exists()  # a bucket has no folders
            cause = "no dataset.json" if here else "no such folder"
            cause = f"{link} is a link that leads nowhere" if link else cause
            if not link and (inner := folders_with("dataset.json", self.path)):
                cause += f"; datasets lie in it: {first_few(map(str, inner))}"
            raise ManifestError(f"{self.path}: no dataset published there ({cause})") from None
        except OSError as error:
            raise ManifestError(f"{file}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ManifestError(f"{file}: damaged: {error}") from None
        self.totals: dict[str, Any] = self.info["totals"]
        self.fingerprint: str = self.info["fingerprint"]
        self.reasons: tuple[str, ...] = (*DROP_REASONS, *self.info.get("reasons", ()))
        self.table_files = TableFiles(self.path, self.info["files"])
        if self.schema_version == 1:
            log.warning(
                "%s: of schema 1, whose dataset.json has no checksum of its own; "
                "'faceshards manifest upgrade %s' gives it one",
                *(self.path, self.path),
            )

    def schema(self, table: str) -> pa.Schema:
        """Returns the schema of a table of this set, by a name of SCHEMAS."""
        return schema_with(table, self.reasons[len(DROP_REASONS) :])

    @property
    def max_pixels(self) -> int:
        """Pixels of the largest image that the build let in; readers decode none that is larger."""
        found = self.info["config"].get("max_pixels")
        return found if type(found) is int else MAX_PIXELS

    def files(self, table: str, shard: int | None = None) -> list[str]:
        """Returns the files of a table by their names in dataset.json, in order.

        Args:
            table: a name of SCHEMAS.
            shard: of `images` only the part with this shard's rows.

        Raises:
            ManifestError: dataset.json lists none, or there is no such table at all.
        """
        if table not in SCHEMAS:
            raise ManifestError(f"{self.path}: no table '{table}'; there are {', '.join(SCHEMAS)}")
        whole = f"manifest/{table}.parquet"
        if shard is None:
            found = sorted(name for name in self.info["files"] if name == whole or name.startswith(f"{whole}/"))
        else:
            found = [name for name in (f"{whole}/part-{shard:05d}.parquet",) if name in self.info["files"]]
        if not found:
            part = "" if shard is None else f" for shard {shard}"
            raise ManifestError(f"{self.path / whole}: dataset.json lists no such table{part}")
        return found

    def check_table(self, table: str) -> None:
        """Compares all files of a table with their checksums.

        Raises:
            ManifestError: one is missing, or its size or SHA-256 is another.
        """
        self._check(self.files(table))

    def check_file(self, name: str) -> None:
        """Compares a file with its checksum.

        Args:
            name: in dataset.json.

        Raises:
            ManifestError: it is missing, or its size or SHA-256 is another.
        """
        self._check([name])

    def _check(self, names: Sequence[str]) -> None:
        if problem := self.table_files.first_mismatch(names):
            raise ManifestError(problem)

    def dataset(self, table: str, shard: int | None = None) -> ds.Dataset:
        """Returns a table for lazy reading, after its files were compared with their checksums.

        A column of schema.LATER that the set does not have holds what it stands for, as everywhere.

        Args:
            table: a name of SCHEMAS.
            shard: of `images` only the part with this shard's rows; nothing else is looked at.

        Raises:
            ManifestError: the table is missing or damaged.
        """
        import pyarrow.dataset as ds  # it imports pandas: not for every --help

        names = self.files(table, shard)
        self._check(names)
        paths = [str(self.path / name) for name in names]
        with self._reading(table):
            present = self.table_files.columns(names[0]) if table in LATER else []
            # What holds for every row of a file stands in its partition expression, from which Arrow fills columns.
            return ds.FileSystemDataset.from_paths(
                paths,
                schema=self.schema(table),
                format=ds.ParquetFileFormat(),
                filesystem=self.table_files.for_datasets(),
                partitions=[stood_for(table, present)] * len(paths),
            )

    def table(
        self,
        table: str,
        columns: Sequence[str] | None = None,
        where: pc.Expression | None = None,
        shard: int | None = None,
    ) -> pa.Table:
        """Returns a table, or some of its columns and rows; see dataset().

        Raises:
            ManifestError: the table is missing or damaged, or has no such column.
        """
        with self._reading(table):
            rows = self.dataset(table, shard).to_table(columns=self._columns(table, columns), filter=where)
            return sound(self.schema(table), rows)

    def batches(
        self,
        table: str,
        columns: Sequence[str] | None = None,
        where: pc.Expression | None = None,
        shard: int | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Yields a table's rows in order, a few thousand at a time; see table(). No more than a row group is held.

        Raises:
            ManifestError: the table is missing or damaged, or has no such column; before the first row.
        """
        names, wanted = self.files(table, shard), self._columns(table, columns)
        self._check(names)
        with self._reading(table):
            for name in names:
                # Not Arrow's scanner, which reads ahead of a slow reader without end.
                with self.table_files.parquet(name) as file:
                    for batch in file.iter_batches(_BATCH, columns=wanted if where is None else None):
                        rows = complete(table, pa.Table.from_batches([batch]))
                        rows = (rows if where is None else rows.filter(where)).select(wanted)
                        yield from sound(self.schema(table), rows).to_batches()

    def count(self, table: str, where: pc.Expression | None = None) -> int:
        """Returns how many rows of a table there are, or how many `where` chooses; see table()."""
        with self._reading(table):
            return int(self.dataset(table).count_rows(filter=where))

    def _columns(self, table: str, columns: Sequence[str] | None) -> list[str]:
        """Returns the columns that are wanted of a table; ManifestError if it has no such one."""
        known = self.schema(table).names
        for name in columns or ():
            if name not in known:
                raise self._no_column(table, name)
        return list(columns or known)

    def _no_column(self, table: str, name: str) -> ManifestError:
        known = ", ".join(self.schema(table).names)
        return ManifestError(f"{self.path}: {table} has no column '{name}'; there are {known}")

    @contextmanager
    def _reading(self, table: str) -> Iterator[None]:
        """Tells what Arrow says of a table in one line."""
        try:
            yield
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            text = " ".join(str(error).split())
            if unknown := re.match(r"No match for FieldRef\.Name\((.*?)\) in ", text):  # of a condition
                raise self._no_column(table, unknown[1]) from None
            raise ManifestError(f"{self.path / 'manifest' / table}.parquet: {text[:300]}") from None

    def shard_path(self, file: str) -> Location:
        """Returns where a shard lies, by its name in the table `shards`.

        Raises:
            ManifestError: that is no name of a file.
        """
        if "/" in file or not is_inside(file):
            raise ManifestError(f"{self.path}: the table shards has {file[:80]!r}, which is no name of a file")
        return self.path / "shards" / file

    def disk_path(self, file: str) -> Path:
        """Returns where a shard lies on a disk of this machine; see shard_path().

        Raises:
            ManifestError: the dataset is in a bucket, or that is no name of a file.
        """
        path = self.shard_path(file)
        if isinstance(path, StoredPath):
            raise ManifestError(f"{self.path}: {NEEDS_CACHE}")
        return path


def fingerprint(shards: pa.Table) -> str:
    """Returns the dataset's fingerprint: SHA-256 (hex) over the names and checksums of its shards in order.

    A shard's bytes hold images, labels and sids, so equal fingerprints mean equal training data.
    """
    text = json.dumps([_FINGERPRINT_RULE, shards["file"].to_pylist(), shards["sha256"].to_pylist()])
    return hashlib.sha256(text.encode()).hexdigest()

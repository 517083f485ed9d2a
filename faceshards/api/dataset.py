"""A published dataset as Python programs want it: tables for pyarrow, pandas and SQL, and images by their names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as ds

from faceshards.dataset.manifest import Manifest, ManifestError
from faceshards.errors import FaceshardsError
from faceshards.inspection.photograph import Photograph, photograph
from faceshards.inspection.pictures import Pictures
from pipelines.sources.registry import read_records
from training.data.transforms import ImageError, decode

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Image(Photograph):
    """A record of a dataset, kept or dropped: its provenance, and its image when it is asked for.

    Args:
        dataset: it is of.
    """

    dataset: Dataset

    @property
    def reason(self) -> str:
        """Why it was dropped, or `kept`; docs/manifest.md lists them."""
        return str(self.row.get("reason", "kept"))

    @cached_property
    def encoded(self) -> bytes:
        """The image as the source has it, JPEG or PNG: of a kept record from its shard, else from the source.

        Raises:
            ShardError: the shard is missing or damaged.
            SourceError: the source is gone or has changed, or has no image there.
        """
        return Pictures(self.dataset, read_records).of(self)

    @property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """The image decoded, (H, W, 3) uint8, RGB.

        Raises:
            FaceshardsError: it cannot be decoded, or read (see `encoded`).
        """
        try:
            return decode(self.encoded)
        except ImageError as error:
            raise FaceshardsError(f"{self.dataset.path}: sid {self.row['sid']} ({self.reason}): {error}") from None

    def __repr__(self) -> str:
        what = f"label {self.row['label']}" if self.table == "images" else f"dropped, {self.reason}"
        return f"<Image sid {self.row['sid']}: {self.row['source']}:{self.row['key']}, {what}>"


class Dataset(Manifest):
    """A published dataset, opened for reading. `len()` of it is the number of its images.

    Its tables are pyarrow datasets, read when they are asked for rows; docs/manifest.md has their columns. Before that,
    once, the table's files are compared with their checksums.

    Args:
        path: the dataset's folder, or its dataset.json.

    Attributes:
        path: the folder.
        info: what dataset.json says.
        totals: the counts in it.
        fingerprint: SHA-256 (hex); equal ones mean equal training data.

    Raises:
        ManifestError: nothing published there, or dataset.json is damaged or of another version. Of tables: one is
            missing or damaged.
    """

    @property
    def images(self) -> ds.Dataset:
        """A row for each image in the shards."""
        return self.dataset("images")

    @property
    def identities(self) -> ds.Dataset:
        """A row for each identity scanned."""
        return self.dataset("identities")

    @property
    def shards(self) -> ds.Dataset:
        """A row for each shard."""
        return self.dataset("shards")

    @property
    def dropped(self) -> ds.Dataset:
        """A row for each record that was scanned and not kept, with the reason."""
        return self.dataset("dropped")

    @property
    def conflicts(self) -> ds.Dataset:
        """A row for each pair of records that are one photograph under two identities."""
        return self.dataset("conflicts")

    @property
    def identity_links(self) -> ds.Dataset:
        """A row for each pair of identities that share photographs."""
        return self.dataset("identity_links")

    def image(self, name: int | str | bytes) -> Image:
        """Returns a record, kept or dropped.

        Args:
            name: a sid, as a number or text; or the sha256 of a kept image, as bytes or 8 or more hex digits; or a key
                of the source, with "SOURCE:" before it where several have it, or where it is a number.

        Raises:
            FaceshardsError: there is none, or more than one.
        """
        found = photograph(self, name.hex() if isinstance(name, bytes) else str(name))
        return Image(**vars(found), dataset=self)

    def to_pandas(
        self, table: str, columns: str | Sequence[str] | None = None, where: ds.Expression | None = None
    ) -> pd.DataFrame:
        """Returns a table, or some of its columns and rows, as a DataFrame that keeps Arrow's types.

        A nullable integer stays an integer, null is `pandas.NA`, text is text and bytes are bytes (pandas.ArrowDtype);
        columns are not copied into Python objects.

        Args:
            table: images, identities, shards, dropped, conflicts or identity_links.
            columns: in this order; None: all.
            where: which rows, as `pyarrow.dataset.field("kept") > 3`; None: all. Conditions in SQL are for query().

        Raises:
            ManifestError: no such table or column, the table is damaged, or `where` is no such expression.
        """
        with _extra("to_pandas"):
            import pandas as pd
        if where is not None and not isinstance(where, ds.Expression):
            raise ManifestError(
                f"{self.path}: where={where!r} is no expression of pyarrow, such as "
                f"pyarrow.dataset.field('sid') < 100; query() takes SQL"
            )
        rows = self.table(table, [columns] if isinstance(columns, str) else columns, where)
        return rows.to_pandas(types_mapper=pd.ArrowDtype)

    def query(self, sql: str) -> pa.Table:
        """Returns the answer to a question in SQL, DuckDB's; the tables are those of docs/manifest.md.

        Nothing else can be reached, and nothing written (docs/queries.md).

        Args:
            sql: one statement that reads.

        Raises:
            QueryError: the SQL is wrong, or asks for more than the manifest.
            ManifestError: a table is missing or damaged.
        """
        from faceshards.inspection.query import answer

        with _extra("query"), answer(self, sql) as given:
            return pa.Table.from_batches(given.batches, given.schema)

    def __len__(self) -> int:
        return int(self.totals["kept"])

    def __repr__(self) -> str:
        images, identities = self.totals["kept"], self.totals["identities"]
        return (
            f"<Dataset '{self.info['name']}': {images:,} images of {identities:,} identities, "
            f"{self.totals['scanned'] - images:,} dropped, fingerprint {self.fingerprint[:12]}, in {self.path}>"
        )


@contextmanager
def _extra(what: str) -> Iterator[None]:
    """Tells a module that is missing as one line that says what brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise FaceshardsError(
            f"{what} needs {error.name}, which is not installed: pip install 'faceshards[manifest]'"
        ) from None

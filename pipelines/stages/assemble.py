"""The last stage: global tables, totals and dataset.json, and the check that the books add up."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from faceshards.dataset.manifest import fingerprint
from faceshards.dataset.schema import SCHEMAS, complete
from faceshards.dataset.verify import check_books
from faceshards.errors import BuildError
from faceshards.files import ROW_GROUP, file_digest, parquet_options, replacing, sealed, write_json, write_parquet

PACKAGES = ("dask", "numpy", "opencv-python-headless", "pyarrow")
"""Those whose versions can change a published byte."""


def assemble(
    work: Path,
    request: dict[str, Any],
    dropped: Sequence[Path],
    shards: int,
    structural: int,
    warnings: list[str],
    unsound: list[str],
    beside: Sequence[str] = (),
) -> None:
    """Completes the dataset in the work folder: what the stages left in pieces becomes its tables and dataset.json.

    Args:
        work: the work folder; every shard is done.
        request: what was built.
        dropped: the partitions' dropped rows, in order.
        shards: number of shards.
        structural: header and identity records met.
        warnings: about the sources.
        unsound: those for which a strict build publishes nothing.
        beside: names of other files in the dataset.

    Raises:
        BuildError: kept + dropped is not scanned, somewhere.
    """
    data, tables = work / "dataset", work / "dataset" / "manifest"
    _remove_temporaries(data / "shards", tables, tables / "images.parquet")
    for name in ("identities", "conflicts", "identity_links"):
        shutil.copyfile(work / "decisions" / f"{name}.parquet", tables / f"{name}.parquet")
    with replacing(tables / "dropped.parquet") as temporary:
        _concatenate(dropped, temporary)
    entries = [json.loads((work / "done" / f"shard-{i:05d}.json").read_text()) for i in range(shards)]
    shard_table = pa.Table.from_pylist(entries, SCHEMAS["shards"])
    write_parquet(shard_table, tables / "shards.parquet")
    identities = complete("identities", pq.read_table(tables / "identities.parquet"))
    decided = json.loads((work / "decisions" / "facts.json").read_text())
    totals = {key: value for key, value in decided.items() if key not in ("dedupe", "geometry")}
    totals["structural"] = structural
    totals["image_bytes"] = _image_bytes(tables / "images.parquet")
    _check(work, totals, identities, shard_table)
    listed = [path for path in sorted(tables.rglob("*.parquet")) if path.is_file()]
    digests = {path: file_digest(path) for path in [*listed, *(data / name for name in beside)]}
    info = {
        **request,
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        "totals": totals,
        "dedupe": decided["dedupe"],
        "warnings": warnings,
        "unsound": unsound,
        "files": {str(path.relative_to(data)): {"bytes": size, "sha256": sha} for path, (size, sha) in digests.items()},
        "fingerprint": fingerprint(shard_table),
    }
    write_json(sealed(info), data / "dataset.json")


def _remove_temporaries(*folders: Path) -> None:
    """Removes what a killed worker may have left behind; it all begins with a dot, and nothing else does."""
    for folder in folders:
        for path in folder.glob(".*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _image_bytes(table: Path) -> int:
    """Returns the encoded bytes of all images in the table `images`."""
    files = sorted(table.iterdir())
    return sum(int(pq.read_table(path, columns=["bytes"])["bytes"].to_numpy().sum()) for path in files)


def _check(work: Path, totals: dict[str, Any], identities: pa.Table, shards: pa.Table) -> None:
    """Raises BuildError if a sum does not add up."""
    wrong = list(check_books(totals, identities, shards))
    lost = pq.read_metadata(work / "dataset" / "manifest" / "dropped.parquet").num_rows
    if lost != totals["scanned"] - totals["kept"]:
        wrong.append(f"{lost} rows in dropped, not {totals['scanned'] - totals['kept']}")
    if wrong:
        raise BuildError(f"{work}: the books do not add up: {'; '.join(wrong)}")


def _concatenate(paths: Sequence[Path], out: Path) -> None:
    """Writes the rows of many tables as one, in row groups whose size does not depend on how they were cut."""
    held: list[pa.Table] = []
    with pq.ParquetWriter(out, SCHEMAS["dropped"], **parquet_options(SCHEMAS["dropped"])) as writer:
        for path in paths:
            held.append(pq.read_table(path, schema=SCHEMAS["dropped"]))
            if sum(len(table) for table in held) >= ROW_GROUP:
                joined = pa.concat_tables(held)
                whole = len(joined) // ROW_GROUP * ROW_GROUP
                for start in range(0, whole, ROW_GROUP):
                    writer.write_table(joined.slice(start, ROW_GROUP).combine_chunks(), row_group_size=ROW_GROUP)
                held = [joined.slice(whole).combine_chunks()]
        writer.write_table(pa.concat_tables(held).combine_chunks(), row_group_size=ROW_GROUP)

"""The last stage: global tables, totals and dataset.json, and the check that the books add up."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from faceshards.checksums import file_digest, sealed
from faceshards.dataset.manifest import fingerprint
from faceshards.dataset.schema import SCHEMAS, complete
from faceshards.dataset.verify import check_books
from faceshards.errors import BuildError
from faceshards.files import ROW_GROUP, parquet_options, replacing, write_json, write_parquet
from faceshards.formats.json_files import read_json
from faceshards.reading import each, fetch, for_arrow
from faceshards.storage.location import Location, StoredPath

PACKAGES = ("dask", "numpy", "opencv-python-headless", "pyarrow")
"""Those whose versions can change a published byte."""


def assemble(
    work: Location,
    data: Location,
    request: dict[str, Any],
    dropped: Sequence[Location],
    shards: int,
    structural: int,
    warnings: list[str],
    unsound: list[str],
    beside: Sequence[str] = (),
) -> dict[str, Any]:
    """Returns dataset.json of a dataset after completing its tables of what the stages left in pieces.

    Args:
        work: the work folder; every shard is done.
        data: folder of the dataset, or its prefix in a bucket; dataset.json is written there too, but not in a bucket,
            where it publishes.
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
    tables = data / "manifest"
    if isinstance(data, Path):
        _remove_temporaries(data / "shards", data / "manifest", data / "manifest" / "images.parquet")
    for name in ("identities", "conflicts", "identity_links"):
        with replacing(tables / f"{name}.parquet") as temporary:
            fetch(work / "decisions" / f"{name}.parquet", temporary)
    with replacing(tables / "dropped.parquet") as temporary:
        _concatenate(dropped, temporary)
    entries = each(read_json, [work / "done" / f"shard-{i:05d}.json" for i in range(shards)])
    shard_table = pa.Table.from_pylist(entries, SCHEMAS["shards"])
    write_parquet(shard_table, tables / "shards.parquet")
    identities = complete("identities", pq.read_table(for_arrow(tables / "identities.parquet")))
    decided = read_json(work / "decisions" / "facts.json")
    totals = {key: value for key, value in decided.items() if key not in ("dedupe", "geometry")}
    totals["structural"] = structural
    parts = [tables / "images.parquet" / f"part-{i:05d}.parquet" for i in range(shards)]
    totals["image_bytes"] = sum(each(_image_bytes, list(zip(entries, parts, strict=True))))
    _check(data, totals, identities, shard_table)
    listed = sorted(path for path in _files(tables) if path.suffix == ".parquet")
    listed += [data / name for name in beside]
    digests = zip(listed, each(_digest, listed), strict=True)
    info = {
        **request,
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        "totals": totals,
        "dedupe": decided["dedupe"],
        "warnings": warnings,
        "unsound": unsound,
        "files": {_name(path, data): {"bytes": size, "sha256": sha} for path, (size, sha) in digests},
        "fingerprint": fingerprint(shard_table),
    }
    info = sealed(info)
    if isinstance(data, Path):
        write_json(info, data / "dataset.json")
    return info


def _remove_temporaries(*folders: Path) -> None:
    """Removes what a killed worker may have left behind; it all begins with a dot, and nothing else does."""
    for folder in folders:
        for path in folder.glob(".*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _image_bytes(shard: tuple[dict[str, Any], Location]) -> int:
    """Returns the encoded bytes of a shard's images, by its facts, and its part of the table `images`."""
    facts, part = shard
    if "image_bytes" in facts:
        return int(facts["image_bytes"])
    return int(pq.read_table(for_arrow(part), columns=["bytes"])["bytes"].to_numpy().sum())  # an earlier release's


def _files(folder: Location) -> list[Any]:
    """Returns every file below a folder, or object below a prefix."""
    if isinstance(folder, StoredPath):
        return [path for path, _ in folder.tree()]
    return [path for path in folder.rglob("*") if path.is_file()]


def _digest(path: Location) -> tuple[int, str]:
    """Returns size and SHA-256 of a file, or of an object as it was uploaded."""
    return path.sha256() if isinstance(path, StoredPath) else file_digest(path)


def _name(path: Location, data: Location) -> str:
    return str(path).removeprefix(f"{data}/")


def _check(data: Location, totals: dict[str, Any], identities: pa.Table, shards: pa.Table) -> None:
    """Raises BuildError if a sum does not add up."""
    wrong = list(check_books(totals, identities, shards))
    lost = pq.read_metadata(for_arrow(data / "manifest" / "dropped.parquet")).num_rows
    if lost != totals["scanned"] - totals["kept"]:
        wrong.append(f"{lost} rows in dropped, not {totals['scanned'] - totals['kept']}")
    if wrong:
        raise BuildError(f"{data}: the books do not add up: {'; '.join(wrong)}")


def _concatenate(paths: Sequence[Location], out: Path) -> None:
    """Writes the rows of many tables as one, in row groups whose size does not depend on how they were cut."""
    held: list[pa.Table] = []
    with pq.ParquetWriter(out, SCHEMAS["dropped"], **parquet_options(SCHEMAS["dropped"])) as writer:
        for path in paths:
            held.append(pq.read_table(for_arrow(path), schema=SCHEMAS["dropped"]))
            if sum(len(table) for table in held) >= ROW_GROUP:
                joined = pa.concat_tables(held)
                whole = len(joined) // ROW_GROUP * ROW_GROUP
                for start in range(0, whole, ROW_GROUP):
                    writer.write_table(joined.slice(start, ROW_GROUP).combine_chunks(), row_group_size=ROW_GROUP)
                held = [joined.slice(whole).combine_chunks()]
        writer.write_table(pa.concat_tables(held).combine_chunks(), row_group_size=ROW_GROUP)

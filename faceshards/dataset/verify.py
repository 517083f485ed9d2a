"""Checks a published dataset against its manifest: every file's checksum, every row's bytes, every sum."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from faceshards.dataset.manifest import Manifest, fingerprint
from faceshards.dataset.schema import IDENTITY
from faceshards.errors import FaceshardsError
from faceshards.files import difference
from faceshards.formats.mindrecord.reader import Shard, verify_index


def check_books(totals: dict[str, Any], identities: pa.Table, shards: pa.Table) -> Iterator[str]:
    """Yields each sum that does not add up: kept + dropped = scanned, in all and for every identity."""
    dropped = sum(totals["dropped"].values())
    if totals["kept"] + dropped != totals["scanned"]:
        yield f"kept {totals['kept']} + dropped {dropped} is not scanned {totals['scanned']}"
    reasons = [name for name in identities.column_names if name not in IDENTITY]
    frame = {name: identities[name].to_numpy() for name in ("scanned", "kept", *reasons)}
    lost = frame["scanned"] - frame["kept"] - sum(frame[reason] for reason in reasons)
    for row in lost.nonzero()[0].tolist():
        yield f"identity {identities['label_original'][row].as_py()}: {lost[row]} images are in no column"
    for name in ("scanned", "kept"):
        if (total := int(frame[name].sum())) != totals[name]:
            yield f"the identities' {name} sum up to {total}, not {totals[name]}"
    yield from (f"identities has no column {reason}" for reason in totals["dropped"] if reason not in reasons)
    for reason in reasons:
        if (total := int(frame[reason].sum())) != totals["dropped"].get(reason, 0):
            yield f"the identities' {reason} sum up to {total}, not {totals['dropped'].get(reason, 0)}"
    if (rows := sum(shards["rows"].to_pylist())) != totals["kept"]:
        yield f"the shards hold {rows} rows, not {totals['kept']}"
    if len(shards) != totals["shards"]:
        yield f"{len(shards)} shards, not {totals['shards']}"
    if (present := len(identities) - identities["label"].null_count) != totals["identities"]:
        yield f"{present} identities with images, not {totals['identities']}"


def check_rows(shard: Shard, images: pa.Table) -> Iterator[str]:
    """Yields each row of a shard that differs from the table `images`, whose rows are the shard's in order.

    Raises:
        ShardError: the shard cannot be read to its end.
    """
    want = zip(images["label"].to_pylist(), images["sid"].to_pylist(), images["sha256"].to_pylist(), strict=True)
    if len(shard) != len(images):
        yield f"{shard.path}: {len(shard)} rows, the manifest has {len(images)}"
        return
    for row, ((label, sid, image), (label_want, sid_want, sha)) in enumerate(zip(shard.rows(), want, strict=True)):
        if sid != sid_want:
            yield f"{shard.path}: row {row}: sid {sid}, the manifest says {sid_want}"
        if label != label_want:
            yield f"{shard.path}: row {row} (sid {sid}): label {label}, the manifest says {label_want}"
        if hashlib.sha256(image).digest() != sha:
            yield f"{shard.path}: row {row} (sid {sid}): the image's sha256 is not the manifest's"


def verify(manifest: Manifest) -> Iterator[str]:
    """Yields a line for each mismatch between a dataset's files and its manifest; none means it is whole.

    Reads every byte once more than it has to: file checksums and row checksums are independent proofs. What a damaged
    table says is not looked at.
    """
    damaged = {name: problem for name in manifest.info["files"] if (problem := manifest.mismatch(name))}
    yield from damaged.values()
    for line in _beyond_tables(manifest):
        if line not in damaged.values():  # a table that could not be read then says so again
            yield line


def _beyond_tables(manifest: Manifest) -> Iterator[str]:
    """Yields each mismatch of the books, the fingerprint and the shards, and files that do not belong there."""
    try:
        shards = manifest.table("shards")
    except FaceshardsError as error:
        yield str(error)
        return
    yield from _strangers(manifest, shards["file"].to_pylist())
    if fingerprint(shards) != manifest.fingerprint:
        yield f"{manifest.path}: the fingerprint is not that of the table shards"
    try:
        yield from check_books(manifest.totals, manifest.table("identities"), shards)
    except FaceshardsError as error:
        yield str(error)
    for entry in shards.to_pylist():
        yield from _verify_shard(manifest, entry)


def _strangers(manifest: Manifest, shards: list[str]) -> Iterator[str]:
    """Yields each file among tables and shards that nobody published: other readers would take it for a part."""
    known = {*manifest.info["files"], *(f"shards/{name}{more}" for name in shards for more in ("", ".db"))}
    for folder in ("manifest", "shards"):
        for path in sorted((manifest.path / folder).rglob("[!.]*")):
            if path.is_file() and str(path.relative_to(manifest.path)) not in known:
                yield f"{path}: was not published with the dataset"


def _verify_shard(manifest: Manifest, entry: dict) -> Iterator[str]:
    path = manifest.shard_path(entry["file"])
    index = path.with_name(f"{path.name}.db")
    for file, size, digest in ((path, entry["bytes"], entry["sha256"]), (index, entry["db_bytes"], entry["db_sha256"])):
        if problem := difference(file, size, digest, "the manifest"):
            yield problem
    if not path.is_file():
        return
    try:
        images = manifest.table("images", ["row", "label", "sid", "sha256"], shard=entry["shard"]).sort_by("row")
        if (images["row"].to_numpy() != np.arange(len(images))).any():
            yield f"{path}: the manifest's rows are not 0..{len(images) - 1}"
        with Shard(path) as shard:
            yield from check_rows(shard, images)
        if index.is_file():
            verify_index(path)
    except FaceshardsError as error:
        yield str(error)
    except OSError as error:
        yield f"{path}: {error.strerror}"

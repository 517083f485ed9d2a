"""Brings a dataset of schema 1 to schema 2: the same tables and shards, and a dataset.json with a checksum of its own.

Schema 1 has the checksums of all tables in dataset.json, and there it ends: who changes a total, or a checksum and its
table, is not noticed. So before dataset.json vouches for itself, what it says is compared with the tables.
"""

from __future__ import annotations

import logging

from faceshards.checksums import sealed
from faceshards.dataset.manifest import Manifest, ManifestError, fingerprint
from faceshards.dataset.schema import SCHEMA_VERSION, SCHEMAS
from faceshards.dataset.verify import check_books
from faceshards.errors import FaceshardsError
from faceshards.files import fsync, json_bytes, write_json
from faceshards.progress import logging_at
from faceshards.storage.location import Location, StoredPath


def upgrade(path: Location) -> bool:
    """Returns whether a dataset was of an older schema; it is of this release's now.

    One rename replaces dataset.json; killed at any moment, the dataset is whole, of one schema or of the other. No
    shard is read: `manifest verify` does that.

    Raises:
        ManifestError: a table is damaged, or dataset.json does not say what the tables say; nothing was changed.
        FaceshardsError: dataset.json cannot be replaced.
    """
    with logging_at("faceshards.dataset", logging.ERROR):  # no advice to do what is being done
        found = Manifest(path)
    if found.schema_version == SCHEMA_VERSION:
        return False
    for table in SCHEMAS:
        found.check_table(table)
    for problem in _disagreements(found):
        raise ManifestError(f"{found.path / 'dataset.json'}: not what the tables say: {problem}")
    file = found.path / "dataset.json"
    content = sealed({**found.info, "schema_version": SCHEMA_VERSION})
    try:
        if isinstance(file, StoredPath):
            file.write_bytes(json_bytes(content))
            return True
        for left in file.parent.glob(f".{file.name}.*"):  # of one that was killed
            left.unlink()
        write_json(content, file)
        fsync(file.parent)
    except OSError as error:
        raise FaceshardsError(f"{error.filename or file}: {error.strerror}") from None
    return True


def _disagreements(found: Manifest) -> list[str]:
    """Returns where the totals and the fingerprint are not those of the tables."""
    shards = found.table("shards")
    problems = list(check_books(found.totals, found.table("identities"), shards))
    if fingerprint(shards) != found.fingerprint:
        problems.append("the fingerprint is not that of the table shards")
    rows = {name: found.count(name) for name in ("images", "dropped", "conflicts", "identity_links")}
    totals = {**found.totals, "images": found.totals["kept"], "dropped": sum(found.totals["dropped"].values())}
    problems += [f"{rows[name]} rows in {name}, not {totals[name]}" for name in rows if rows[name] != totals[name]]
    return problems

"""Writes the manifest of a set that never was: every table of the real schema, and shards without images.

    python -m benchmarks.generate_manifest /tmp/generated [--images 1000000]

For measuring what only reads tables, and what opens shards: these have their header and their size, and are holes that
take no room on a disk. The books add up, and every checksum is right; the figures are modelled on
WebFace42M: 20.6 images an identity, lengths of identities log-normal, records in random order, 10 % of them dropped.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from faceshards.checksums import file_digest, sealed
from faceshards.dataset.manifest import fingerprint
from faceshards.dataset.schema import DROP_REASONS, LATER, SCHEMA_VERSION, SCHEMAS, schema_without
from faceshards.files import write_json, write_parquet
from faceshards.formats.mindrecord.geometry import DEFAULT_PAGE
from faceshards.formats.mindrecord.layout import HEADER_SIZES, RAW_FIXED, header, int_widths, lay_out
from pipelines.config import BuildConfig

PER_IDENTITY = 42_474_557 / 2_059_906  # WebFace42M (Zhu et al., CVPR 2021)
SPREAD = 0.7  # standard deviation of the logarithm of an identity's length
DROPPED = 0.1  # of the records
REASONS = {  # shares of the dropped; the others have none
    "exact_duplicate": 0.4,
    "near_duplicate": 0.3,
    "label_conflict": 0.2,
    "min_images": 0.05,
    "undecodable": 0.05,
}
SHARD_ROWS = 36_000  # 256 MiB of images of 7 kB
IMAGE_BYTES = 7000

Array = npt.NDArray[Any]


def main_tables(images: int, seed: int) -> dict[str, Array]:
    """Returns what is decided of each scanned record, (N,) each: its identity, and why it was dropped (-1: kept)."""
    rng = np.random.default_rng(seed)
    length = rng.lognormal(0, SPREAD, max(2, round(images / PER_IDENTITY)))
    ends = np.cumsum(length / length.sum() * images).round().astype(np.int64)
    identity = np.repeat(np.arange(len(ends), dtype=np.int32), np.diff(ends, prepend=0))
    rng.shuffle(identity)
    reason = np.full(len(identity), -1, np.int8)
    gone = rng.choice(len(identity), int(len(identity) * DROPPED), replace=False)
    codes = [DROP_REASONS.index(name) for name in REASONS]
    reason[gone] = rng.choice(codes, len(gone), p=list(REASONS.values()))
    return {"identity": identity, "reason": reason}


def text(numbers: Array) -> pa.Array:
    """Returns numbers as text."""
    return pc.cast(pa.array(numbers), pa.string())


def names(sids: Array, images: int, sources: int) -> tuple[pa.Array, pa.Array]:
    """Returns source and key of records: the sources follow each other, and each has its keys from 1."""
    size = -(-images // sources)
    known = pa.array([f"part-{number}.rec" for number in range(sources)])
    return known.take(pa.array(sids // size)), text(sids % size + 1)


def write_hollow(path: Path, sizes: Array, labels: Array, sids: Array) -> int:
    """Returns the bytes of the shard written at `path`: the header is that of such rows, all the rest is a hole."""
    pages, _ = lay_out(sizes, RAW_FIXED + int_widths(labels) + int_widths(sids), DEFAULT_PAGE)
    for choice in HEADER_SIZES:
        head = header(path.name, choice, DEFAULT_PAGE, pages)
        if len(head) <= choice:
            break
    size = choice + (len(pages) - 1) * DEFAULT_PAGE + pages[-1].used
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(size)
    return size


def write_images(
    folder: Path, decided: dict[str, Array], label: Array, sources: int, seed: int
) -> tuple[pa.Table, int]:
    """Returns the table `shards` and the bytes of all images, after writing the parts of `images` and the shards."""
    kept = np.flatnonzero(decided["reason"] < 0)
    shards = max(1, round(len(kept) / SHARD_ROWS))
    dealt = kept[np.argsort(decided["identity"][kept], kind="stable")]  # like cards: a fair part of each identity
    entries, image_bytes = [], 0
    for shard in range(shards):
        rng = np.random.default_rng((seed, shard))
        sids = rng.permutation(dealt[shard::shards])
        n = len(sids)
        identity = decided["identity"][sids]
        source, key = names(sids, len(decided["identity"]), sources)
        random = (
            pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), n, [None, pa.py_buffer(rng.bytes(32 * n))])
            for _ in "ab"
        )
        sha, phash = random
        size = rng.integers(IMAGE_BYTES // 2, IMAGE_BYTES * 3 // 2, n)
        side = np.full(n, 112, np.int32)
        columns = [
            *(
                sids,
                source,
                key,
                text(identity),
                label[identity],
                np.full(n, shard, np.int32),
                np.arange(n, dtype=np.int32),
            ),
            *(sha, phash, size, side, side),
        ]
        part = pa.Table.from_arrays([pa.array(column) for column in columns], schema=SCHEMAS["images"])
        write_parquet(part, folder / "images.parquet" / f"part-{shard:05d}.parquet")
        image_bytes += int(size.sum())
        name = f"shard-{shard:05d}.mindrecord"
        written = write_hollow(folder.parent / "shards" / name, size, label[identity], sids)
        entries.append(
            {
                **{"shard": shard, "file": name, "rows": n, "db_bytes": 0},
                **{"identities": len(np.unique(identity)), "bytes": written},
                **{"sha256": rng.bytes(32).hex(), "db_sha256": rng.bytes(32).hex()},
            }
        )
    table = pa.Table.from_pylist(entries, SCHEMAS["shards"])
    write_parquet(table, folder / "shards.parquet")
    return table, image_bytes


def write_dropped(folder: Path, decided: dict[str, Array], sources: int, seed: int) -> dict[str, int]:
    """Returns how many conflicts and links there are, after writing what was dropped, and what conflicts."""
    rng = np.random.default_rng((seed, 1 << 32))
    sids, kept = np.flatnonzero(decided["reason"] >= 0), np.flatnonzero(decided["reason"] < 0)
    code = decided["reason"][sids]
    source, key = names(sids, len(decided["identity"]), sources)
    identity = text(decided["identity"][sids])
    stands = np.isin(code, [DROP_REASONS.index(name) for name in list(REASONS)[:3]])
    conflict = code == DROP_REASONS.index("label_conflict")
    partner = rng.choice(kept, len(sids))
    distance = rng.integers(0, 25, len(sids)).astype(np.int16)
    broken = pa.array(code == DROP_REASONS.index("undecodable"))
    columns = {
        **{"sid": sids, "source": source, "key": key, "label_original": identity},
        "reason": pa.array(DROP_REASONS).take(pa.array(code)),
        "detail": pc.if_else(broken, "the decoder refuses it", pa.scalar(None, pa.string())),
        "representative": pa.array(partner, mask=~stands),
        "distance": pa.array(distance, mask=~stands),
    }
    write_parquet(pa.table(columns, SCHEMAS["dropped"]), folder / "dropped.parquet")
    a, b = np.sort(np.stack([sids[conflict], partner[conflict]]), axis=0)
    columns = {
        **{"sid_a": a, "sid_b": b},
        "label_original_a": text(decided["identity"][a]),
        "label_original_b": text(decided["identity"][b]),
        **{"distance": distance[conflict], "exact": distance[conflict] == 0},
    }
    conflicts = pa.table(columns, schema_without("conflicts", "mirrored"))
    write_parquet(conflicts, folder / "conflicts.parquet")
    found = conflicts.group_by(["label_original_a", "label_original_b"]).aggregate(
        [("sid_a", "count"), ("distance", "min")]
    )
    links = pa.Table.from_arrays(
        [found[name] for name in ("label_original_a", "label_original_b", "sid_a_count", "distance_min")],
        schema=SCHEMAS["identity_links"],
    )
    write_parquet(links, folder / "identity_links.parquet")
    return {"conflicts": len(conflicts), "identity_links": len(links)}


def write_identities(folder: Path, decided: dict[str, Array]) -> tuple[Array, dict[str, Any]]:
    """Returns each identity's label (-1 without one) and totals, after writing the table `identities`."""
    count = int(decided["identity"].max()) + 1
    tallies = np.zeros((len(DROP_REASONS) + 1, count), np.int64)  # kept is the last row: reason -1
    np.add.at(tallies, (decided["reason"], decided["identity"]), 1)
    kept = tallies[-1]
    label = np.where(kept > 0, np.cumsum(kept > 0) - 1, -1).astype(np.int32)
    columns = {
        "label": pa.array(label, mask=label < 0),
        "label_original": text(np.arange(count)),
        **{"scanned": tallies.sum(axis=0), "kept": kept},
        **dict(zip(DROP_REASONS, tallies, strict=False)),
    }
    write_parquet(pa.table(columns, schema_without("identities", *LATER["identities"])), folder / "identities.parquet")
    sums = zip(DROP_REASONS, tallies[:-1].sum(axis=1).tolist(), strict=True)
    totals = {"scanned": int(tallies.sum()), "kept": int(kept.sum()), "identities": int((label >= 0).sum())}
    return label, {**totals, "dropped": {name: lost for name, lost in sums if lost}, "structural": 0}


def generate(out: Path, images: int, sources: int = 1, seed: int = 0) -> None:
    """Writes dataset.json, the tables and hollow shards of a set.

    Args:
        out: the dataset's folder, made.
        images: records scanned.
        sources: .rec files, alike in size.
        seed: of everything.
    """
    folder = out / "manifest"
    (folder / "images.parquet").mkdir(parents=True, exist_ok=True)
    (out / "shards").mkdir(exist_ok=True)
    decided = main_tables(images, seed)
    label, totals = write_identities(folder, decided)
    shards, image_bytes = write_images(folder, decided, label, sources, seed)
    totals |= write_dropped(folder, decided, sources, seed)
    totals |= {"shards": len(shards), "image_bytes": image_bytes}
    digests = {
        str(path.relative_to(out)): file_digest(path) for path in sorted(folder.rglob("*.parquet")) if path.is_file()
    }
    files = [
        {
            **{"path": f"/nowhere/part-{number}.rec", "name": f"part-{number}.rec", "kind": "recordio", "index": ""},
            **{"bytes": IMAGE_BYTES * (images // sources), "mtime_ns": 0},
        }
        for number in range(sources)
    ]
    info = {
        **{"name": "generated", "schema_version": SCHEMA_VERSION, "config": dataclasses.asdict(BuildConfig())},
        **{"sources": files, "versions": {}, "totals": totals, "dedupe": {}, "warnings": [], "unsound": []},
        "files": {name: {"bytes": size, "sha256": sha} for name, (size, sha) in digests.items()},
        "fingerprint": fingerprint(shards),
    }
    write_json(sealed(info), out / "dataset.json")


@click.command()
@click.argument("out", type=click.Path(path_type=Path, exists=False))
@click.option("--images", default=1_000_000, show_default=True, help="Records scanned; WebFace42M has 42,474,557.")
@click.option("--sources", default=1, show_default=True, help="Files they come from.")
@click.option("--seed", default=0, show_default=True)
def main(out: Path, images: int, sources: int, seed: int) -> None:
    """Writes the manifest of a set that never was, and shards without images, into the folder OUT."""
    generate(out, images, sources, seed)


if __name__ == "__main__":
    main()

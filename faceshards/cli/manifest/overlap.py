"""The command ``faceshards manifest overlap``."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.compute as pc

from faceshards.cli.command import Command
from faceshards.cli.options import FETCHED, dataset_argument, json_option, quiet_option, show
from faceshards.cli.rows import BATCH, limit_option, print_rows
from faceshards.dataset.manifest import Manifest
from faceshards.progress import Progress
from faceshards.storage.location import Location

log = logging.getLogger(__name__)


@click.command(cls=Command)
@dataset_argument
@click.option(
    "--set", "sets", type=FETCHED, multiple=True, required=True, help="A verification set (.bin); repeatable."
)
@click.option(
    "--max-distance",
    type=click.IntRange(-1, 64),
    default=24,
    show_default=True,
    help="Hamming bits of 256 up to which two pictures are one; -1: only the same bytes.",
)
@click.option("--identities", is_flag=True, help="Each identity that has some, instead of the counts.")
@click.option("--rows", is_flag=True, help="Each image, with the picture it is, instead of the counts.")
@limit_option
@quiet_option
@json_option
def overlap(
    path: Location,
    sets: tuple[Path, ...],
    max_distance: int,
    identities: bool,
    rows: bool,
    limit: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Images that are pictures of verification sets.

    Mirrored ones too. They are found by the hashes in the manifest; no shard is read. --json prints counts, identities
    and rows at once.

    \b
    Examples:
      faceshards manifest overlap data/shards/casia --set lfw.bin --set cfp_fp.bin
      faceshards manifest overlap data/shards/casia --set lfw.bin --rows --limit 0
      faceshards manifest overlap data/shards/casia --set lfw.bin --max-distance 40 --identities --json
    """
    if identities and rows:
        raise click.UsageError("one of --identities and --rows")
    if limit is not None and not identities and not rows:
        raise click.UsageError("--limit belongs to --identities or --rows")
    from pipelines.stages.excluded import published_overlaps, sign_sets  # OpenCV: not for every command

    found = Manifest(path)
    # To ask for the same bytes only is to know that nothing else is found.
    signed = sign_sets(sets, found.info["config"].get("image_size", [0, 0]), max(max_distance, 0))
    for warning in signed.warnings:
        log.warning("%s", warning)
    with Progress("overlap", found.totals["kept"], quiet) as progress:
        table = published_overlaps(found, signed.pictures, max_distance, len(os.sched_getaffinity(0)), progress)
    people = _identities(found, table)
    if identities or rows:
        shown = people if identities else table
        print_rows(shown.column_names, lambda: iter(shown.to_batches(max_chunksize=BATCH)), len(shown), limit, as_json)
        return
    facts: dict[str, Any] = {
        "path": str(found.path),
        "max_distance": max_distance,
        "images": found.totals["kept"],
        "overlap": len(table),
        "exact": pc.sum(table["exact"]).as_py() or 0,
        "mirrored": pc.sum(table["mirrored"]).as_py() or 0,
        "sets": [{**one, "overlap": pc.sum(pc.equal(table["set"], one["name"])).as_py() or 0} for one in signed.about],
    }
    how = f"at most {max_distance} bits away" if max_distance >= 0 else "the same bytes"
    counts = [
        ("overlap", len(table), f"  of {found.totals['kept']:,} images, of {len(people):,} identities; {how}"),
        *((one["name"], one["overlap"], f"  of {one['pictures']:,} pictures") for one in facts["sets"]),
        ("same bytes", facts["exact"], ""),
        ("mirrored", facts["mirrored"], ""),
    ]
    width = max(len(name) for name, _, _ in counts)
    lines = [f"{found.path}", *(f"  {name:<{width}}{count:>12,}{rest}" for name, count, rest in counts)]
    if as_json:
        facts |= {"identities": people.to_pylist(), "rows": table.to_pylist()}
    show(facts, lines, as_json)


def _identities(found: Manifest, table: pa.Table) -> pa.Table:
    """Returns label_original, label, overlap and images of each identity in `table`, the most affected first."""
    counts = table.group_by(["label", "label_original"]).aggregate([("sid", "count")])
    kept = found.table("identities", ["label", "kept"])
    joined = counts.join(kept, "label").rename_columns(["label", "label_original", "overlap", "images"])
    order = [("overlap", "descending"), ("label", "ascending")]
    return joined.select(["label_original", "label", "overlap", "images"]).sort_by(order)

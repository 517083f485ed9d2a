"""The command ``faceshards manifest conflicts``."""

from __future__ import annotations

from pathlib import Path

import click

from faceshards.cli.options import Command, dataset_argument, json_option
from faceshards.cli.rows import BATCH, limit_option, print_rows, print_table
from faceshards.dataset.manifest import Manifest


@click.command(cls=Command)
@dataset_argument
@click.option("--pairs", is_flag=True, help="Each pair of photographs, instead of pairs of identities.")
@limit_option
@json_option
def conflicts(path: Path, pairs: bool, limit: int | None, as_json: bool) -> None:
    """Identities that share photographs: perhaps the same person, perhaps wrong labels."""
    found = Manifest(path)
    if pairs:
        print_table(found, "conflicts", limit, as_json)
        return
    # To be sorted they have to be held, as columns; the build held them likewise.
    order = [("photographs", "descending"), ("label_original_a", "ascending"), ("label_original_b", "ascending")]
    links = found.table("identity_links").sort_by(order)
    print_rows(links.column_names, lambda: iter(links.to_batches(max_chunksize=BATCH)), len(links), limit, as_json)

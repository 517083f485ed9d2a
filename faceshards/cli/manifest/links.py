"""The command ``faceshards manifest links``."""

from __future__ import annotations

import click
import pyarrow.compute as pc

from faceshards.cli.command import Command
from faceshards.cli.options import dataset_argument, json_option
from faceshards.cli.rows import check_identity, limit_option, print_sorted
from faceshards.dataset.manifest import Manifest
from faceshards.storage.location import Location


@click.command(cls=Command)
@dataset_argument
@click.option("--label", help="Only those of this identity, by its label in the source.")
@click.option("--min", "least", type=click.IntRange(min=1), help="Only those that share so many photographs.")
@limit_option
@json_option
def links(path: Location, label: str | None, least: int | None, limit: int | None, as_json: bool) -> None:
    """Pairs of identities that share photographs.

    Perhaps they are one person under two labels; those with most photographs come first.

    \b
    Examples:
      faceshards manifest links data/shards/synthetic
      faceshards manifest links data/shards/synthetic --min 2 --json
    """
    print_links(Manifest(path), label, least, limit, as_json)


def print_links(found: Manifest, label: str | None, least: int | None, limit: int | None, as_json: bool) -> None:
    """Prints pairs of identities that share photographs.

    Args:
        found: the dataset.
        label: of one of the two; None: any.
        least: photographs that they share; None: any.
        limit: see print_rows().
        as_json: likewise.
    """
    check_identity(found, label)
    where = of_identity(label)
    if least is not None:
        where &= pc.field("photographs") >= least
    order = [("photographs", "descending"), ("label_original_a", "ascending"), ("label_original_b", "ascending")]
    print_sorted(found.table("identity_links", where=where), order, limit, as_json)


def of_identity(label: str | None) -> pc.Expression:
    """Returns what chooses pairs of which one is of an identity, or any."""
    if label is None:
        return pc.scalar(True)
    return (pc.field("label_original_a") == label) | (pc.field("label_original_b") == label)

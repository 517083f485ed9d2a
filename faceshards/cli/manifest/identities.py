"""The command ``faceshards manifest identities``."""

from __future__ import annotations

import operator
from functools import reduce

import click
import pyarrow.compute as pc

from faceshards.cli.command import Command
from faceshards.cli.options import dataset_argument, json_option
from faceshards.cli.rows import check_identity, limit_option, print_sorted, print_table
from faceshards.dataset.manifest import Manifest
from faceshards.storage.location import Location

_LOST = "dropped records"  # no drop reason is called so
ORDERS = {"images": "kept", "scanned": "scanned", "dropped": _LOST, "label": "label"}  # the columns they go by
_COUNT = click.IntRange(min=0)


@click.command(cls=Command)
@dataset_argument
@click.option("--label", help="Only this identity, by its label in the source.")
@click.option("--min", "least", type=_COUNT, help="Only those that kept so many images or more.")
@click.option("--max", "most", type=_COUNT, help="Only those that kept so many images or fewer.")
@click.option("--drops", type=_COUNT, help="Only those that lost so many images or more.")
@click.option("--sort", type=click.Choice(list(ORDERS)), help="Most first; by label the least. Without it: by label.")
@click.option("--reverse", is_flag=True, help="The other way round.")
@limit_option
@json_option
def identities(
    path: Location,
    label: str | None,
    least: int | None,
    most: int | None,
    drops: int | None,
    sort: str | None,
    reverse: bool,
    limit: int | None,
    as_json: bool,
) -> None:
    """Images scanned, kept and dropped of each identity.

    \b
    Examples:
      faceshards manifest identities data/shards/synthetic --sort images --limit 10
      faceshards manifest identities data/shards/synthetic --sort images --reverse --min 1
      faceshards manifest identities data/shards/synthetic --drops 5 --sort dropped --json
    """
    if least is not None and most is not None and least > most:
        raise click.UsageError(f"--min {least} is more than --max {most}")
    where = _where(label, least, most, drops)
    found = Manifest(path)
    check_identity(found, label)
    # Columns of reasons that never occurred only take room.
    empty = [name for name in found.reasons if not as_json and not found.totals["dropped"].get(name)]
    columns = [name for name in found.schema("identities").names if name not in empty]
    if sort in (None, "label") and not reverse:  # as they lie there
        print_table(found, "identities", limit, as_json, where, columns)
        return
    rows = found.table("identities", where=where)
    rows = rows.append_column(_LOST, pc.subtract(rows["scanned"], rows["kept"]))
    descending = (sort or "label") != "label"
    direction = "ascending" if descending == reverse else "descending"
    print_sorted(rows, [(ORDERS[sort or "label"], direction)], limit, as_json, columns)


def _where(label: str | None, least: int | None, most: int | None, drops: int | None) -> pc.Expression | None:
    """Returns what chooses identities; None for all of them."""
    kept, scanned = pc.field("kept"), pc.field("scanned")
    wanted = [
        *([kept >= least] if least is not None else []),
        *([kept <= most] if most is not None else []),
        *([scanned - kept >= drops] if drops is not None else []),
        *([pc.field("label_original") == label] if label is not None else []),
    ]
    return reduce(operator.and_, wanted) if wanted else None

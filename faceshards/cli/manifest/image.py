"""The command ``faceshards manifest image``."""

from __future__ import annotations

import click

from faceshards.cli.columns import cell
from faceshards.cli.command import Command
from faceshards.cli.options import dataset_argument, json_option
from faceshards.cli.paths import OUT_FILE
from faceshards.cli.rows import limit_option, print_list, row_json
from faceshards.cli.terminal import echo
from faceshards.dataset.manifest import Manifest
from faceshards.errors import FaceshardsError
from faceshards.files import replacing
from faceshards.inspection.photograph import Photograph, photograph
from faceshards.inspection.pictures import Pictures
from faceshards.storage.location import Location
from pipelines.sources.registry import read_records


@click.command(cls=Command)
@dataset_argument
@click.argument("name", metavar="SID|SHA256|KEY")
@click.option("--out", type=OUT_FILE, help="File, or object in a bucket, for the encoded image as the source has it.")
@limit_option
@json_option
def image(path: Location, name: str, out: Location | None, limit: int | None, as_json: bool) -> None:
    """One photograph: where it came from, and what became of it.

    It is named by its sid, by the sha256 of the encoded image (8 or more hex digits will do; of images that were
    kept), or by its key in the source, with SOURCE: before it where several sources have it or where it is a number.
    Its duplicates are listed too.
    --out takes a dropped record from the source that the dataset was built from.

    \b
    Examples:
      faceshards manifest image data/shards/synthetic 42 --out 42.jpg
      faceshards manifest image data/shards/synthetic 3f9a0c11
      faceshards manifest image data/shards/synthetic train.rec:43 --json
    """
    found = Manifest(path)
    one = photograph(found, name)
    if out is not None:
        _write(out, Pictures(found, read_records).of(one))
    if as_json:
        _print_json(one, limit)
    else:
        _print(one, limit)


def _write(out: Location, data: bytes) -> None:
    try:
        with replacing(out, keep=True) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise FaceshardsError(f"{out}: {error.strerror}") from None


def _print_json(one: Photograph, limit: int | None) -> None:
    """Prints an array of one object: the row, and what else is known of the photograph."""
    more = {"table": one.table, "kept_sid": one.kept_sid, "stands_for_it": one.stands}
    echo("[\n" + row_json({**one.row, **more})[:-1], nl=False)
    for name, table in one.lists().items():
        echo(f', "{name}": ', nl=False)
        print_list(table, limit, True, end="")
    echo("}\n]")


def _print(one: Photograph, limit: int | None) -> None:
    """Prints the row a line for each value, and what else is known of the photograph."""
    for key, value in {**one.row, "table": one.table, "kept_sid": one.kept_sid}.items():
        echo(f"{key:<15} {cell(value)}")
    for number, row in enumerate(one.stands):
        state = f"dropped, {row['reason']}" if "reason" in row else "kept"
        where = f"{row['source']}:{row['key']} of {row['label_original']}"
        echo(f"{'for that one' if number else 'stands for it':<15} sid {row['sid']}, {state}: {cell(where)}")
    for name, table in one.lists().items():
        echo(f"{name:<15} {len(table)}")
        if len(table):
            print_list(table, limit, False)

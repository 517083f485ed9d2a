"""The command ``faceshards manifest image``."""

from __future__ import annotations

from pathlib import Path

import click
import pyarrow.dataset as ds

from faceshards.cli.options import Command, dataset_argument, json_option
from faceshards.cli.rows import print_rows
from faceshards.dataset.manifest import Manifest, check_image
from faceshards.errors import FaceshardsError
from faceshards.formats.mindrecord.reader import Shard


@click.command(cls=Command)
@dataset_argument
@click.argument("sid", type=int)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the encoded image to this file.")
@json_option
def image(path: Path, sid: int, out: Path | None, as_json: bool) -> None:
    """One photograph's provenance, by its sid; --out writes its bytes as they were in the source."""
    found = Manifest(path)
    for table in ("images", "dropped"):
        rows = found.table(table, where=ds.field("sid") == sid)
        if len(rows):
            break
    else:
        raise FaceshardsError(f"{path}: no sid {sid}; they go from 0 to {found.totals['scanned'] - 1}")
    if out is not None:
        if table == "dropped":
            raise FaceshardsError(
                f"{path}: sid {sid} was dropped ({rows['reason'][0]}); its bytes are in the source only"
            )
        number = rows["shard"][0].as_py()
        file = found.table("shards", ["file"], ds.field("shard") == number)["file"][0].as_py()
        with Shard(found.shard_path(file)) as shard:
            row = rows["row"][0].as_py()
            data = shard.image(row)
            check_image(shard.path, row, data, rows["sha256"][0].as_py())
        try:
            out.write_bytes(data)
        except OSError as error:
            raise FaceshardsError(f"{out}: {error.strerror}") from None
    if as_json:
        print_rows(rows.column_names, lambda: iter(rows.to_batches()), 1, 1, True)
        return
    for key, value in rows.to_pylist()[0].items():
        click.echo(f"{key:<15} {value.hex() if isinstance(value, bytes) else '-' if value is None else value}")

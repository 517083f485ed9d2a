"""The command ``faceshards manifest report``; `build --report` ends with what it writes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from faceshards.cli.command import Command
from faceshards.cli.manifest.summary import summary_facts
from faceshards.cli.options import dataset_argument, json_option, show
from faceshards.cli.paths import OUT_PAGE
from faceshards.dataset.manifest import Manifest
from faceshards.files import bytes_text
from faceshards.storage.location import Location
from pipelines.sources.registry import read_records

if TYPE_CHECKING:
    from faceshards.inspection.report.page import Written

_UNITS = {"": 1, **{unit: 1000**power for power, unit in enumerate(("B", "KB", "MB", "GB"))}}
_UNITS |= {unit: 1024**power for power, unit in enumerate(("KIB", "MIB", "GIB"), 1)}


class _Size(click.ParamType):
    """A number of bytes as people write it: 8MB, 500kB, 1.5 GB, 2MiB, 4000000."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Returns the number."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?i?B)?", str(value).strip(), re.IGNORECASE | re.ASCII)
        size = int(float(found[1]) * _UNITS[(found[2] or "").upper()]) if found else 0
        if not size:
            self.fail(f"'{value}' is no size such as 8MB, 500kB or 2MiB.", param, ctx)
        return size


@click.command(cls=Command)
@dataset_argument
@click.option(
    "--out",
    required=True,
    type=OUT_PAGE,
    metavar="PAGE",
    help="The HTML file, or object in a bucket; one that is there is replaced.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Chooses which pictures are shown."
)
@click.option(
    "--max-size", type=_Size(), default="8MB", show_default=True, metavar="SIZE", help="That the page may have."
)
@json_option
def report(path: Location, out: Location, seed: int, max_size: int, as_json: bool) -> None:
    """A page that shows the dataset PATH in figures and pictures.

    Pictures of what was dropped, linked and kept. The page needs nothing else: pictures are in it. Kept ones come from
    the shards, dropped ones from the sources that the dataset was built from. The same dataset and seed give the same
    page.

    \b
    Examples:
      faceshards manifest report data/shards/synthetic --out synthetic.html
      faceshards manifest report data/shards/casia --out casia.html --seed 1 --max-size 2MB
    """
    found = Manifest(path)
    written = write_report(out, found, seed, max_size)
    facts = {
        "page": str(out),
        "bytes": written.bytes,
        "pictures": written.pictures,
        "unread": written.unread,
        "seed": seed,
    }
    show(facts, [report_line(out, written)], as_json)


def check_report(out: Location, folder: Location) -> None:
    """Refuses a page that cannot be written, or must not be; before work that takes hours.

    Args:
        out: the page.
        folder: of the dataset, there or to come.
    """
    from faceshards.inspection.report.page import check_page

    check_page(out, folder)


def write_report(out: Location, found: Manifest, seed: int = 0, max_size: int | None = None) -> Written:
    """Returns what was written about a dataset; see faceshards.inspection.report.page.write."""
    from faceshards.inspection.report.page import SIZE, write  # Jinja and OpenCV: not for every command

    return write(out, found, summary_facts(found), read_records, seed, max_size or SIZE)


def report_line(out: Location, written: Written) -> str:
    """Returns the line that says what was written."""
    return f"report {out}: {bytes_text(written.bytes)}, {written.pictures:,} pictures"

"""The command ``faceshards manifest verify``."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import click

from faceshards.cli.columns import cell
from faceshards.cli.command import Command
from faceshards.cli.options import dataset_argument, json_option, quiet_option
from faceshards.cli.terminal import echo
from faceshards.dataset.manifest import Manifest
from faceshards.progress import Progress
from faceshards.storage.location import Location

if TYPE_CHECKING:
    from faceshards.dataset.row_check import Finding

_SHOWN = 1000  # findings, without --limit


class _Share(click.ParamType):
    """A percentage of a set, or a number of its images."""

    name = "PERCENT|COUNT"

    def convert(
        self, value: str | tuple[Fraction, bool], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Fraction, bool]:
        """Returns a share of 1, or a number, and whether it is a share."""
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(%?)", value.strip(), re.ASCII)
        number = Fraction(found[1]) if found else Fraction(0)
        percent = bool(found and found[2])
        if not number or (percent and number > 100) or not (percent or number.denominator == 1):
            self.fail(f"{value!r} is no percentage above 0 %, such as 1%, and no number of images, such as 1000")
        return (number / 100, True) if percent else (number, False)


@click.command(cls=Command)
@dataset_argument
@click.option(
    "--sample", type=_Share(), help="Look at so many rows, from all shards alike, instead of all: 1%, or 1000."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the choice of rows.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    help=f"Findings to be printed; 0: all. Without it {_SHOWN}, and all with --json. All are counted.",
)
@quiet_option
@json_option
@click.pass_context
def verify(
    ctx: click.Context,
    path: Location,
    sample: tuple[Fraction, bool] | None,
    seed: int,
    limit: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Recompute every checksum, and list each mismatch.

    Every row's sha256 is computed from the shards. With --sample rows are read from the shards where they are, and
    compared with their sha256, label and sid; the shards' and indexes' own checksums are left out, though all have to
    be there with their sizes. Files that are no part of the dataset are listed too. The exit code is 1 if something is
    missing or not as it was published; a file too many is no failure, unless readers of the folder take it for a part
    of the dataset.

    \b
    Examples:
      faceshards manifest verify data/shards/synthetic
      faceshards manifest verify /mnt/shards/wf42m --sample 1% --seed 7
    """
    from faceshards.dataset.verify import Sample
    from faceshards.dataset.verify import verify as findings

    if sample is None and ctx.get_parameter_source("seed") is not click.core.ParameterSource.DEFAULT:
        raise click.UsageError("--seed belongs to --sample: without it all rows are looked at")
    found = Manifest(path)
    kept, shards = found.totals["kept"], found.totals["shards"]
    files = f"{shards} shard{'s'[: shards != 1]}"
    chosen, said = None, f"{kept} images in {files}"
    if sample is not None:
        number, is_share = sample
        chosen = Sample(min(kept, max(1, round(number * kept if is_share else number))), seed)
        share = f"{float(100 * number):g}" if is_share else f"{100 * chosen.images / max(1, kept):.3g}"
        said = f"{share} % = {chosen.images:,} of {kept:,} images in {files} (seed {seed})"
    about = {
        **{"dataset": str(path), "images": chosen.images if chosen else kept, "of": kept, "shards": shards},
        "sample": dataclasses.asdict(chosen) if chosen else None,
    }
    with Progress("verify", found.totals["image_bytes"], quiet) as progress:
        limit = limit if limit is not None else 0 if as_json else _SHOWN
        mismatches, foreign = _print(findings(found, chosen, progress.advance), about, progress, limit, as_json)
    if limit and mismatches + foreign > limit:
        echo(f"({limit} of {mismatches + foreign} findings; --limit 0 for all)", err=True)
    if mismatches:
        raise click.ClickException(f"{path}: {mismatches} mismatches{f'; looked at {said}' if chosen else ''}")
    if not as_json:
        more = f"; {foreign} files or folders are no part of the dataset" if foreign else ""
        echo(f"{path}: {said} are as the manifest says{more}")


def _print(
    findings: Iterable[Finding], about: dict[str, Any], progress: Progress, limit: int, as_json: bool
) -> tuple[int, int]:
    """Returns how many mismatches and how many foreign files there are, after printing them as they are found.

    Args:
        findings: of the dataset.
        about: what else JSON says.
        progress: the bar that is on the terminal meanwhile.
        limit: of findings printed; 0: none.
        as_json: prints one object.
    """
    counts = [0, 0]
    if as_json:
        echo(f'{json.dumps(about)[:-1]}, "findings": [', nl=False)
    for finding in findings:
        counts[finding.foreign] += 1
        if limit and sum(counts) > limit:
            continue
        with progress.aside():
            if as_json:
                echo(f"{',' if sum(counts) > 1 else ''}\n{json.dumps(dataclasses.asdict(finding))}", nl=False)
            else:
                echo(cell(str(finding)))
    if as_json:
        echo(f'\n], "mismatches": {counts[0]}, "foreign": {counts[1]}}}')
    return counts[0], counts[1]

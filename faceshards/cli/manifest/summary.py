"""The command ``faceshards manifest summary``; a build ends with what it prints."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import click

from faceshards.cli.command import Command
from faceshards.cli.options import dataset_argument, json_option
from faceshards.cli.terminal import echo
from faceshards.dataset.manifest import Manifest
from faceshards.errors import one_line
from faceshards.files import bytes_text
from faceshards.inspection.sizes import spread
from faceshards.storage.location import Location
from pipelines.config import BuildConfig
from pipelines.sources.catalog import known_datasets


@click.command(cls=Command)
@dataset_argument
@json_option
def summary(path: Location, as_json: bool) -> None:
    """What was scanned, kept and dropped, and why.

    How large identities are, too, and where it all comes from.

    \b
    Examples:
      faceshards manifest summary data/shards/synthetic
      faceshards manifest summary data/shards/synthetic --json
    """
    print_summary(Manifest(path), as_json)


def print_summary(found: Manifest, as_json: bool) -> None:
    """Prints what was scanned, kept and dropped, and from what."""
    facts = summary_facts(found)
    echo(json.dumps(facts, indent=2) if as_json else "\n".join(map(one_line, _lines(facts))))


def summary_facts(found: Manifest) -> dict[str, Any]:
    """Returns what a summary says, as JSON has it."""
    kept = found.table("identities", ["kept"])["kept"].to_numpy()
    rows = found.table("shards", ["rows"])["rows"].to_numpy()
    defaults = json.loads(json.dumps(dataclasses.asdict(BuildConfig())))
    sets = found.info.get("dedupe", {}).get("test_overlap", {})  # of a build with --exclude
    known = known_datasets().get(found.info["name"])
    return {
        **{"path": str(found.path), "name": found.info["name"], "fingerprint": found.fingerprint},
        **found.totals,
        **({"kept_out": sets} if sets else {}),
        **{name: found.info[name] for name in ("split", "unseen") if name in found.info},  # of a split
        "identity_sizes": spread(kept[kept > 0]),
        "shard_rows": spread(rows),
        "sources": found.info.get("sources", []),
        "terms": known.terms if known else None,
        "settings": {
            name: value for name, value in found.info["config"].items() if value != defaults.get(name, _NEVER)
        },
        "warnings": found.info["warnings"],
        "unsound": found.info.get("unsound", []),
    }


def spread_lines(what: str, sizes: dict[str, Any], more: str = "") -> Iterator[str]:
    """Yields what is said of the spread of some sizes (inspection/sizes.py)."""
    shares = ", ".join(f"{float(share) * 100:g} % {size:,}" for share, size in sizes["quantiles"].items())
    yield f"  {what}: {sizes['least']:,} to {sizes['most']:,}, mean {sizes['mean']:,.1f}"
    yield f"    quantiles {shares}{more}"


_TOLD = 8  # sources named
_NEVER = object()  # no setting's value


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    """Yields a summary for people."""
    yield f"{facts['name']} at {facts['path']}"
    yield f"  scanned     {facts['scanned']:>12,}"
    yield f"  kept        {facts['kept']:>12,}  of {facts['identities']:,} identities"
    for reason, count in facts["dropped"].items():
        yield f"  dropped     {count:>12,}  {reason}"
    for name, count in facts.get("kept_out", {}).items():
        yield f"  kept out    {count:>12,}  of {name}"
    if unseen := facts.get("unseen"):
        of = f"identities of {facts['split']['parent']['fingerprint'][:12]}…"
        yield f"  held out    {unseen['identities']:>12,}  {of}; {unseen['pairs']:,} pairs in {unseen['file']}"
    yield f"  conflicts   {facts['conflicts']:>12,}  between {facts['identity_links']:,} pairs of identities"
    if sizes := facts["identity_sizes"]:
        yield from spread_lines("images of an identity", sizes, f"; Gini coefficient {sizes['gini']:.3f}")
    rows = facts["shard_rows"]
    each = f", {rows['least']:,} to {rows['most']:,} rows each" if rows else ""
    yield f"  shards      {facts['shards']:>12,}  {bytes_text(facts['image_bytes'])} of images{each}"
    for source in facts["sources"][:_TOLD]:
        yield f"  source      {source['name']}: {source['kind']} at {source['path']}, {bytes_text(source['bytes'])}"
    if (more := len(facts["sources"]) - _TOLD) > 0:
        yield f"  source      and {more:,} more; --json names them"
    if facts["terms"]:
        yield f"  terms       {facts['terms']}"
    changed = ", ".join(f"{name}={json.dumps(value)}" for name, value in facts["settings"].items())
    yield f"  settings    {changed or 'the defaults'}"
    for warning in facts["warnings"]:
        yield f"  warning     {warning}"
    yield f"  fingerprint {facts['fingerprint']}"

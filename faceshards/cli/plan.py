"""What ``faceshards build --plan`` prints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from faceshards.cli.manifest.summary import spread_lines
from faceshards.cli.terminal import echo
from faceshards.files import bytes_text

_ROUGH = 10  # seconds of work, from which those of a sample's whole are not told well


def print_plan(facts: dict[str, Any], as_json: bool) -> None:
    """Prints what a build would do, as `pipelines.plan.plan` says it."""
    echo(json.dumps(facts, indent=2) if as_json else "\n".join(_lines(facts)))


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    """Yields a plan for people."""
    yield f"{facts['name']}, as a build would publish it at {facts['out']}"
    if facts["sample"]:
        seen = facts["looked_at"]
        looked_at = (
            f"{facts['sample'] * 100:g} % of the identities: {seen['images']:,} images of {seen['identities']:,}"
        )
        yield f"  sample      {looked_at}; all figures are scaled"
        yield "              a copy under another identity is seen only if both are in it"
    yield f"  scanned     {facts['scanned']:>12,}"
    share = _share(facts, facts["kept"])
    yield f"  keep        {facts['kept']:>12,}  {share}  of {_identities(facts)}"
    for reason, count in facts["dropped"].items():
        least = "  at least" if facts["sample"] and reason == "label_conflict" else ""
        yield f"  drop        {count:>12,}  {_share(facts, count)}  {reason}{least}"
    for name, count in facts["kept_out"].items():
        yield f"  keep out    {count:>12,}  {_share(facts, count)}  of {name}"
    yield f"  conflicts   {facts['conflicts']:>12,}  between {facts['identity_links']:,} pairs of identities"
    if sizes := facts["identity_sizes"]:
        yield from spread_lines("images of an identity", sizes, f"; Gini coefficient {sizes['gini']:.3f}")
    for what, key in (("bytes of an image", "image_sizes"), ("bits between near-duplicates", "near_duplicate_bits")):
        if sizes := facts[key]:
            yield from spread_lines(what, sizes)
    if facts["measured"]:
        from pipelines.filters.quantiles import quantile_lines

        yield "  measured by filters; a threshold at a quantile drops that share"
        yield from (f"  {line}" for line in quantile_lines(facts["measured"]))
    rows, disk = facts["shard_rows"], facts["disk"]
    yield f"  shards      {facts['shards']:>12,}  {rows['least']:,} to {rows['most']:,} rows each"
    whole = bytes_text(disk["shards"] + disk["tables"])
    yield f"  disk        about {whole}: {bytes_text(disk['shards'])} of shards, {bytes_text(disk['tables'])} of tables"
    free = "" if disk["free"] is None else f"; {bytes_text(disk['free'])} are free"
    yield f"              {bytes_text(disk['work'])} more until it is published{free}"
    if disk["spilled"]:
        yield f"              {bytes_text(disk['spilled'])} until then for images on their way (--shuffle direct: none)"
    yield f"  time        {_time(facts)}"
    for warning in facts["warnings"]:
        yield f"  warning     {'in the sample: ' if facts['sample'] else ''}{warning}"
    for refusal in facts["refused"]:
        yield f"  refused     {refusal}"
    if folder := facts.get("work_folder"):
        yield f"  go on       by the same command without --plan, from the scan in\n              {folder}"


def _share(facts: dict[str, Any], count: int) -> str:
    return f"{100 * count / facts['scanned']:5.1f} %"


def _identities(facts: dict[str, Any]) -> str:
    """Returns how many identities stay and go."""
    gone = f", {facts['identities_dropped']:,} left out whole" if facts["identities_dropped"] else ""
    return f"{facts['identities']:,} identities{gone}"


def _time(facts: dict[str, Any]) -> str:
    """Returns about how long a build takes, with what is done already."""
    if not (seconds := facts["seconds"]):
        return "unknown: an earlier release scanned the sources"
    done = "" if facts["sample"] else " (done)"
    workers = seconds["workers"]
    parts = f"{_duration(seconds['scan_and_sign'])} to scan and sign{done}, {_duration(seconds['write'])} to write"
    rough = "roughly" if facts["sample"] and seconds["measured"] < _ROUGH else "about"
    return f"{rough} {parts}, with {workers} worker{'s' * (workers != 1)}"


def _duration(seconds: float) -> str:
    """Returns a time for people: 7 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"

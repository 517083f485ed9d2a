"""The command ``faceshards manifest diff``."""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from faceshards.cli.command import Command
from faceshards.cli.options import LOCATION, json_option
from faceshards.cli.rows import FEW, print_rows
from faceshards.cli.terminal import binary_stdout, echo
from faceshards.dataset.manifest import Manifest
from faceshards.files import bytes_text
from faceshards.storage.location import Location

if TYPE_CHECKING:
    from faceshards.inspection.diff import Diff

_SAID = {
    "images_same": "images that are the same",
    "images_gained": "images of B only",
    "images_lost": "images of A only",
    "images_moved": "images under another label_original",
    "identities_gained": "identities of B only",
    "identities_lost": "identities of A only",
    "relabelled": "identities with another label",
    "dropped_otherwise": "records dropped for another reason",
}


@click.command(cls=Command)
@click.argument("a", type=LOCATION)
@click.argument("b", type=LOCATION)
@click.option(
    "--limit", type=click.IntRange(min=0), help=f"Rows of each list; 0: all. Without it {FEW}, and all with --json."
)
@click.option("--exit-code", is_flag=True, help="Exit with 1 if they differ, as git diff does.")
@json_option
def diff(a: Location, b: Location, limit: int | None, exit_code: bool, as_json: bool) -> None:
    """What differs from dataset A to dataset B.

    Settings, images, identities, labels and drops. An image is its sha256 under its label_original; one that lies in
    other shards or rows is the same.

    \b
    Examples:
      faceshards manifest diff data/shards/before data/shards/after
      faceshards manifest diff data/shards/before data/shards/after --json > diff.json
    """
    from faceshards.inspection.diff import Diff

    found = Diff(Manifest(a), Manifest(b))
    if as_json:
        _print_json(found, limit or 0)
    else:
        _print_lists(found, FEW if limit is None else limit)
    if exit_code and found.differs:
        sys.exit(1)


def _side(found: Manifest) -> dict[str, Any]:
    about = {"path": str(found.path), "name": found.info["name"], "schema_version": found.schema_version}
    return {**about, "fingerprint": found.fingerprint}


def _print_json(found: Diff, limit: int) -> None:
    from faceshards.inspection.plain import write_json

    head = {"a": _side(found.a), "b": _side(found.b), "differs": found.differs, **found.about, "counts": found.counts}
    out = binary_stdout()
    out.write(json.dumps(head, ensure_ascii=False, indent=2).removesuffix("\n}").encode())
    for name in _SAID:
        if name != "images_same":
            out.write(f',\n  "{name}": '.encode())
            write_json(found.rows(name, limit), out, end="")
    out.write(b"\n}\n")
    out.flush()


def _print_lists(found: Diff, limit: int) -> None:
    for side, of in (("A", found.a), ("B", found.b)):
        echo(f"{side}  {of.info['name']} at {of.path}")
    for kind, entries in found.about.items():
        if entries:
            echo(f"\n{kind} that differ")
        width = max((len(entry["name"]) for entry in entries), default=0)
        for entry in entries:
            a, b = _different(entry["a"], entry["b"])
            echo(f"  {entry['name']:<{width}}  {_shown(a)} -> {_shown(b)}")
    echo("")
    for name, count in found.counts.items():
        echo(f"{count:>14,}  {_SAID[name]}")
    for name, count in found.counts.items():
        if name == "images_same" or not count:
            continue
        echo(f"\n{_SAID[name]}")
        names = next(found.rows(name, 1)).schema.names
        print_rows(names, partial(found.rows, name, limit), count, limit, False)


def _different(a: Any, b: Any) -> tuple[Any, Any]:
    """Returns what differs of two entries of a list: of a source that both have, those of its facts that do."""
    if isinstance(a, dict) and isinstance(b, dict):
        names = [name for name in {**a, **b} if a.get(name) != b.get(name)]
        return {name: a.get(name) for name in names}, {name: b.get(name) for name in names}
    return a, b


def _shown(value: Any) -> str:
    if isinstance(value, dict):  # of a source
        size = {"bytes": bytes_text(value["bytes"])} if value.get("bytes") else {}
        facts = {name: fact for name, fact in {**value, **size}.items() if name not in ("name", "index")}
        return ", ".join(f"{name} {fact}" for name, fact in facts.items())
    return "-" if value is None else f"{value:,}" if type(value) is int else json.dumps(value, ensure_ascii=False)

"""The command ``faceshards settings``."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import click

from faceshards.cli.command import Command
from faceshards.cli.options import json_option, show
from faceshards.settings import describe, plain_text
from pipelines.config import BuildConfig
from training.config import TrainConfig

_TITLES = {
    "build": "faceshards build --set KEY=VALUE, or --config FILE",
    "train": "faceshards train RECIPE --set KEY=VALUE",
}


@click.command(cls=Command)
@click.argument("which", type=click.Choice(list(_TITLES)), required=False)
@json_option
def settings(which: str | None, as_json: bool) -> None:
    """List the settings that --set and --config take.

    Those of `build`, or of `train`; without WHICH of both. Each has its type, default, range and meaning. Settings of
    filters hold once a filter is on; a recipe has its own values in place of training's defaults.

    \b
    Examples:
      faceshards settings
      faceshards settings train
      faceshards settings --json
    """
    from pipelines.filters.registry import filter_settings  # OpenCV

    found = {"build": [*describe(BuildConfig()), *filter_settings()], "train": describe(TrainConfig())}
    chosen = {name: found[name] for name in found if which in (None, name)}
    show(chosen, _lines(chosen), as_json)


def _lines(found: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Yields what is said of settings to people."""
    for number, (name, rows) in enumerate(found.items()):
        if number:
            yield ""
        yield _TITLES[name]
        for row in rows:
            yield f"  {row['key']}={_text(row['default'])}  ({row['type']}{_allowed(row)})"
            yield from textwrap.wrap(row["meaning"], 100, initial_indent="      ", subsequent_indent="      ")


def _text(value: Any) -> str:
    if isinstance(value, tuple | list | dict):
        return f"[{', '.join(map(_text, value))}]"
    return f"{value:.10g}" if isinstance(value, float) else plain_text(value)


def _allowed(row: dict[str, Any]) -> str:
    if row["choices"]:
        return f": {', '.join(map(plain_text, row['choices']))}"
    return f" from {_text(row['range'][0])} to {_text(row['range'][1])}" if row["range"] else ""

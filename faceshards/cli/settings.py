"""The command ``faceshards settings``."""

from __future__ import annotations

import dataclasses
import json

import click

from faceshards.cli.options import Command, json_option
from pipelines.config import BuildConfig


@click.command(cls=Command)
@json_option
def settings(as_json: bool) -> None:
    """List the settings that --set and --config take.

    Those of filters hold once one is on.

    \b
    Examples:
      faceshards settings
      faceshards settings --json
    """
    values = {field.name: getattr(BuildConfig(), field.name) for field in dataclasses.fields(BuildConfig)}
    if as_json:
        click.echo(json.dumps(values, indent=2))
        return
    from pipelines.filters.registry import filter_names, settle  # OpenCV

    for name, own in settle({key: {} for key in filter_names()}).items():
        values |= {f"filters.{name}.{key}": value for key, value in own.items()}
    width = max(map(len, values))
    for key, value in values.items():
        click.echo(f"{key:<{width}} {list(value) if isinstance(value, tuple | dict) else value}")

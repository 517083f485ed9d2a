"""What every command of faceshards shares: errors as one line, and --set KEY=VALUE."""

from __future__ import annotations

from typing import Any

import click
import yaml

from pipelines.errors import FaceshardsError


class Group(click.Group):
    """Turns the errors a user can meet into one line on stderr and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; raises ClickException for what a user can put right."""
        try:
            return super().invoke(ctx)
        except FaceshardsError as error:
            raise click.ClickException(" ".join(str(error).split())) from None
        except KeyboardInterrupt:
            raise click.ClickException("interrupted; the same command goes on where it stopped") from None


def settings_option(command: Any) -> Any:
    """Adds the option --set KEY=VALUE; the command gets `settings`, a dict with each value read as YAML."""
    return click.option(
        "--set", "settings", multiple=True, metavar="KEY=VALUE", callback=_parse, help="One setting; may be repeated."
    )(command)


def _parse(_context: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> dict[str, Any]:
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise click.UsageError(f"--set {text}: not KEY=VALUE")
        try:
            found[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise click.UsageError(f"--set {text}: the value is not YAML") from None
    return found

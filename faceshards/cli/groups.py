"""Groups of commands, which are imported when they are called for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from typing import Any

import click

from faceshards.cli.command import Command, Interrupted
from faceshards.errors import as_typed, discreet, harmless
from faceshards.extensions import ExtensionError, load, registered


class Commands(click.Group):
    """A group of such commands."""

    command_class = Command

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command that was typed; Ctrl-C ends it alike before it runs.

        What is said of its failure has no control characters, and no credentials of an address that was typed.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted from None
        except click.ClickException as error:
            error.message = harmless(as_typed(discreet(error.message)))  # type: ignore[misc]
            raise


class LazyCommands(Commands):
    """A group whose commands are imported when they are called for; those of the house not for the list of them.

    Args:
        places: "module:name" of each command and the first sentence of its help, by the name that is typed.
        family: name of the family to which other packages add commands (faceshards.extensions); "" for none.
    """

    def __init__(self, *args: Any, places: Mapping[str, tuple[str, str]], family: str = "", **options: Any) -> None:
        super().__init__(*args, **options)
        self.places, self.family = places, family

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names of all commands, sorted."""
        return sorted({*self.places, *self._others()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Returns a command, or None."""
        others = self._others()
        try:
            if cmd_name in others:
                return load(others[cmd_name], click.Command)
            if cmd_name in self.places:
                module, _, name = self.places[cmd_name][0].partition(":")
                return getattr(importlib.import_module(module), name)
            return None
        except ExtensionError as error:  # of this command, or of a family that one of the house has imported
            return _broken(cmd_name, error)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the list of commands; imports those of other packages alone."""
        names = self.list_commands(ctx)
        limit = formatter.width - 6 - max(map(len, names))
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._short_help(ctx, name).get_short_help_str(limit)) for name in names])

    def _short_help(self, ctx: click.Context, name: str) -> click.Command:
        """Returns a command, or in place of one of the house what has its help."""
        if name in self.places:
            return click.Command(name, help=self.places[name][1])
        found = self.get_command(ctx, name)
        assert found is not None
        return found

    def _others(self) -> dict[str, EntryPoint]:
        """Returns the entry points of other packages by name."""
        try:
            return {entry.name: entry for entry in registered(self.family, self.places)} if self.family else {}
        except ExtensionError as error:
            raise click.ClickException(str(error)) from None


def _broken(name: str, error: ExtensionError) -> click.Command:
    """Returns a command in place of one that cannot be imported: it says why, and the others work."""

    @click.command(
        name, cls=Command, help=f"Cannot be loaded: {error}", context_settings={"ignore_unknown_options": True}
    )
    @click.argument("arguments", nargs=-1)
    def broken(arguments: tuple[str, ...]) -> None:
        raise error

    return broken

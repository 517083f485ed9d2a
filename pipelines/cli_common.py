"""What every command of faceshards shares: errors as one line, --set KEY=VALUE, and a folder to itself."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import yaml

from pipelines.errors import FaceshardsError

# What to say of an interrupted command of which something is left.
GO_ON = {
    **dict.fromkeys(("build", "embed"), "; the same command goes on where it stopped"),
    "train": "; with --resume the command goes on from the last checkpoint",
}


class Group(click.Group):
    """Turns the errors a user can meet into one line on stderr and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; raises ClickException for what a user can put right."""
        try:
            return super().invoke(ctx)
        except FaceshardsError as error:
            raise click.ClickException(" ".join(str(error).split())) from None
        except KeyboardInterrupt:
            raise click.ClickException(f"interrupted{GO_ON.get(ctx.invoked_subcommand or '', '')}") from None


@contextmanager
def exclusive_folder(out: Path, name: str = ".lock") -> Iterator[None]:
    """Makes a folder and keeps it from a second command until this one ends or dies.

    Args:
        out: the folder.
        name: of the lock file in it.

    Raises:
        FaceshardsError: another process holds it, or the folder cannot be made; an OSError of the work inside
            likewise, as one line.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with open(out / name, "w", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FaceshardsError(f"{out}: another process is at work there") from None
            yield
    except OSError as error:
        raise FaceshardsError(f"{error.filename or out}: {error.strerror or error}") from None


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

"""Commands as tests run them."""

from __future__ import annotations

from click.testing import CliRunner, Result

from faceshards.cli.main import main


def run(*arguments: object) -> Result:
    """Returns what a command printed and how it ended."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])

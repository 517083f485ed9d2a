"""What the command line prints: a name from a disk or a file says nothing to the terminal itself."""

from __future__ import annotations

import codecs
import io
import logging
import sys
from typing import Any, BinaryIO

import click

from faceshards.errors import as_typed, discreet, harmless, one_line


def echo(text: str = "", err: bool = False, nl: bool = True) -> None:
    """Prints text, lines or JSON, with control characters as their codes; JSON stays JSON, and says the same."""
    click.echo(harmless(text), err=err, nl=nl)


def binary_stdout() -> BinaryIO:
    """Returns where bytes of text go: as they are to a file or a pipe, to a terminal as echo() would print them."""
    return _Shown(sys.stdout.buffer) if sys.stdout.isatty() else sys.stdout.buffer  # type: ignore[return-value]


class _Shown(io.RawIOBase):
    """A stream of UTF-8 on its way to a terminal."""

    def __init__(self, out: BinaryIO) -> None:
        self._out, self._decoder = out, codecs.getincrementaldecoder("utf-8")("replace")

    def writable(self) -> bool:
        """Returns True."""
        return True

    def write(self, data: Any, /) -> int:
        """Returns the number of bytes taken."""
        self._out.write(harmless(self._decoder.decode(bytes(data))).encode())
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Has the terminal show what was written."""
        self._out.flush()


class LogFormatter(logging.Formatter):
    """Formats what is logged: a message is one line, whatever names are in it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Returns the line."""
        record.message = one_line(as_typed(record.message))
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line, and below it the traceback if there is one."""
        return harmless(discreet(super().format(record)))

"""What the guards of pickles share: a pickle is a program, and no more of one is let through than its format needs."""

from __future__ import annotations

import pickletools
import re
from collections.abc import Container, Iterator, Set
from dataclasses import dataclass
from typing import IO, Any


class RefusedError(Exception):
    """A pickle asks for more than its format needs; the message says what that is."""


@dataclass(frozen=True)
class Guard:
    """Knows what the pickles of one format need, and refuses everything else by name.

    Args:
        kind: what such a file is.
        holds: what to say of such files when they ask for something else.
        names: module and name of the functions and classes that they ask for.
        opcodes: of pickletools, that they use.
    """

    kind: str
    holds: str
    names: Container[tuple[str, str]]
    opcodes: Set[str]

    def walk(self, pickled: bytes | IO[bytes]) -> Iterator[tuple[str, Any]]:
        """Yields the opcodes of a pickle and their arguments; nothing of it is carried out.

        Names that are built on the stack (STACK_GLOBAL) are not seen here: see check_name().

        Raises:
            RefusedError: an opcode, or the name in one, is not needed.
            ValueError: the pickle is damaged or cut.
        """
        argument: Any
        for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
            if opcode.name in ("GLOBAL", "INST"):
                self.check_name(*argument.split(" ", 1))
            if opcode.name not in self.opcodes:
                raise self.refusal(opcode.name)
            if "PUT" in opcode.name and argument > count:  # the table of what was put would have that length
                raise RefusedError("it counts what it puts away wrongly")
            yield opcode.name, argument

    def check_name(self, module: Any, name: Any) -> None:
        """Refuses a function or class that is not needed; whatever a pickle builds may stand for its name.

        Raises:
            RefusedError: names it.
        """
        if type(module) is not str or type(name) is not str:  # to hash others can take any depth
            raise RefusedError("it asks for something whose name is no text")
        if (module, name) not in self.names:
            raise RefusedError(f"it asks for {shown(f'{module}.{name}')}; {self.holds}")

    def refusal(self, opcode: str) -> RefusedError:
        """Returns the error about an opcode."""
        return RefusedError(f"its pickle uses {opcode}, which no {self.kind} needs")


def shown(text: str, most: int = 80) -> str:
    """Returns a text from a file as a message can have it: short, and nothing that moves a terminal's cursor."""
    return re.sub(r"[^\w.<>|-]", "?", text[:most])

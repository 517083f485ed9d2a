"""What the guards of pickles share: a pickle is a program, and no more of one is let through than its format needs."""

from __future__ import annotations

import io
import pickletools
import re
import sys
from collections.abc import Container, Iterator, Set
from dataclasses import dataclass
from typing import IO, Any

SPARE = 64 << 20  # bytes that may be made of any file, beside twice its own
LONGEST = 16 << 20  # bytes of one text or image in a pickle: a text may take four times its bytes
LONGEST_NAME = 1000  # characters of a module and a name in it
MOST_BITS = 1024  # of a number

# Bytes that opcodes make, rounded up, on CPython of 64 bits; texts are measured. One more for whatever is pushed.
_MADE = {
    **dict.fromkeys(("EMPTY_LIST", "LIST", "EMPTY_SET", "FROZENSET"), 128),  # with room for four
    **dict.fromkeys(("EMPTY_DICT", "DICT"), 256),  # with its first entry
    **dict.fromkeys(("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"), 64),
    **dict.fromkeys(("REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST", "BINPERSID", "GLOBAL", "STACK_GLOBAL"), 256),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), 96),  # an entry of the table
}
_PUSHED = 48  # a number, its place on the stack and in what it is put into; half an entry of a dictionary


class RefusedError(Exception):
    """A pickle asks for more than its format needs; the message says what that is."""


class Budget:
    """Bytes that may still be made of a file: at most twice its own, and SPARE.

    Args:
        size: of the file, in bytes.
    """

    def __init__(self, size: int) -> None:
        self.whole = 2 * size + SPARE
        self._size, self._left = size, self.whole

    def spend(self, count: int) -> None:
        """Takes away what is about to be made.

        Raises:
            RefusedError: more than is left.
        """
        self._left -= count
        if self._left < 0:
            raise RefusedError(f"its {self._size} bytes would become more than twice as many and {SPARE >> 20} MiB")


class _Reader(io.RawIOBase):
    """A pickle's bytes, no more than LONGEST of them at a time."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = -1, /) -> bytes:
        """Returns so many bytes."""
        if size > LONGEST:
            raise RefusedError(f"it has a text or image of {size} bytes")
        return self._file.read(size)

    def readline(self, size: int | None = -1, /) -> bytes:
        """Returns the bytes up to the end of the line."""
        line = self._file.readline(LONGEST + 1)
        if len(line) > LONGEST:
            raise RefusedError(f"it has a line of more than {LONGEST} bytes")
        return line

    def tell(self) -> int:
        """Returns the place in the pickle."""
        return self._file.tell()


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

    def walk(self, pickled: bytes | IO[bytes], budget: Budget | None = None) -> Iterator[tuple[str, Any]]:
        """Yields the opcodes of a pickle and their arguments; nothing of it is carried out.

        Names that are built on the stack (STACK_GLOBAL) are not seen here: see check_name().

        Args:
            pickled: the pickle, or a file that is one.
            budget: pays for what the opcodes make; without it one of the pickle's size.

        Raises:
            RefusedError: an opcode, or the name in one, is not needed; or there is too much of something.
            ValueError: the pickle is damaged or cut.
        """
        argument: Any
        file = io.BytesIO(pickled) if isinstance(pickled, bytes) else pickled
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        budget = budget or Budget(size)
        for count, (opcode, argument, _) in enumerate(pickletools.genops(_Reader(file))):  # type: ignore[arg-type]
            budget.spend(_MADE.get(opcode.name, 0) + _PUSHED)
            if isinstance(argument, str | bytes | bytearray):
                budget.spend(sys.getsizeof(argument))
            elif type(argument) is int and argument.bit_length() > MOST_BITS:
                raise RefusedError(f"it has a number of more than {MOST_BITS} bits")
            if opcode.name == "FRAME" and argument > size:  # who unpickles would make room for it
                raise ValueError(f"a frame of {argument} bytes in {size}")
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
        if len(module) + len(name) > LONGEST_NAME:  # a name that was put away once may be asked for a million times
            raise RefusedError(f"it asks for something whose name has {len(module) + len(name)} characters")
        if (module, name) not in self.names:
            raise RefusedError(f"it asks for {shown(f'{module}.{name}')}; {self.holds}")

    def refusal(self, opcode: str) -> RefusedError:
        """Returns the error about an opcode."""
        return RefusedError(f"its pickle uses {opcode}, which no {self.kind} needs")


def shown(text: str, most: int = 80) -> str:
    """Returns a text from a file as a message can have it: short, and nothing that moves a terminal's cursor."""
    return re.sub(r"[^\w.<>|-]", "?", text[:most])

"""Members of a family from other packages, found by entry points (docs/extending.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from faceshards.errors import FaceshardsError

Member = TypeVar("Member")


class ExtensionError(FaceshardsError):
    """What another package adds cannot be loaded, is not what it should be, or has a name that is taken."""


def family(name: str, own: Mapping[str, Member], kind: Any) -> dict[str, Member]:
    """Returns the members of a family by name: those of the house, then those of installed packages.

    Args:
        name: of the family, which is the group `faceshards.NAME` of entry points.
        own: members of the house.
        kind: what a member must be: a protocol, whose attributes it has, or a class.

    Raises:
        ExtensionError: names entry point, package and cause.
    """
    return {**own, **{entry.name: load(entry, kind) for entry in registered(name, own)}}


def registered(name: str, own: Mapping[str, Any]) -> Iterator[EntryPoint]:
    """Yields a family's entry points, none of them loaded, in the order of their names.

    Raises:
        ExtensionError: a name is taken, by the house or by another package.
    """
    taken = dict.fromkeys(own, "faceshards")
    for entry in sorted(entry_points(group=f"faceshards.{name}"), key=lambda entry: (entry.name, entry.value)):
        if entry.name in taken:
            raise ExtensionError(f"{described(entry)}: the name is taken by {taken[entry.name]}: rename or remove one")
        taken[entry.name] = _package(entry)
        yield entry


def load(entry: EntryPoint, kind: Any) -> Any:
    """Returns what an entry point stands for.

    Args:
        entry: of a family.
        kind: see family().

    Raises:
        ExtensionError: it cannot be imported, or is of another kind.
    """
    try:
        member = entry.load()
    except (Exception, SystemExit) as error:  # whatever the other package does while it is imported
        raise ExtensionError(f"{described(entry)}: {type(error).__name__}: {error}") from error
    if getattr(kind, "_is_protocol", False):
        if lacks := lacking(member, kind):
            raise ExtensionError(f"{described(entry)}: has no {', '.join(lacks)}")
    elif not isinstance(member, kind):
        raise ExtensionError(f"{described(entry)}: {type(member).__name__} is not a {kind.__name__}")
    return member


def lacking(member: Any, protocol: type) -> list[str]:
    """Returns the names that a protocol has and a member has not, sorted."""
    wanted = {key for base in protocol.__mro__ for key in (*vars(base), *vars(base).get("__annotations__", ()))}
    return sorted(key for key in wanted if not key.startswith("_") and not hasattr(member, key))


@contextmanager
def blamed(member: str) -> Iterator[None]:
    """Tells whatever a member of a family raises as one line that names it.

    Raises:
        ExtensionError: the work inside raised what is no error for users.
    """
    try:
        yield
    except (FaceshardsError, OSError, MemoryError):
        raise
    except Exception as error:
        raise ExtensionError(f"{member}: {type(error).__name__}: {error}") from error


def described(entry: EntryPoint) -> str:
    """Returns an entry point as a message names it: family, name, package and place."""
    return f"{entry.group} '{entry.name}' of {_package(entry)} ({entry.value})"


def _package(entry: EntryPoint) -> str:
    return f"the package {entry.dist.name} {entry.dist.version}" if entry.dist else "a package without a name"

"""The filters by name, those of other packages too, and what a build's settings make of them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from typing import Any, cast

from faceshards.dataset.schema import IDENTITY, REASONS
from faceshards.errors import ConfigError
from faceshards.extensions import ExtensionError, described, load, registered
from faceshards.settings import describe, make_config
from pipelines.filters.base import Filter
from pipelines.filters.blur import Blur
from pipelines.filters.exposure import Exposure
from pipelines.filters.gray import Gray
from pipelines.filters.size import Size

FILTERS: dict[str, type[Filter]] = {"size": Size, "exposure": Exposure, "gray": Gray, "blur": Blur}
"""By name, in the order in which they are asked; the first to object gives the reason. What is nearly black has no fine
detail either: blur comes last. Those of other packages are asked after these, in the order of their names."""

Settings = Mapping[str, Mapping[str, Any]]


def filter_names() -> list[str]:
    """Returns the names of all filters there are, in the order in which they are asked."""
    return [*FILTERS, *_others()]


def settle(wanted: Settings) -> dict[str, dict[str, Any]]:
    """Returns every setting of the filters that are wanted, in the order in which they are asked.

    Args:
        wanted: by the filters' names; of each the settings that are not its defaults.

    Raises:
        ConfigError: no such filter or setting, a value out of its range, or reasons that are none.
        ExtensionError: another package brings what is no filter, or takes a name.
    """
    known = filter_names() if wanted else []
    for name in wanted:
        if name not in known:
            raise ConfigError(f"filters: no filter '{name}'; there are {', '.join(known)}")
    made = {name: _make(name, wanted[name]) for name in known if name in wanted}
    reasons_of(made)
    return {name: dataclasses.asdict(one) for name, one in made.items()}  # type: ignore[call-overload]


def make_filters(settings: Settings) -> dict[str, Filter]:
    """Returns the filters of a build by name, in the order in which they are asked.

    Args:
        settings: as settle() gives them.
    """
    return {name: _make(name, own) for name, own in settings.items()}


def filter_settings() -> list[dict[str, Any]]:
    """Returns the settings of all filters, as faceshards.settings.describe() gives them."""
    made = {name: _make(name, {}) for name in filter_names()}
    return [setting for name, one in made.items() for setting in describe(one, f"filters.{name}.")]


def reasons_of(filters: Mapping[str, Filter]) -> tuple[str, ...]:
    """Returns the drop reasons of filters, in their order.

    Raises:
        ConfigError: one is no name, or taken.
    """
    taken = dict.fromkeys((*REASONS, *IDENTITY), "the build")
    found: list[str] = []
    for name, one in filters.items():
        reasons = getattr(one, "REASONS", None)
        if not isinstance(reasons, tuple) or not reasons:
            raise ConfigError(f"filters.{name}: REASONS {reasons!r} is no tuple of drop reasons")
        for reason in reasons:
            if not isinstance(reason, str) or not re.fullmatch("[a-z][a-z0-9_]*", reason):
                raise ConfigError(f"filters.{name}: drop reason {reason!r} is no name of a to z, digits and _")
            if reason in taken:
                raise ConfigError(f"filters.{name}: drop reason '{reason}' is one of {taken[reason]}")
            taken[reason] = f"filter {name}"
            found.append(reason)
    return tuple(found)


def _make(name: str, settings: Mapping[str, Any]) -> Filter:
    kind = FILTERS.get(name) or _load(name)
    where = f"filters.{name}"
    try:
        return make_config(dict(settings), where, kind())
    except ConfigError as error:  # of the filter itself, or of a setting, which is named with the filter already
        raise ConfigError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None
    except Exception as error:
        raise ConfigError(f"{where}: {type(error).__name__}: {error}") from None


def _load(name: str) -> type[Filter]:
    """Returns the filter of another package."""
    entry = _others().get(name)
    if entry is None:
        raise ConfigError(f"filters: no filter '{name}'; there are {', '.join(filter_names())}")
    kind = load(entry, Filter)
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise ExtensionError(f"{described(entry)}: is no dataclass, whose fields would be its settings")
    return cast(type[Filter], kind)


def _others() -> dict[str, EntryPoint]:
    """Returns the filters of other packages by name, none of them loaded."""
    return {entry.name: entry for entry in registered("filters", FILTERS)}

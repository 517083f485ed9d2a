"""Recipes: the settings of a run by layers, which of them each value comes from, and whose figure it is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from faceshards.errors import ConfigError
from faceshards.settings import load_yaml, make_config

OURS = "ours"  # the source of figures that no peer trains with

# What a peer's configuration or code decides. The rest (places, devices, checkpoints, precision) is always ours.
FIGURES = (
    frozenset(("backbone", "embedding_size", "drop_path", "mask_ratio", "sync_bn"))
    | frozenset(("margin", "scale", "interclass_threshold", "sample_rate"))
    | frozenset(("optimizer", "lr", "lr_batch", "momentum", "weight_decay", "clip", "global_batch", "accumulate"))
    | frozenset(("schedule", "power", "milestones", "gamma", "warmup_epochs", "epochs"))
    | frozenset(("sampling", "mirror", "augment"))
)
# Of these, what counts for some backbones or schedules only: a peer's where a recipe writes it, not as a default.
_WHERE_WRITTEN = frozenset(("drop_path", "mask_ratio", "milestones", "gamma"))


class _Settings(Protocol):
    @property
    def backbone(self) -> str: ...


Config = TypeVar("Config", bound=_Settings)


@dataclass(frozen=True)
class Figures:
    """Settings that a recipe holds, for its own backbone or for another.

    Args:
        values: plain values by key.
        source: whose they are, with the defaults beside them: a peer's configuration, or ``ours``.
    """

    values: dict[str, Any]
    source: str = OURS


@dataclass(frozen=True)
class Recipe:
    """What a recipe's file says.

    Args:
        path: of the file.
        own: settings, whose source is that of the recipe's own backbone.
        backbones: by backbone what is laid over them when it is the one that trains.
    """

    path: Path
    own: Figures
    backbones: Mapping[str, Figures] = field(default_factory=dict)


def read_recipe(path: Path) -> Recipe:
    """Returns the recipe in a YAML file: settings, ``source``, and ``backbones``, a mapping of backbones to the like.

    Raises:
        ConfigError: no such file, not YAML, or of another shape. Keys and values are looked at by resolve().
    """
    content = load_yaml(path)
    backbones = _or_empty(content.pop("backbones", None))
    if not isinstance(backbones, dict) or not all(isinstance(name, str) for name in backbones):
        raise ConfigError(f"{path}: backbones: holds no mapping of backbones to settings")
    entries = {name: _figures(_or_empty(entry), _place(path, name)) for name, entry in backbones.items()}
    return Recipe(path, _figures(content, str(path)), entries)


def _or_empty(content: Any) -> Any:
    """Returns {} for what YAML has where nothing follows the colon."""
    return {} if content is None else content


def _place(path: Path, backbone: str) -> str:
    return f"{path}: backbones: {backbone}"


def _figures(content: Any, where: str) -> Figures:
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"{where}: holds no mapping of names to values")
    source = content.get("source", OURS)
    if not isinstance(source, str) or not source.strip():
        raise ConfigError(f"{where}: source: {source!r} is not a peer's configuration, or {OURS}")
    return Figures({key: value for key, value in content.items() if key != "source"}, source)


@dataclass(frozen=True)
class Resolved(Generic[Config]):
    """The settings of a run, and where they come from.

    Args:
        recipe: its file.
        config: the settings.
        origins: by setting ``default``, ``recipe file``, ``backbones: NAME`` or ``--set``; ``checkpoint`` where the run
            that goes on has another value than the default.
        source: whose figures recipe and backbone have together, before --set: a peer's configuration, or ``ours``.
        changed: figures that are the peer's no longer.
    """

    recipe: Path
    config: Config
    origins: dict[str, str]
    source: str
    changed: tuple[str, ...]

    def source_of(self, name: str) -> str:
        """Returns whose figure a setting's value is: a peer's configuration, or ``ours``."""
        unwritten = self.origins[name] == "default" and name in _WHERE_WRITTEN
        return OURS if name not in FIGURES or name in self.changed or unwritten else self.source

    def to_json(self) -> dict[str, Any]:
        """Returns what ``faceshards train --explain --json`` prints; its source is that of the settings together."""
        settings = {
            name: {"value": value, "origin": self.origins[name], "source": self.source_of(name)}
            for name, value in vars(self.config).items()
        }
        return {
            "recipe": str(self.recipe),
            "backbone": self.config.backbone,
            "source": OURS if self.changed else self.source,
            "changed": list(self.changed),
            "settings": settings,
        }

    def lines(self) -> Iterator[str]:
        """Yields the settings as a user wants to read them."""
        whose = f"{OURS} ({self.source} but for {', '.join(self.changed)})" if self.changed else self.source
        yield f"{self.recipe.stem} with {self.config.backbone}, figures: {whose}"
        rows = [("setting", "value", "origin", "source")]
        for name, value in vars(self.config).items():
            text = value if isinstance(value, str) else json.dumps(value)
            rows.append((name, text, self.origins[name], self.source_of(name)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def resolve(recipe: Recipe, settings: dict[str, Any], base: Config) -> Resolved[Config]:
    """Returns the settings of a run: `base`, and over it the recipe, its entry for the backbone, and `settings`.

    Args:
        recipe: as read_recipe() gives it. All its entries are looked at, whichever backbone trains.
        settings: plain values by key, as --set gives them.
        base: what holds where all are silent: the defaults, or the settings of the run that goes on.

    Raises:
        ConfigError: unknown key, wrong type or value out of range, in one line that names file and entry, or --set.
    """
    own = make_config(recipe.own.values, str(recipe.path), base)
    for name, entry in recipe.backbones.items():
        if "backbone" in entry.values:
            raise ConfigError(f"{_place(recipe.path, name)}: an entry has no backbone of its own")
        make_config(entry.values, _place(recipe.path, name), own)
    asked = {key: value for key, value in settings.items() if key == "backbone"}
    backbone = make_config(asked, "--set", own).backbone
    other = Figures({}, recipe.own.source if backbone == own.backbone else OURS)
    chosen = recipe.backbones.get(backbone, other)
    figures = make_config({**chosen.values, "backbone": backbone}, _place(recipe.path, backbone), own)
    config = make_config(settings, "--set", figures)

    defaults = vars(type(base)())
    origins = {name: "default" if value == defaults[name] else "checkpoint" for name, value in vars(base).items()}
    layers = {"recipe file": recipe.own.values, f"backbones: {backbone}": chosen.values, "--set": settings}
    origins |= {name: origin for origin, values in layers.items() for name in values}
    changed = tuple(
        name
        for name, value in vars(config).items()
        if name in FIGURES and (value != getattr(figures, name) or origins[name] == "checkpoint")
    )
    return Resolved(recipe.path, config, origins, chosen.source, changed if chosen.source != OURS else ())

"""Settings: frozen dataclasses laid over by strict YAML, where an unknown key is an error."""

from __future__ import annotations

import dataclasses
import importlib.resources
import inspect
import math
import re
from contextlib import suppress
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from faceshards.errors import ConfigError

CONFIGS = Path(str(importlib.resources.files("faceshards"))) / "configs"
"""The settings that come with the package: datasets.yaml and the recipes of train/."""

NAMES = {int: "integers", float: "numbers", str: "names"}  # of what a list in a configuration holds

_LARGEST = 1 << 20  # bytes of a file of settings; as objects they are some hundred times as many
_MOST_VALUES, _DEEPEST = 100_000, 100  # in one

Config = TypeVar("Config")


def make_config(values: dict[str, Any], where: str, base: Config) -> Config:
    """Returns `base`, a frozen dataclass of settings, with `values` laid over it.

    What is a mapping of names to settings may be given as a list of names, as such a mapping, in which true stands for
    a name's defaults and false leaves it out, or one by one with dots: ``filters.blur.min_variance``. The first two
    replace what `base` has, the last changes it.

    Args:
        values: plain values, as YAML gives them.
        where: file or option the values came from, for messages.
        base: what holds where `values` is silent.

    Raises:
        ConfigError: unknown key, wrong type or value out of range, in one line that starts with `where`.
    """
    hints = get_type_hints(type(base))
    known = {field.name: hints[field.name] for field in dataclasses.fields(base)}  # type: ignore[arg-type]
    clean: dict[str, Any] = {}
    for name, value in sorted(values.items(), key=lambda item: "." in item[0]):
        head, _, inner = name.partition(".")
        if get_origin(known.get(head)) is dict:
            clean[head] = _named(value, inner, clean.get(head, getattr(base, head)), f"{where}: {head}")
            continue
        if name not in known:
            raise ConfigError(f"{where}: unknown key '{name}'; known keys: {', '.join(known)}")
        clean[name] = _value(value, known[name], f"{where}: {name}")
    try:
        return dataclasses.replace(base, **clean)  # type: ignore[type-var]
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _value(value: Any, kind: Any, where: str) -> Any:
    """Returns a value of the type wanted, or of one of a union: a plain one, a tuple for a list, or a mapping of names
    to plain ones."""
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    nested = {get_origin(one): get_args(one) for one in kinds if get_origin(one)}  # tuple, dict
    if tuple in nested and isinstance(value, list | tuple):
        return tuple(_plain(item, nested[tuple][0], where) for item in value)
    if dict in nested and isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {name: _plain(item, nested[dict][1], f"{where}: {name}") for name, item in value.items()}
    if tuple in nested and not (str in kinds and isinstance(value, str)):
        others = ", a name, or a mapping with one" if dict in nested else ""
        raise ConfigError(f"{where}: {value!r} is not a list of {NAMES[nested[tuple][0]]}{others}")
    return _plain(value, kind, where)


def _named(value: Any, inner: str, before: dict[str, dict[str, Any]], where: str) -> dict[str, dict[str, Any]]:
    """Returns a mapping of names to settings, with what `value` says.

    Args:
        value: of the whole; of the name in `inner`, or of its setting.
        inner: NAME, NAME.SETTING, or "" for the whole.
        before: what it was.
        where: for messages.
    """
    if inner:
        name, dot, setting = inner.partition(".")
        value = {name: {**before.get(name, {}), setting: value} if dot else value}
    elif isinstance(value, list) and all(isinstance(name, str) for name in value):
        value = dict.fromkeys(value, True)
    elif not isinstance(value, dict | None):
        raise ConfigError(f"{where}: {value!r} is neither a list of names nor a mapping of names to their settings")
    found = dict(before) if inner else {}
    for name, own in (value or {}).items():
        if own is False:
            found.pop(str(name), None)
        elif own is None or own is True or (isinstance(own, dict) and all(isinstance(key, str) for key in own)):
            found[str(name)] = own if isinstance(own, dict) else found.get(str(name), {})
        else:
            raise ConfigError(f"{where}.{name}: {own!r} is no mapping of its settings")
    return found


def _plain(value: Any, kind: Any, where: str) -> Any:
    """Returns a value of exactly the type wanted, or of one of a union; a float, a finite one, may be an integer, or
    what YAML 1.1 calls a text: 5e-05."""
    kinds = get_args(kind) or (kind,)
    if float in kinds and type(value) in (int, str):
        with suppress(ValueError, OverflowError):
            value = float(value)
    if type(value) not in kinds or (isinstance(value, float) and not math.isfinite(value)):
        raise ConfigError(f"{where}: {value!r} is not of type {' or '.join(one.__name__ for one in kinds)}")
    return value


def within(default: Any, low: float, high: float) -> Any:
    """Returns a setting's field: its default, and the least and largest number it may be; see check_settings()."""
    return dataclasses.field(default=default, metadata={"range": (low, high)})


def one_of(default: Any, *others: Any) -> Any:
    """Returns a setting's field: its default, which is the first of the values that it may have."""
    return dataclasses.field(default=default, metadata={"choices": (default, *others)})


def choices_of(config: Any) -> dict[str, tuple[Any, ...]]:
    """Returns the values that settings may have, for those that have a list of them."""
    return {each.name: each.metadata["choices"] for each in dataclasses.fields(config) if "choices" in each.metadata}


def check_settings(config: Any) -> None:
    """Checks that numbers lie in their ranges, both ends allowed, and that other values are of their lists.

    Args:
        config: a dataclass, whose fields say so by within() and one_of().

    Raises:
        ConfigError: naming the key, the value and the range or list.
    """
    for name, known in choices_of(config).items():
        if getattr(config, name) not in known:
            raise ConfigError(f"{name}: '{getattr(config, name)}' is not one of {', '.join(map(plain_text, known))}")
    ranges = {each.name: each.metadata["range"] for each in dataclasses.fields(config) if "range" in each.metadata}
    check_ranges(config, ranges)


def plain_text(value: Any) -> str:
    """Returns a value as YAML has it: true for True."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def check_ranges(config: Any, ranges: dict[str, tuple[float, float]]) -> None:
    """Checks that numbers lie in their ranges, both ends allowed.

    Raises:
        ConfigError: naming the key, the value and the range.
    """
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        if not low <= value <= high:
            raise ConfigError(f"{name}: {value} is outside {low}..{high}")


def describe(config: Any, before: str = "") -> list[dict[str, Any]]:
    """Returns of each setting its key, type, default, range, choices and meaning, as JSON has them.

    Types are those of the fields, ranges and choices theirs too (None where there are none); meanings are those of the
    class's docstring.

    Args:
        config: a dataclass of settings that holds their defaults.
        before: what is put before each key.
    """
    hints, meanings = get_type_hints(type(config)), _meanings(inspect.getdoc(type(config)) or "")
    return [
        {
            "key": before + each.name,
            "type": _type_text(hints[each.name]),
            "default": getattr(config, each.name),
            "range": list(each.metadata["range"]) if "range" in each.metadata else None,
            "choices": list(each.metadata["choices"]) if "choices" in each.metadata else None,
            "meaning": meanings.get(each.name, ""),
        }
        for each in dataclasses.fields(config)
    ]


def _meanings(doc: str) -> dict[str, str]:
    """Returns what a docstring in Google form says of each argument."""
    arguments = re.search(r"^Args:\n((?:(?: .*)?\n?)*)", doc, re.MULTILINE)
    found = re.findall(r"^    (\w+): (.*(?:\n     .*)*)", arguments[1] if arguments else "", re.MULTILINE)
    return {name: " ".join(text.split()).replace("``", "") for name, text in found}


def _type_text(kind: Any) -> str:
    """Returns a type as a user reads it."""
    if isinstance(kind, UnionType):
        return " or ".join(map(_type_text, get_args(kind)))
    inner = get_args(kind)
    if get_origin(kind) is tuple:
        return f"list of {NAMES[inner[0]]}"
    if get_origin(kind) is dict:
        return "mapping"
    return {int: "integer", float: "number", str: "name", bool: "true or false"}[kind]


class _Loader(yaml.SafeLoader):
    """Plain YAML, in which a key that comes twice is an error; PyYAML takes the last of them in silence.

    So are aliases that would repeat a value without end, or until it is more than a file of settings holds.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Returns a value, with what is in it."""
        self.depth += 1
        if self.depth > _DEEPEST:
            raise ConfigError("nested too deeply")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def get_single_node(self) -> yaml.Node | None:
        """Returns the document."""
        node = super().get_single_node()
        if node is not None:
            _count(node, {})
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Returns a mapping."""
        seen: list[Any] = []
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise ConfigError(f"line {key.start_mark.line + 1}: '{key.value}' comes twice")
            seen.append(key.value)
        return super().construct_mapping(node, deep)


def _count(node: yaml.Node, counted: dict[yaml.Node, int]) -> int:
    """Returns how many values a node is once its aliases are written out."""
    counted[node] = _MOST_VALUES  # if it comes again below itself
    below = node.value if isinstance(node.value, list) else []
    parts = (part for entry in below for part in (entry if isinstance(entry, tuple) else (entry,)))
    count = 1
    for part in parts:
        count += counted[part] if part in counted else _count(part, counted)
        if count > _MOST_VALUES:
            line = part.start_mark.line + 1
            raise ConfigError(f"line {line}: more than {_MOST_VALUES:,} values, as its aliases repeat them")
    counted[node] = count
    return count


def load_yaml(path: Path) -> dict[str, Any]:
    """Returns the mapping in a YAML file.

    Raises:
        ConfigError: the file is missing, is not YAML, holds no mapping, a key twice, or more than settings are.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise ConfigError(f"more than {_LARGEST >> 20} MiB are no settings")
        data = yaml.load(text.decode("utf-8"), _Loader)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ConfigError(f"{path}: holds no mapping of names to values")
    return data

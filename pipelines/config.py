"""What decides a build's result: frozen, strict, and written beside what it made."""

from __future__ import annotations

import dataclasses
import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from pipelines.errors import ConfigError

POLICIES = ("drop", "keep-larger", "keep")

NAMES = {int: "integers", float: "numbers", str: "names"}  # of what a list in a configuration holds

Config = TypeVar("Config")


@dataclass(frozen=True)
class BuildConfig:
    """Every setting that changes the published bytes; workers and partition size do not, so they are not here.

    Args:
        image_size: required [height, width] in pixels; [0, 0] takes any size.
        max_pixels: larger images are refused before decoding (decompression bombs).
        near_within: Hamming bits of 256; images of one identity this close are one photograph. 24 is strict, 40
            thorough (calibrated on LFW, docs/deduplication.md). -1 turns it off.
        near_across: likewise between identities, where 24 is a safe default; -1 leaves only exact copies.
        recall: least share of the across-identity pairs at exactly near_across bits that the banding must find.
        conflict_policy: for one photograph under several identities: ``drop`` all copies, ``keep-larger`` keeps it in
            the identity with more images, ``keep`` only reports.
        min_images: identities that end with fewer images are dropped.
        max_images: images above this many are dropped from an identity, chosen by seed; 0 means no limit.
        shards: number of shard files; 0 derives it from shard_bytes, rounded up to a multiple of 8.
        shard_bytes: aimed size of a shard file in bytes, when shards is 0.
        seed: decides which images go (max_images) and the order inside shards.
    """

    image_size: tuple[int, int] = (112, 112)
    max_pixels: int = 4096 * 4096
    near_within: int = 24
    near_across: int = 24
    recall: float = 0.95
    conflict_policy: str = "drop"
    min_images: int = 2
    max_images: int = 0
    shards: int = 0
    shard_bytes: int = 256 << 20
    seed: int = 0

    def __post_init__(self) -> None:
        size = self.image_size
        if len(size) != 2 or min(size) < 0 or (min(size) == 0) != (max(size) == 0):
            raise ConfigError(f"image_size: {list(size)} is not [height, width] in pixels (or [0, 0] for any)")
        check_ranges(
            self,
            {
                "max_pixels": (1, 1 << 30),
                "near_within": (-1, 64),
                "near_across": (-1, 64),
                "min_images": (1, 1 << 31),
                "max_images": (0, 1 << 31),
                "shards": (0, 100_000),
                "shard_bytes": (1 << 20, 1 << 40),
                "seed": (0, (1 << 63) - 1),
                "recall": (0.5, 0.9999),
            },
        )
        if self.conflict_policy not in POLICIES:
            raise ConfigError(f"conflict_policy: '{self.conflict_policy}' is not one of {', '.join(POLICIES)}")
        if 0 < self.max_images < self.min_images:
            raise ConfigError(f"max_images: {self.max_images} is below min_images {self.min_images}")


def make_config(values: dict[str, Any], where: str, base: Config) -> Config:
    """Returns `base`, a frozen dataclass of settings, with `values` laid over it.

    Args:
        values: plain values, as YAML gives them.
        where: file or option the values came from, for messages.
        base: what holds where `values` is silent.

    Raises:
        ConfigError: unknown key, wrong type or value out of range, in one line that starts with `where`.
    """
    known = get_type_hints(type(base))
    clean: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"{where}: unknown key '{name}'; known keys: {', '.join(known)}")
        kind = known[name]
        if get_origin(kind) is tuple:
            items = get_args(kind)[0]
            if not isinstance(value, list | tuple):
                raise ConfigError(f"{where}: {name}: {value!r} is not a list of {NAMES[items]}")
            clean[name] = tuple(_plain(item, items, f"{where}: {name}") for item in value)
        else:
            clean[name] = _plain(value, kind, f"{where}: {name}")
    try:
        return dataclasses.replace(base, **clean)  # type: ignore[type-var]
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _plain(value: Any, kind: type, where: str) -> Any:
    """Returns a value of exactly the type wanted; a float, a finite one, may be an integer, or what YAML 1.1 calls a
    text: 5e-05."""
    if kind is float and type(value) in (int, str):
        with suppress(ValueError, OverflowError):
            value = float(value)
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        raise ConfigError(f"{where}: {value!r} is not of type {kind.__name__}")
    return value


def check_ranges(config: Any, ranges: dict[str, tuple[float, float]]) -> None:
    """Checks that numbers lie in their ranges, both ends allowed.

    Raises:
        ConfigError: naming the key, the value and the range.
    """
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        if not low <= value <= high:
            raise ConfigError(f"{name}: {value} is outside {low}..{high}")


def load_yaml(path: Path) -> dict[str, Any]:
    """Returns the mapping in a YAML file.

    Raises:
        ConfigError: the file is missing, is not YAML, or holds no mapping.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ConfigError(f"{path}: holds no mapping of names to values")
    return data

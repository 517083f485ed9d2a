"""The sets known by name (configs/datasets.yaml)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from faceshards.errors import ConfigError
from faceshards.settings import CONFIGS, load_yaml

DATASETS = CONFIGS / "datasets.yaml"


@dataclass(frozen=True)
class Dataset:
    """A set known by name (configs/datasets.yaml).

    Args:
        name: as typed.
        title: as its publishers call it.
        where: where it is to be had.
        terms: terms of use in a line.
        layout: how it is packed.
        identities: expected number, 0 if not stated.
        images: expected number, 0 if not stated.
        rendered: drawn on the spot when it is not there, instead of fetched by the user.
    """

    name: str
    title: str
    where: str
    terms: str
    layout: str
    identities: int = 0
    images: int = 0
    rendered: bool = False


def known_datasets(path: Path = DATASETS) -> dict[str, Dataset]:
    """Returns the sets known by name.

    Raises:
        ConfigError: the file is missing, or an entry has an unknown or missing key.
    """
    try:
        return {name: Dataset(name=name, **entry) for name, entry in load_yaml(path).items()}
    except TypeError as error:
        raise ConfigError(f"{path}: {str(error).split('__init__() ')[-1]}") from None


def dataset_folder(name: str, data_root: Path) -> tuple[Dataset, Path]:
    """Returns a known set and the folder where its raw files lie.

    Raises:
        ConfigError: the name is unknown.
    """
    known = known_datasets()
    if name not in known:
        raise ConfigError(f"unknown dataset '{name}'; known: {', '.join(known)}; any other set by --source PATH")
    return known[name], data_root / name


def terms_of(name: str) -> str:
    """Returns the terms of a set known by name; "" for any other, and where the list cannot be read."""
    try:
        known = known_datasets()
    except ConfigError:
        return ""
    return known[name].terms if name in known else ""

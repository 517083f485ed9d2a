"""The stores by their name in the settings (`centers`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from faceshards.errors import ConfigError
from training.centers.host import HostStore
from training.centers.store import Store


def _memory(count: int, width: int, dim: int, folder: Path | None) -> Store:
    return HostStore(count, width, dim)


def _disk(count: int, width: int, dim: int, folder: Path | None) -> Store:
    if folder is None:
        raise ConfigError("class centres on disk need a folder")
    return HostStore(count, width, dim, folder)


def _device(count: int, width: int, dim: int, folder: Path | None) -> Store:
    from training.centers.device import DeviceStore  # the only one that needs MindSpore

    return DeviceStore(count, width, dim)


# Each makes a store of (count, W, D); the folder is for those that write files.
STORES: dict[str, Callable[[int, int, int, Path | None], Store]] = {
    "memory": _memory,
    "disk": _disk,
    "device": _device,
}

"""The loggers by their names in the settings (`loggers`)."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from faceshards.errors import ConfigError, FaceshardsError
from training.loggers import mlflow, tensorboard, wandb
from training.loggers.base import Logger, Run, first_line

LOGGERS: dict[str, tuple[Callable[[Run], Logger], str]] = {
    "tensorboard": (tensorboard.TensorBoard, tensorboard.PACKAGE),
    "wandb": (wandb.Wandb, wandb.PACKAGE),
    "mlflow": (mlflow.MLflow, mlflow.PACKAGE),
}
"""What makes each of a Run, and the package that it needs."""


def check_loggers(names: Sequence[str]) -> None:
    """Refuses what no logger is called, and one whose package is not there.

    Raises:
        ConfigError: no such name, or one that is there twice.
        ModuleNotFoundError: names the package.
    """
    for name in names:
        if name not in LOGGERS:
            raise ConfigError(f"loggers: '{name}' is not one of {', '.join(LOGGERS)}")
        if names.count(name) > 1:
            raise ConfigError(f"loggers: '{name}' is there twice")
        package = LOGGERS[name][1]
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"{package} is not installed", name=package)


def open_loggers(names: Sequence[str], run: Run) -> Mapping[str, Logger]:
    """Returns loggers by name.

    Raises:
        FaceshardsError: one cannot start; names it.
    """
    with ExitStack() as opened:
        found = {name: _open(name, run, opened) for name in names}
        opened.pop_all()
    return found


def _open(name: str, run: Run, opened: ExitStack) -> Logger:
    """Returns a logger that is closed with `opened`."""
    try:
        found = LOGGERS[name][0](run)
    except Exception as error:  # of the services' own kinds
        raise FaceshardsError(f"loggers: {name}: {first_line(error)}") from error
    opened.callback(found.close)
    return found

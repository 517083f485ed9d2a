"""With which versions, and when, a figure came about."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from contextlib import suppress
from typing import Any

import faceshards

PACKAGES = ("mindspore", "onnxruntime", "numpy")  # on which figures depend; those that are installed are named


def stamp() -> dict[str, Any]:
    """Returns `versions`, by package, of what runs here, and the `date` (UTC, ISO 8601): plain JSON values."""
    found = {"faceshards": faceshards.__version__}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    now = datetime.datetime.now(datetime.timezone.utc)
    return {"versions": found | {"python": platform.python_version()}, "date": now.isoformat(timespec="seconds")}


def stamp_line(facts: dict[str, Any]) -> str:
    """Returns a stamp, of which `facts` may hold more, as a line of text."""
    return f"with {', '.join(f'{name} {version}' for name, version in facts['versions'].items())}; {facts['date']}"

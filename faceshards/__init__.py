"""Face-recognition sets as clean MindRecord shards, a trainer that streams them, and the field's numbers.

The public names are handed on when they are asked for, so that importing the package costs nothing:

- ``open(path)``: a published dataset (`faceshards.dataset.manifest.Manifest`);
- ``build(...)``: builds and publishes one (`pipelines.build.build`);
- ``Stream``: the batches of a rank (`training.data.stream.Stream`; no MindSpore needed).
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.2.0"

_PUBLIC = {
    "open": ("faceshards.dataset.manifest", "Manifest"),
    "build": ("pipelines.build", "build"),
    "Stream": ("training.data.stream", "Stream"),
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'faceshards' has no attribute '{name}'")
    module, attribute = _PUBLIC[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})

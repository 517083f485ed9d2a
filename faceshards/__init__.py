"""Face-recognition sets as clean MindRecord shards, a trainer that streams them, and the field's numbers.

The public names (docs/api.md) are handed on when they are asked for, so that importing the package costs nothing:

- ``open(path)``: a published dataset, a ``Dataset``;
- ``build(source, out, **settings)``: builds and publishes one;
- ``Stream(path, batch_size)``: its batches as NumPy arrays; no MindSpore needed;
- ``FaceshardsError``: what all of them raise for what a user can put right.

__init__.pyi tells type checkers and editors of them.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.2.0"

_PUBLIC = {
    "open": ("faceshards.api.dataset", "Dataset"),
    "Dataset": ("faceshards.api.dataset", "Dataset"),
    "build": ("faceshards.api.build", "build"),
    "Stream": ("faceshards.api.stream", "Stream"),
    "FaceshardsError": ("faceshards.errors", "FaceshardsError"),
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'faceshards' has no attribute '{name}'")
    module, attribute = _PUBLIC[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})

"""Which files this process has open; their number says little, since other threads open some and close them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def opened_below(folder: Path) -> list[str]:
    """Returns the open files that lie in a folder, removed ones too."""
    found = []
    for place in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(f"/proc/self/fd/{place}"))
    return [path for path in found if path.startswith(str(folder))]

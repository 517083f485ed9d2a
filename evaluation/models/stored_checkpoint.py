"""A checkpoint or a run in a bucket: of its files those are copied that a model is made of."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from evaluation.models.backbone_model import chosen
from faceshards.errors import FaceshardsError, stands_for
from faceshards.reading import fetch
from faceshards.storage.location import StoredPath

_FILE = re.compile(r"(?:checkpoints/step-\d{9}/)?(checkpoint\.json|[\w-]+\.safetensors)")


def bring_checkpoint(place: StoredPath, folder: Path) -> Path:
    """Returns a copy of a checkpoint, or of a run's folder, which load_model() takes, in a new folder within `folder`.

    Copied are what its checkpoints say of themselves and the backbone of the one that is taken. The other files, the
    ranks' centers above all, are holes of their sizes: a model needs none of them.

    Args:
        place: prefix of the checkpoint or the run.
        folder: of this machine.

    Raises:
        FaceshardsError: no checkpoint there.
        StorageError: the store cannot be asked.
    """
    copies = Path(tempfile.mkdtemp(dir=folder))
    stands_for(copies, place.parent)
    copy, found = copies / place.name, False
    for entry, size in place.tree():
        name = entry.key[len(place.key) + 1 :]
        if not (file := _FILE.fullmatch(name)):
            continue
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        if file[1] == "checkpoint.json":
            found = True
            fetch(entry, copy / name)
        else:
            with open(copy / name, "wb") as hole:
                hole.truncate(size)
    if not found:
        raise FaceshardsError(f"{place}: no model there: neither a file, nor a checkpoint, nor a run that has one")
    backbone = chosen(copy).relative_to(copy) / "backbone.safetensors"
    if (copy / backbone).is_file():  # else it is said by whoever loads it
        fetch(place / backbone.as_posix(), copy / backbone)
    return copy

"""Checkpoints: whole or absent, one file a rank, readable by any number of ranks.

A checkpoint is a folder: checkpoint.json (position, settings, fingerprint of the dataset, checksums of the files),
backbone.safetensors, optimizer.safetensors, and of every rank rank-R-of-W.safetensors with its class centres. There is
no random state: every draw follows from seed and position. It is written under another name and takes its own by one
rename.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np

from faceshards.checksums import file_digest
from faceshards.errors import FaceshardsError, WeightsError, why
from faceshards.files import fsync, write_json
from faceshards.formats.json_files import read_json
from faceshards.formats.safetensors import Block, TensorFile, write_arrays, write_blocks
from training.centers.class_centers import ClassCenters, slice_of
from training.device.distributed import Group
from training.state import FORMAT, GO_ON, Meta
from training.weights.assign import set_parameters

log = logging.getLogger(__name__)

BLOCK = 1 << 15  # rows of centres on their way: 64 MiB of float32 at 512 components
_NAME = re.compile(r"step-\d{9}")


class CheckpointError(FaceshardsError):
    """A checkpoint is missing, damaged, or of another model, dataset or run."""


def rank_file(rank: int, world: int) -> str:
    """Returns the name of a rank's file."""
    return f"rank-{rank}-of-{world}.safetensors"


def save(
    folder: Path,
    meta: Meta,
    group: Group,
    backbone: Mapping[str, np.ndarray],
    optimizer: Mapping[str, np.ndarray],
    centers: ClassCenters,
) -> Path:
    """Returns the checkpoint written in `folder`; every rank calls it, each writes its own part.

    Args:
        folder: of the run's checkpoints, on a disk that all hosts share.
        meta: without files.
        group: the ranks.
        backbone: arrays by parameter name, written by rank 0.
        optimizer: likewise.
        centers: this rank's part; brought up to date by this.

    Raises:
        CheckpointError: a rank could not write (a full disk); earlier checkpoints are as they were.
    """
    final = folder / f"step-{meta.state.step:09d}"
    partial = folder / f".{final.name}.partial"

    def prepare() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".*.partial"):  # of runs that died while they wrote
            shutil.rmtree(left)
        partial.mkdir()

    def write() -> dict[str, tuple[int, str]]:
        names = [rank_file(group.rank, group.world)]
        _write_rank(partial / names[0], centers)
        if group.rank == 0:
            write_arrays(partial / "backbone.safetensors", backbone)
            write_arrays(partial / "optimizer.safetensors", optimizer)
            names += ["backbone.safetensors", "optimizer.safetensors"]
        return {name: file_digest(partial / name) for name in names}

    def publish() -> None:
        files = {name: part[name] for part in parts for name in part}
        write_json(dataclasses.replace(meta, files=files).to_json(), partial / "checkpoint.json")
        fsync(partial)
        if final.exists():
            shutil.rmtree(final)
        os.replace(partial, final)
        fsync(folder)

    try:
        _together(group, folder, prepare if group.rank == 0 else None)
        parts = _together(group, folder, write)
        _together(group, folder, publish if group.rank == 0 else None)
    except CheckpointError:
        if group.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    return final


def _together(group: Group, folder: Path, act: Callable[[], Any] | None) -> list[Any]:
    """Returns what `act` gave on every rank; if it failed on one, all raise what that one says."""
    try:
        mine: tuple[Any, str] = (act() if act else None, "")
    except OSError as error:
        mine = (None, f"{error.filename or folder}: {why(error)}")
    except FaceshardsError as error:
        mine = (None, str(error))
    everyone = group.gather_object(mine)
    for _, failure in everyone:
        if failure:
            raise CheckpointError(f"the checkpoint could not be written: {failure}; {GO_ON}")
    return [value for value, _ in everyone]


def _write_rank(path: Path, centers: ClassCenters) -> None:
    """Writes the touched rows of a rank's centres, and its small state."""
    centers.settle()
    small = {f"state.{name}": np.atleast_1d(value) for name, value in centers.state().items()}
    rows, dim = centers.touched, centers.dim
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        **{name: (str(array.dtype), array.shape) for name, array in small.items()},
        "ids": ("int64", (rows,)),
        "updates": ("int32", (rows,)),
        **dict.fromkeys(("weight", *centers.slots), ("float32", (rows, dim))),
    }

    def blocks() -> Iterator[Block]:
        yield from ((name, 0, array) for name, array in small.items())
        start = 0
        for ids, arrays in centers.blocks(BLOCK):
            yield "ids", start, ids
            yield from ((name, start, array) for name, array in arrays.items())
            start += len(ids)

    write_blocks(path, shapes, blocks())


def known(folder: Path) -> list[Path]:
    """Returns the whole checkpoints in a folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir())


def best(folder: Path) -> Path | None:
    """Returns the checkpoint with the highest mean accuracy, the latest of equals; None if none was measured."""
    found = [(_mean(path), path) for path in known(folder)]
    return max(((mean, path) for mean, path in found if mean is not None), default=(None, None))[1]


def _mean(path: Path) -> float | None:
    """Returns the mean accuracy of a checkpoint; None without one, or if it is damaged, which is no reason to stop."""
    try:
        accuracies = read_meta(path).state.verification
    except CheckpointError as error:
        log.warning("%s", error)
        return None
    return sum(accuracies.values()) / len(accuracies) if accuracies else None


def prune(folder: Path, keep: int) -> None:
    """Removes all but the last `keep` checkpoints and the best."""
    stays = best(folder)
    for path in known(folder)[:-keep]:
        if path != stays:
            doomed = path.with_name(f".{path.name}.partial")
            os.replace(path, doomed)  # a half-removed checkpoint must not look whole
            shutil.rmtree(doomed)


def read_meta(path: Path) -> Meta:
    """Returns what a checkpoint says of itself, its files present and of the right size.

    Raises:
        CheckpointError: no checkpoint, of another format, or a file is missing or cut.
    """
    try:
        content = read_json(path / "checkpoint.json")
        if content["format"] not in (1, FORMAT):
            raise CheckpointError(f"{path}: not of format 1 or {FORMAT}, which this release reads")
        meta = Meta.from_json(content)
    except FileNotFoundError:
        cause = "no checkpoint.json" if path.exists() else "no such file or folder"
        raise CheckpointError(f"{path}: no checkpoint there ({cause})") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path / 'checkpoint.json'}: damaged: {error}") from None
    wanted = {rank_file(rank, meta.world) for rank in range(meta.world)}
    for name in sorted(wanted | {"backbone.safetensors", "optimizer.safetensors"}):
        file = path / name
        if name not in meta.files or not file.is_file():
            raise CheckpointError(f"{file}: missing; the checkpoint was written by {meta.world} ranks")
        if file.stat().st_size != meta.files[name][0]:
            raise CheckpointError(f"{file}: {file.stat().st_size} bytes, {meta.files[name][0]} were written")
    return meta


def open_file(path: Path, meta: Meta, name: str) -> TensorFile:
    """Returns a file of a checkpoint, opened after its checksum was compared.

    Raises:
        CheckpointError: its bytes changed since they were written.
    """
    if list(file_digest(path / name)) != list(meta.files[name]):
        raise CheckpointError(f"{path / name}: its SHA-256 is not what was written")
    return TensorFile(path / name)


def set_from(path: Path, meta: Meta, name: str, parameters: Mapping[str, ms.Parameter]) -> None:
    """Sets parameters from the file ``backbone`` or ``optimizer`` of a checkpoint.

    Raises:
        CheckpointError: it is of another model, or damaged; nothing was set then.
    """
    file_name = f"{name}.safetensors"
    with open_file(path, meta, file_name) as file:
        found = file.arrays()
    scalars = {key for key, parameter in parameters.items() if parameter.ndim == 0}  # written as arrays of one
    try:
        set_parameters(parameters, {key: array[0] if key in scalars else array for key, array in found.items()})
    except WeightsError as error:
        raise CheckpointError(f"{path / file_name}: {error}") from None


def restore_rank(path: Path, meta: Meta, centers: ClassCenters) -> None:
    """Brings back a rank's class centres, from however many ranks wrote them, a block of rows at a time.

    Raises:
        CheckpointError: a file is damaged, or of centres of another size or optimiser.
    """
    end = centers.start + centers.count
    for old in range(meta.world):
        start, count = slice_of(old, meta.world, meta.classes)
        if start >= end or start + count <= centers.start:
            continue
        with open_file(path, meta, rank_file(old, meta.world)) as file:
            names = ("weight", *centers.slots)
            for name in ("ids", "updates", *names):
                if name not in file.names or (name in names and file.shape(name)[1:] != (centers.dim,)):
                    raise CheckpointError(f"{file.path}: {name} is missing or not of {centers.dim} components")
            centers.load_state({name[6:]: file.array(name) for name in file.names if name.startswith("state.")})
            for place, ids in file.blocks("ids", BLOCK):
                low, high = np.searchsorted(ids, [centers.start, end])
                if low < high:
                    arrays = {name: file.rows(name, place + low, place + high) for name in ("updates", *names)}
                    centers.restore(ids[low:high], arrays)

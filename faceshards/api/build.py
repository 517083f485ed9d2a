"""A build in one call."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from faceshards.api.dataset import Dataset
from faceshards.errors import ConfigError, SourceError
from faceshards.locks import own_folder
from faceshards.reading import brought
from faceshards.settings import make_config
from faceshards.storage.location import Location, StoredPath, as_location
from pipelines.config import BuildConfig
from pipelines.sources.catalog import known_datasets

StrPath = str | os.PathLike[str]


def build(
    source: StrPath | Location | Sequence[StrPath | Location],
    out: StrPath | Location,
    *,
    work: StrPath | Location | None = None,
    data_root: StrPath = "data/raw",
    exclude: StrPath | Location | Sequence[StrPath | Location] = (),
    workers: int = 0,
    scheduler: str | None = None,
    shuffle: str = "auto",
    strict: bool = False,
    overwrite: bool = False,
    restart: bool = False,
    quiet: bool = False,
    **settings: Any,
) -> Dataset:
    """Returns the dataset built of a known set, of files or of folders, and published at `out`.

    It is what `faceshards build` does: interrupted at any moment, the same call goes on where it stopped; and where
    the same dataset is published already, it is opened. Processes of its own do the work; they do not import the
    caller's script.

    Args:
        source: the name of a known set, such as ``"synthetic"`` (`faceshards datasets` lists them); or one path or
            several: .rec and WebDataset .tar files, folders of either, or image folders. A folder that is named as a
            known set is: ``"./casia"``, or a pathlib.Path. Any may be an address: ``"s3://faces/train.rec"``.
        out: folder to publish, made by one rename at the end; or the address of a prefix in a bucket.
        work: folder on a disk in which a dataset for a bucket is made, or the address of a prefix, for workers that
            share no disk; of a folder it is not asked.
        data_root: where raw files of known sets lie, each set in a folder of its name.
        exclude: verification sets (.bin), on a disk or by their addresses; what is a picture of theirs is dropped.
        workers: processes; 0: one per core.
        scheduler: address of a Dask scheduler to use instead.
        shuffle: ``"direct"`` fetches each image from the source, ``"spill"`` reads it in order and carries the images
            through the work folder; ``"auto"`` takes the one that suits where the source lies. The result is the same.
        strict: publish nothing if records are broken, or counts are not what the sources say.
        overwrite: replace a dataset that is published at `out`.
        restart: throw away an interrupted build.
        quiet: no progress bars on stderr.
        **settings: what decides the result, as `pipelines.config.BuildConfig` has it: ``shards=16``,
            ``image_size=(0, 0)``, ``near_within=40``, ...; `faceshards settings` lists them.

    Raises:
        ConfigError: an unknown setting, or a value out of range.
        SourceError: a source is missing or unusable, or its people cannot be told apart.
        SetError: a set to exclude is unusable.
        BuildError: cannot start, go on, or publish; an interrupted build stays resumable.
        UnsoundError: strict, and the sources are not sound.
    """
    from pipelines.build import Execution  # Dask takes a second to import
    from pipelines.upload import build_at
    from pipelines.wanted import find_wanted

    if workers < 0:
        raise ConfigError(f"workers is {workers}, and has to be 0 at least")
    config = make_config(settings, "faceshards.build", BuildConfig())
    name, paths = _meant(source)
    place = _location(out)
    with own_folder() as folder, _script_left_aside():
        kept_out = [brought(path, folder) for path in _locations(exclude)]
        wanted = find_wanted(name, paths, Path(data_root), kept_out, quiet, workers)
        build_at(
            wanted.title,
            wanted.files,
            place,
            config,
            Execution(workers, scheduler, quiet=quiet, shuffle=shuffle),
            work=None if work is None else _location(work),
            expected=wanted.expected,
            warnings=wanted.warnings,
            exclude=kept_out,
            strict=strict,
            overwrite=overwrite,
            restart=restart,
        )
    return Dataset(place)


def _meant(source: StrPath | Location | Sequence[StrPath | Location]) -> tuple[str | None, list[Location]]:
    """Returns the name of a known set, or the paths of any other."""
    known = known_datasets()
    if isinstance(source, str) and source in known:
        return source, []
    if isinstance(source, str) and re.fullmatch(r"\w+", source) and not os.path.lexists(source):
        raise SourceError(f"'{source}' is no known set ({', '.join(known)}), and no file or folder")
    paths = _locations(source)
    if not paths:
        raise SourceError("no source: give the name of a known set, a path, or several")
    return None, paths


def _locations(given: StrPath | Location | Sequence[StrPath | Location]) -> list[Location]:
    several = [given] if isinstance(given, str | os.PathLike | StoredPath) else given
    return [*map(_location, several)]


def _location(given: StrPath | Location) -> Location:
    return as_location(given if isinstance(given, Path | StoredPath) else os.fspath(given))


@contextmanager
def _script_left_aside() -> Iterator[None]:
    """Has processes that start meanwhile not import the script that runs: it would build once more in each of them.

    multiprocessing.spawn imports what ``__main__`` says of itself; what the stages of a build need has modules.
    """
    main = vars(sys.modules["__main__"])
    said: dict[str, Any] = {name: main[name] for name in ("__file__", "__spec__") if name in main}
    main.update(dict.fromkeys(said))
    try:
        yield
    finally:
        main.update(said)

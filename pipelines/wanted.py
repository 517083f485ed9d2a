"""What a build is asked to read: the files of a known set, rendered first if it is a synthetic one, or of any other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from faceshards.errors import FaceshardsError
from faceshards.formats.verification_bin import read_bin
from faceshards.progress import bar
from faceshards.storage.location import Location, as_location
from pipelines.sources.base import SourceFile
from pipelines.sources.catalog import Dataset, dataset_folder
from pipelines.sources.find import find_files
from pipelines.synthetic.spec import SETS
from pipelines.synthetic.write import write_set


@dataclass(frozen=True)
class Wanted:
    """Where a dataset comes from.

    Args:
        title: the dataset's name.
        files: its sources.
        warnings: about them.
        expected: the known set, whose counts are compared.
    """

    title: str
    files: list[SourceFile]
    warnings: list[str]
    expected: Dataset | None


def find_wanted(
    name: str | None, paths: Sequence[Location], data_root: Path, exclude: Sequence[Path], quiet: bool, workers: int
) -> Wanted:
    """Returns where a dataset comes from.

    Args:
        name: of a known set; None for any other.
        paths: of any other set's files and folders.
        data_root: where raw files of known sets lie.
        exclude: verification sets that the build is to keep out.
        quiet: no progress while a set is rendered.
        workers: processes that render; 0: one per core.

    Raises:
        SourceError: the name is unknown, or there is nothing to read.
        SetError: a set to exclude is unusable, found before a set is rendered.
        FaceshardsError: a known set has to be fetched first.
    """
    expected = None
    if name is not None:
        expected, source = dataset_folder(name, data_root)
        paths = (source,)
        if expected.rendered:
            _render(name, source, exclude, quiet, workers)
        elif not source.exists():
            raise FaceshardsError(f"{name} is not at {source}; it is to be had from {expected.where}; put it there")
    files, warnings = find_files(*paths)
    title = name or "+".join(path.resolve().name for path in map(as_location, paths))
    return Wanted(title, files, warnings, expected)


def _render(name: str, folder: Path, exclude: Sequence[Path], quiet: bool, workers: int) -> None:
    """Renders a synthetic set, unless it is there; not if a set to exclude is unusable that is no part of it."""
    if folder.exists():
        return
    for path in exclude:
        if not path.absolute().is_relative_to(folder.absolute()):
            read_bin(path)
    spec = SETS[name]
    with bar("render  ", spec.records, quiet) as shown:

        def progress(count: int) -> None:
            shown.update(count)

        write_set(folder, spec, progress, workers or len(os.sched_getaffinity(0)))

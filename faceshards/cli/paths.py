"""What commands take as places: a path of this machine, an address in a bucket, or either."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from faceshards.errors import FaceshardsError, stands_for
from faceshards.storage.faults import MissingError, StorageError
from faceshards.storage.location import Location, StoredPath, as_location


class LocalPath(click.Path):
    """A path of this machine, where an address in a bucket would do no good.

    Args:
        instead: what to say to such an address.
    """

    def __init__(self, instead: str = "is in a bucket, and has to be on a disk here", **options: Any) -> None:
        super().__init__(path_type=Path, **options)
        self.instead = instead

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Returns the Path."""
        place = LOCATION.convert(value, param, ctx)
        if isinstance(place, StoredPath):
            self.fail(f"{place} {self.instead}", param, ctx)
        return super().convert(place, param, ctx)


class _Fetched(click.Path):
    """A file, or an object in a bucket, which is copied into a temporary folder until the command ends.

    What is said of the copy, on the screen and in files, is said of the object: see faceshards.errors.as_typed().

    Args:
        beside: endings of its name, of objects that are copied too where they are there.
    """

    def __init__(self, *beside: str) -> None:
        super().__init__(path_type=Path)
        self.beside = beside

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Returns the Path of the file or the copy."""
        place = LOCATION.convert(value, param, ctx)
        if not isinstance(place, StoredPath):
            return super().convert(place, param, ctx)
        from faceshards.reading import fetch  # needs pyarrow

        folder = Path(tempfile.mkdtemp(prefix="faceshards-fetched-"))
        stands_for(folder, place.parent)
        # Of the whole command line's: that of a command whose options are wrong is not closed.
        root = (ctx or click.get_current_context()).find_root()
        root.call_on_close(functools.partial(shutil.rmtree, folder, True))
        try:
            fetch(place, folder / place.name)
            for ending in self.beside:
                with suppress(MissingError):
                    fetch(place.with_name(place.name + ending), folder / f"{place.name}{ending}")
        except MissingError as error:
            many = "; of buckets one file is taken, not a folder of them" if place.is_dir() else ""
            raise click.ClickException(f"{error}{many}") from None
        except StorageError as error:
            raise click.ClickException(str(error)) from None
        return folder / place.name


class _Output(click.Path):
    """A place of what a command makes, on a disk or in a bucket, which is looked at before any work is done.

    Args:
        folder: it is a folder, or a prefix; without this a file, or an object.
    """

    def __init__(self, folder: bool = False) -> None:
        super().__init__(path_type=Path, dir_okay=folder)
        self.folder = folder

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Returns the Path, or the StoredPath."""
        place = LOCATION.convert(value, param, ctx)
        if not isinstance(place, StoredPath):
            super().convert(place, param, ctx)  # which sees whether it is a folder
            if os.path.lexists(place) and not (place.is_file() or place.is_dir()):
                return place  # a device, or a pipe, is written through
        elif not self.folder and not place.key:
            self.fail(f"{place} is a whole bucket; name an object in it", param, ctx)
        from faceshards.files import check_writable  # needs pyarrow

        try:
            check_writable(place if self.folder else place.parent)
        except FaceshardsError as error:
            raise click.ClickException(str(error)) from None
        return place


class _Location(click.ParamType):
    """A path of this machine, or an address in a bucket."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Location:
        """Returns the Path, or the StoredPath."""
        try:
            return as_location(value)
        except StorageError as error:
            self.fail(str(error), param, ctx)


LOCATION = _Location()
PATH = LocalPath()
FETCHED = _Fetched()
MODEL = _Fetched(".json")  # with its card
OUT_FILE = _Output()
OUT_FOLDER = _Output(folder=True)

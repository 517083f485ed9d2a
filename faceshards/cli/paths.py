"""What commands take as places: a path of this machine, an address in a bucket, or either."""

from __future__ import annotations

import errno
import functools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import click

from faceshards.errors import FaceshardsError
from faceshards.storage.faults import MissingError, StorageError
from faceshards.storage.location import Location, StoredPath, as_location

# Of MXNet's models, behind PREFIX.
_SYMBOL, _PARAMS = "-symbol.json", r"-\d{4}\.params"


class Later(NamedTuple):
    """A value of an option or an argument that is asked of a store, when all that was typed is known to be right."""

    value: Callable[[click.Context], Any]


def settled(value: Any, ctx: click.Context) -> Any:
    """Returns a value that is no Later any more; of a tuple each."""
    if isinstance(value, Later):
        return value.value(ctx)
    return tuple(settled(one, ctx) for one in value) if isinstance(value, tuple) else value


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
        beside: gives the names of objects beside it that are copied too, where they are there and may be read.
        prefix: copies what is no object but a prefix into a folder; without it that is refused.
    """

    def __init__(
        self,
        beside: Callable[[StoredPath], Iterable[str]] = lambda place: (),
        prefix: Callable[[StoredPath, Path], Path] | None = None,
    ) -> None:
        super().__init__(path_type=Path)
        self.beside, self.prefix = beside, prefix

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Returns the Path of the file, or Later that of the copy."""
        place = LOCATION.convert(value, param, ctx)
        if isinstance(place, StoredPath):
            return Later(functools.partial(self._copy, place))
        return super().convert(place, param, ctx)

    def _copy(self, place: StoredPath, ctx: click.Context) -> Path:
        """Returns the copy."""
        from faceshards.reading import brought  # needs pyarrow

        folder = Path(tempfile.mkdtemp(prefix="faceshards-fetched-"))
        ctx.call_on_close(functools.partial(shutil.rmtree, folder, True))
        try:
            copy = brought(place, folder)
        except MissingError as error:
            if not place.is_dir():
                raise
            if self.prefix is None:
                raise FaceshardsError(f"{error}; of buckets one file is taken, not a folder of them") from None
            return self.prefix(place, folder)
        for name in self.beside(place):
            _fetch_if_there(place.with_name(name), copy.with_name(name))
        return copy


def _fetch_if_there(place: StoredPath, to: Path) -> None:
    """Copies an object that may be missing; a store whose user may not list says no to that, too."""
    from faceshards.reading import fetch

    try:
        fetch(place, to)
    except StorageError as error:
        if error.errno not in (errno.ENOENT, errno.EACCES):
            raise


def _of_model(place: StoredPath) -> list[str]:
    """Returns what belongs to a model: its card; of MXNet's PREFIX-symbol.json the last parameters, of these that."""
    from faceshards.reading import names_in

    if place.name.endswith(_SYMBOL):
        prefix = re.escape(place.name.removesuffix(_SYMBOL))
        return sorted(name for name in names_in(place.parent) if re.fullmatch(prefix + _PARAMS, name))[-1:]
    if found := re.search(_PARAMS + "$", place.name):
        return [place.name[: found.start()] + _SYMBOL]
    return [f"{place.name}.json"]


def _checkpoint(place: StoredPath, folder: Path) -> Path:
    """Returns a copy of what a model needs of a checkpoint or a run."""
    from evaluation.models.stored_checkpoint import bring_checkpoint  # needs MindSpore, as such models do

    return bring_checkpoint(place, folder)


class _Output(click.Path):
    """A place of what a command makes, on a disk or in a bucket, which is looked at before its work begins.

    Args:
        folder: it is a folder, or a prefix; without this a file, or an object.
    """

    def __init__(self, folder: bool = False, **options: Any) -> None:
        super().__init__(path_type=Path, **options)
        self.folder = folder

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Returns Later the Path, or the StoredPath."""
        place = LOCATION.convert(value, param, ctx)
        if not isinstance(place, StoredPath):
            super().convert(place, param, ctx)  # which sees whether it is a folder
        elif not self.folder and not place.key:
            self.fail(f"{place} is a whole bucket; name an object in it", param, ctx)
        return Later(functools.partial(self._checked, place))

    def _checked(self, place: Location, _ctx: click.Context) -> Location:
        """Returns the place, if something can be made there."""
        from faceshards.files import check_writable  # needs pyarrow

        if isinstance(place, StoredPath) or not _is_written_through(place):
            check_writable(place if self.folder else place.parent)
        return place


def _is_written_through(path: Path) -> bool:
    """Returns whether a link, a device or a pipe is there, beside which nothing is made."""
    return os.path.islink(path) or (os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)))


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
MODEL = _Fetched(_of_model, _checkpoint)
OUT_FILE = _Output(dir_okay=False)
OUT_PAGE = _Output()  # of a folder its command says that it is none
OUT_FOLDER = _Output(folder=True)

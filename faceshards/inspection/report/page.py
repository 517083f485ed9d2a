"""Writes the page: figures first, then contact sheets, as many pictures of each as its size allows."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faceshards.dataset.manifest import Manifest
from faceshards.errors import FaceshardsError, first_few
from faceshards.files import bytes_text, replacing
from faceshards.inspection.pictures import ReadRecords
from faceshards.inspection.report.album import Album, Filled, fill
from faceshards.inspection.report.figures import figures
from faceshards.inspection.report.sheets import plan
from faceshards.inspection.report.templates import environment
from faceshards.storage.location import Location, lies_in

log = logging.getLogger(__name__)

SIZE = 8_000_000  # bytes of a page, unless said otherwise
_SPARE = 2000  # bytes kept free for counts and causes, which are known in the end


@dataclass(frozen=True)
class Written:
    """What a page has.

    Args:
        bytes: its size.
        pictures: how many it shows.
        unread: how many it could not show.
    """

    bytes: int
    pictures: int
    unread: int


def write(
    page: Location, found: Manifest, facts: Mapping[str, Any], read: ReadRecords, seed: int = 0, most: int = SIZE
) -> Written:
    """Writes a page about a dataset, whole or not at all; the same dataset and seed give the same bytes.

    Args:
        page: the file; folders above it are made.
        found: the dataset.
        facts: what `manifest summary` says of it.
        read: reads the sources; a source that is gone costs its pictures, and a warning.
        seed: chooses what is shown.
        most: bytes that the page may have.

    Raises:
        FaceshardsError: the page cannot be written, or has no room for its figures.
        ManifestError: a table is missing or damaged; ShardError: a shard is.
    """
    check_page(page, found.path)
    sheets = plan(found, seed)
    template = environment().get_template("page.html.j2")
    about = figures(found, facts, seed)

    def rendered(pages: Sequence[Filled], unread: Sequence[str]) -> bytes:
        causes = first_few(dict.fromkeys(unread))
        return template.render(**about, sheets=pages, unread=len(unread), causes=causes).encode()

    room = most - len(rendered([Filled(sheet, []) for sheet in sheets], ())) - _SPARE
    if room < 0:
        raise FaceshardsError(
            f"{page}: {bytes_text(most)} is too small: the figures alone take {bytes_text(most - room)}"
        )
    album = Album(found, sheets, read)
    filled, unread = fill(sheets, album, room)
    text = rendered(filled, unread)
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        with replacing(page, keep=True) as temporary:
            temporary.write_bytes(text)
    except OSError as error:
        raise FaceshardsError(f"{page}: the report cannot be written: {error.strerror}") from None
    if unread:
        causes = first_few(dict.fromkeys(unread))
        log.warning("%s: %d pictures could not be read from their sources: %s", page, len(unread), causes)
    return Written(len(text), sum(sheet.pictures for sheet in filled), len(unread))


def check_page(page: Location, folder: Location) -> None:
    """Refuses a page that is no regular file, or would lie in the dataset's folder.

    A link is refused too: what is replaced would be the link, and that of /dev/stdout is the machine's.
    """
    try:
        if isinstance(page, Path) and page.is_symlink():
            raise FaceshardsError(f"{page}: a link; name the file itself")
        if page.exists() and not page.is_file():
            raise FaceshardsError(f"{page}: no regular file")
        inside = lies_in(page.resolve(), folder.resolve())
    except OSError as error:
        raise FaceshardsError(f"{page}: {error.strerror}") from None
    if inside:
        raise FaceshardsError(f"{page}: inside the dataset, which stays as it was published")

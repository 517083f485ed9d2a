"""The command ``faceshards make-bin``."""

from __future__ import annotations

from pathlib import Path

import click

from evaluation.make_set import make_set
from faceshards.cli.command import Command
from faceshards.cli.options import FETCHED, PATH, json_option, show
from faceshards.cli.paths import OUT_FILE
from faceshards.formats.verification_bin import write_bin
from faceshards.storage.location import Location


@click.command("make-bin", cls=Command)
@click.argument("root", type=PATH)
@click.argument("pairs", type=FETCHED)
@click.argument("out", type=OUT_FILE)
@json_option
def make_bin(root: Path, pairs: Path, out: Location, as_json: bool) -> None:
    """Make a verification set OUT (.bin) of ROOT's images by PAIRS.

    ROOT is a folder on a disk; PAIRS and OUT may be in a bucket.

    \b
    PAIRS is CFP's folder Protocol (its Split/FP), or a text file whose lines are all
      name i j, or name i name j    LFW's pairs.txt: name/name_000i.jpg, .jpeg or .png
      image image flag              a/1.jpg b/2.jpg 0; the flag first or last; 1 or true: one person,
                                    0, -1 or false: two; without a flag one folder is one person
      image number                  CALFW's and CPLFW's: two lines a pair, 0: two persons
      index label image             im2rec's .lst: two lines a pair, one label: one person
    with tabs, commas, semicolons or blanks between the fields. A first line that counts the pairs (10 300) or has the
    titles of columns is passed over, and so are lines that begin with #.

    \b
    Examples:
      faceshards make-bin lfw_112x112 pairs.txt lfw.bin
      faceshards make-bin lfw_112x112 pairs.csv s3://faces/sets/lfw.bin
    """
    found = make_set(root, pairs)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bin(out, found.images, found.same)
    counts = {"pairs": len(found.same), "same": int(found.same.sum()), "bytes": out.stat().st_size}
    show(counts, [f"{out}: {counts['pairs']:,} pairs, {counts['same']:,} of one person"], as_json)

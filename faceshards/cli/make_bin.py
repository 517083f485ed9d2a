"""The command ``faceshards make-bin``."""

from __future__ import annotations

from pathlib import Path

import click

from evaluation.pair_lists import make_set
from faceshards.cli.options import PATH, Command, json_option, show
from faceshards.files import check_writable
from faceshards.formats.verification_bin import write_bin


@click.command("make-bin", cls=Command)
@click.argument("root", type=PATH)
@click.argument("pairs", type=PATH)
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@json_option
def make_bin(root: Path, pairs: Path, out: Path, as_json: bool) -> None:
    """Make a verification set OUT (.bin) of images below ROOT and a list of PAIRS.

    \b
    PAIRS is one of
      LFW's pairs.txt         name 1 2   or   name 1 other 2
      a folder                CFP's Protocol (its Split/FP)
      lines of two images     a/1.jpg b/2.jpg 0   (1: one person), or without the flag: one folder is one person
      CALFW's, CPLFW's lists  a line an image, two lines a pair: ann_0001.jpg 0   (0: two persons)
    \b
    Example:
      faceshards make-bin lfw_112x112 pairs.txt lfw.bin
    """
    check_writable(out.parent)  # before all images are read
    found = make_set(root, pairs)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bin(out, found.images, found.same)
    counts = {"pairs": len(found.same), "same": int(found.same.sum()), "bytes": out.stat().st_size}
    show(counts, [f"{out}: {counts['pairs']:,} pairs, {counts['same']:,} of one person"], as_json)

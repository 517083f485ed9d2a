"""Where MindSpore leaves what it writes when a graph fails to compile: not in the folder that a user stands in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# MindSpore 2.10 looks these up when it writes, and takes the current folder for each that is not set: the graph that
# failed (rank_R/om/analyze_fail.ir); kernels compiled on the spot, and their lock (akg_kernel_meta,
# kernel_build_tmp.key); graphs as text and .dot.
VARIABLES = ("MS_OM_PATH", "MS_COMPILER_CACHE_PATH", "MS_DEV_SAVE_GRAPHS_PATH")


@contextmanager
def diagnostics_in(folder: Path) -> Iterator[None]:
    """Has MindSpore, here and in processes started meanwhile, write what it leaves behind into a folder.

    Nothing is made here: MindSpore makes the folder when it has something to write. A variable that the user has set
    stays as it is.

    Args:
        folder: where to; need not be there.
    """
    ours = [name for name in VARIABLES if name not in os.environ]
    os.environ.update(dict.fromkeys(ours, str(folder.absolute())))
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)

"""MindSpore 2.10 beside numpy 2."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress

import mindspore as ms
import numpy as np


@functools.cache
def settle_numpy() -> None:
    """Makes MindSpore's first operation on a Python number here, where it may fail; call it before any other.

    MindSpore 2.10 is compiled for numpy 1. Under numpy 2 the first operation that takes a number apart asks for numpy
    1's C interface, prints numpy's page about it, and fails; from then on all work (measured with numpy 2.4). What
    never works there is an operation of a Tensor and a NumPy array or number, which nothing here uses.
    """
    if np.lib.NumpyVersion(np.__version__) < "2.0.0":
        return
    with _silent(), suppress(SystemError, ImportError):
        _ = ms.Tensor([0.0], ms.float32) < 0.0


@contextmanager
def _silent() -> Iterator[None]:
    """Keeps standard error, Python's and C++'s, off the terminal."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)

"""The one place that imports MXNet, whose last release (1.9.1) needs a hand to load beside today's numpy."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from faceshards.errors import FaceshardsError


def load() -> ModuleType:
    """Returns the ``mxnet`` module.

    MXNet 1.9.1 reads ``numpy.bool`` while it is imported, a name that numpy took away in 1.24. It is put back for the
    import alone, so that no other code comes to lean on it.

    Raises:
        FaceshardsError: MXNet is not installed, or its shared library cannot be loaded.
    """
    borrowed = "bool" not in vars(np)
    if borrowed:
        np.bool = np.bool_  # type: ignore[attr-defined]
    try:
        import mxnet
    except (ImportError, AttributeError) as error:  # AttributeError: names that numpy 2 took away
        raise FaceshardsError(f"mxnet cannot be imported ({error}): pip install 'faceshards[mxnet]'") from None
    except OSError as error:  # ctypes could not load libmxnet.so
        hint = ": install the system package libquadmath0 (Debian)" if "quadmath" in str(error) else ""
        raise FaceshardsError(f"mxnet cannot be loaded: {error}{hint}") from None
    finally:
        if borrowed:
            del np.bool  # type: ignore[attr-defined]
    return mxnet

"""How unevenly images are spread over identities, or rows over shards."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def spread(sizes: npt.NDArray[np.int64]) -> dict[str, Any] | None:
    """Returns least, mean, most, quantiles and the Gini coefficient of sizes; None of no sizes.

    A quantile is a size that occurs: the least one that so large a share of the sizes does not exceed. The Gini
    coefficient is the mean absolute difference between two sizes, as a share of twice their mean: 0 where all are
    alike, towards 1 where few have nearly all (Gini 1912; by sorted sizes, as Damgaard and Weiner 2000, eq. 1).

    Args:
        sizes: (n,) of none or more.
    """
    n = len(sizes)
    if not n:
        return None
    ordered = np.sort(sizes)
    total = int(ordered.sum())
    ranks = np.arange(1, n + 1, dtype=np.int64)
    gini = (2 * int((ranks * ordered).sum()) / total - (n + 1)) / n if total else 0.0
    quantiles = np.quantile(ordered, QUANTILES, method="inverted_cdf")
    return {
        **{"least": int(ordered[0]), "mean": total / n, "most": int(ordered[-1])},
        "quantiles": {f"{share:g}": int(size) for share, size in zip(QUANTILES, quantiles, strict=True)},
        "gini": gini,
    }

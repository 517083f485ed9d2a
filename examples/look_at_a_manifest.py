"""Looks at a manifest in pandas and DuckDB: how long the tail is, why records were dropped, and what was close.

    python examples/look_at_a_manifest.py data/shards/synthetic

Needs `pip install 'faceshards[manifest]'`.
"""

from __future__ import annotations

import sys

import pyarrow.dataset as ds

import faceshards


def main(path: str) -> None:
    """Prints four looks at a dataset."""
    data = faceshards.open(path)
    print(data)

    # pandas: integers that may be null stay integers.
    kept = data.to_pandas("identities", ["label", "kept"], where=ds.field("label").is_valid())["kept"]
    print("\nImages of an identity:")
    print(kept.describe(percentiles=[0.05, 0.5, 0.95]).round(1).to_string())

    dropped = data.to_pandas("dropped", ["sid", "reason", "representative", "distance"])
    print("\nDropped, by reason, with the Hamming distance to what stands for it:")
    print(dropped.groupby("reason")["distance"].agg(["size", "min", "max"]).to_string())

    # DuckDB, over the same tables: the people whose photographs were filed under other names too.
    print("\nPairs of identities that share photographs:")
    print(
        data.query(
            """
            SELECT label_original_a AS a, label_original_b AS b, photographs, distance
            FROM identity_links ORDER BY photographs DESC, distance, a, b LIMIT 5
            """
        )
        .to_pandas()
        .to_string(index=False)
    )

    # One image: the first that was dropped as a near duplicate, and what stands for it.
    near = dropped[dropped["reason"] == "near_duplicate"]
    if len(near):
        image = data.image(int(near["sid"].iloc[0]))
        print(f"\n{image} of {image.pixels.shape}; sid {image.kept_sid} stands for it in the shards")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python examples/look_at_a_manifest.py DATASET")
    try:
        main(sys.argv[1])
    except faceshards.FaceshardsError as error:
        raise SystemExit(f"Error: {error}") from None

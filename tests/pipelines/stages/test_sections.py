"""Routed rows in a bucket: each shard gets its own, and their images, whatever partition they come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from faceshards.storage.location import StoredPath
from pipelines.records import ROUTED_SCHEMA
from pipelines.stages import sections
from pipelines.stages.origins import SPILL
from pipelines.stages.write import gather


def partition(shards: list[int], first: int) -> tuple[pa.Table, bytes]:
    """Returns the routed rows of a partition, ascending by shard, and their images one behind the other."""
    n = len(shards)
    size = np.arange(first, first + n) % 7 + 1
    told = {"shard": shards, "row": np.arange(first, first + n), "sid": np.arange(first, first + n), "bytes": size}
    columns = {
        field.name: pa.array(told[field.name], field.type) if field.name in told else pa.nulls(n, field.type)
        for field in ROUTED_SCHEMA
    }
    return pa.table(columns, ROUTED_SCHEMA), b"".join(bytes([first + i]) * int(size[i]) for i in range(n))


@pytest.mark.parametrize("tail", [16, 64 << 10])
def test_a_shard_is_given_its_rows_and_images_and_no_others(
    tail: int, bucket: StoredPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sections, "_TAIL", tail)  # an index may be longer than what is read of it at first
    stored, local = [], []
    for number, shards in enumerate([[0, 0, 2, 5], [], [2, 2, 2, 3], [5]]):
        rows, images = partition(shards, 10 * number)
        path = bucket / f"part-{number}.arrow"
        sections.write_sections(rows, path)
        path.with_suffix(SPILL).write_bytes(images)
        stored.append(path)
        local.append(tmp_path / path.name)
        with pa.ipc.new_file(str(local[-1]), ROUTED_SCHEMA) as writer:
            writer.write_table(rows)
    expected = {0: [0, 1], 1: [], 2: [2, 20, 21, 22], 3: [23], 4: [], 5: [3, 30]}
    for shard, found in enumerate(sections.by_shard(stored, 6)):
        with sections.at_hand(found, images=True) as here:
            assert sum(len(path.with_suffix(SPILL).read_bytes()) for path in here) == sum(
                sid % 7 + 1 for sid in expected[shard]
            )
            assert [path.with_suffix(SPILL).read_bytes()[0] for path in here] == [
                min(sid for sid in expected[shard] if sid // 10 == number)
                for number in sorted({sid // 10 for sid in expected[shard]})
            ]
            if expected[shard]:
                assert gather(shard, here).equals(gather(shard, local))
                assert gather(shard, here)["sid"].to_pylist() == expected[shard]
        assert all(not path.exists() for path in here)
    with sections.at_hand(local, images=True) as here:
        assert here is local
